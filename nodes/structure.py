"""Controllers that hold structure or content of the source: MasaCtrl and Plug-and-Play."""

from comfy_api.latest import io

from ..attention.key_masks import make_auto_mask, make_mask
from ..attention.masactrl import AUTO_LAYER, MasaCtrl
from ..attention.plug_and_play import PlugAndPlay
from ..attention.windows import parse_words
from ..host.editing import with_controller
from . import types


class MasaCtrlController(io.ComfyNode):
    """MasaCtrl-Controller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceMasaCtrlController",
            display_name="MasaCtrl-Controller",
            description=(
                "Keeps what things look like while they move or change shape: the target looks up "
                "the source's content in self-attention (MasaCtrl, Cao et al. 2023). Acts in the "
                "Edit-Sampler only."
            ),
            search_aliases=["masactrl", "mutual self-attention", "pose edit", "non-rigid edit"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, or another controller's."),
                io.Float.Input("start_step", default=4.0, min=0.0, max=1000.0, step=1.0,
                               round=0.001,
                               tooltip=(
                                   "First step of the control, counted from the noisy end: a step "
                                   "number from 1 on (the paper's 4, of 50), or below 1 a fraction "
                                   "of the steps (0.08 is the paper's). Later lets the layout "
                                   "change more; 0 controls every step."
                               )),
                io.Int.Input("start_layer", default=AUTO_LAYER, min=AUTO_LAYER, max=999,
                             tooltip=(
                                 "First self-attention layer of the control in call order: SD1.5 "
                                 "and SD2 have 16 (0 to 15, the paper's is 10), SDXL 70 (44, 54 or "
                                 "64). -1 takes the paper's place in whatever model this is: 10 "
                                 "of 16, 44 of 70."
                             )),
                io.Mask.Input("mask_source", optional=True,
                              tooltip=(
                                  "Foreground of the source; target foreground then looks up "
                                  "foreground only, background only background."
                              )),
                io.Mask.Input("mask_target", optional=True,
                              tooltip=(
                                  "Where the foreground shall be in the result; if only one mask "
                                  "is connected it stands for both."
                              )),
                types.Prompts.Input("prompts", optional=True,
                                    tooltip="From Prompt-Pair; needed for automatic masks only."),
                io.String.Input("words_source", default="", optional=True,
                                tooltip=(
                                    "Source words, separated by commas, whose cross-attention "
                                    "makes the source's mask at every step. Empty: no automatic "
                                    "masks."
                                )),
                io.String.Input("words_target", default="", optional=True,
                                tooltip="Target words that make the target's mask."),
                io.Float.Input("mask_threshold", default=0.1, min=0.01, max=0.99, step=0.01,
                               round=0.01, optional=True,
                               tooltip=(
                                   "Above which value of a word's map, scaled to 0-1, a place is "
                                   "foreground; for automatic masks only."
                               )),
                types.recorded_input(),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, start_step, start_layer, mask_source=None, mask_target=None,
                prompts=None, words_source="", words_target="",
                mask_threshold=0.1, attention=None) -> io.NodeOutput:
        controller = MasaCtrl(
            start_step=start_step,
            start_layer=start_layer,
            mask_source=make_mask(mask_source),
            mask_target=make_mask(mask_target),
            auto=make_auto_mask(
                prompts, parse_words(words_source), parse_words(words_target), mask_threshold
            ),
        )
        return io.NodeOutput(with_controller(model, controller, attention))


class PnPController(io.ComfyNode):
    """PnP-Controller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetracePnPController",
            display_name="PnP-Controller",
            description=(
                "Keeps the source's layout while the prompt repaints everything: its decoder "
                "features and self-attention are used for the target (Plug-and-Play, Tumanyan et "
                "al. 2022). Acts in the Edit-Sampler only."
            ),
            search_aliases=["plug and play", "pnp", "feature injection"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, or another controller's."),
                io.Float.Input("feature_fraction", default=0.8, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end, in which the "
                                   "source's features are used; 0 turns it off. High keeps the "
                                   "layout."
                               )),
                io.Float.Input("attention_fraction", default=0.5, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps in which the source's self-attention "
                                   "maps are used; 0 turns it off. High keeps fine structure."
                               )),
                types.recorded_input(),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, feature_fraction, attention_fraction, attention=None) -> io.NodeOutput:
        return io.NodeOutput(
            with_controller(model, PlugAndPlay(feature_fraction, attention_fraction), attention)
        )
