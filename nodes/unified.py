"""InfEdit's unified attention control."""

from comfy_api.latest import io

from ..attention.layout_blend import make_layout_blend
from ..attention.unified import ORIGINS, UnifiedControl
from ..attention.windows import parse_words
from ..host.editing import with_controller
from . import types


class UACController(io.ComfyNode):
    """UAC-Controller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceUACController",
            display_name="UAC-Controller",
            description=(
                "Unified attention control: the source's structure first, then the target's layout "
                "with the source's content, drawn by a branch of its own (InfEdit, Xu et al. "
                "2023). Made for Virtual-Inversion. Acts in the Edit-Sampler only."
            ),
            search_aliases=["infedit", "unified attention control", "layout branch", "uac"],
            inputs=[
                *types.prompted_inputs(),
                io.Float.Input("cross_replace", default=0.7, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end, in which the words "
                                   "that stay look where they looked before; 0 turns it off."
                               )),
                io.Float.Input("self_replace", default=0.7, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps in which the source's structure is used. "
                                   "0.7 keeps shapes; 0.3 lets them change, and the layout branch "
                                   "takes over earlier; 0 turns it off."
                               )),
                io.Combo.Input("cross_from", options=list(ORIGINS), default=ORIGINS[0],
                               tooltip=(
                                   "Whose word maps are used after self_replace has ended: the "
                                   "layout branch's, as in the paper's benchmark, or the source's, "
                                   "as in its demo."
                               )),
                io.String.Input("blend_edit", default="",
                                tooltip=(
                                    "Target words or phrases, separated by commas, outside whose "
                                    "region nothing may change. Empty: everything may."
                                )),
                io.String.Input("blend_keep", default="",
                                tooltip=(
                                    "Target words or phrases in whose region the source is kept. "
                                    "Empty: none."
                                )),
                io.Float.Input("edit_threshold", default=0.55, min=0.0, max=0.99, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of a word map's maximum above which a place belongs "
                                   "to blend_edit's region; higher lets less change, 0 nearly "
                                   "everything."
                               )),
                io.Float.Input("keep_threshold", default=0.6, min=0.0, max=0.99, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "The same for blend_keep's region; higher keeps less, 0 nearly "
                                   "everything."
                               )),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, prompts, mode, cross_replace, self_replace, cross_from,
                blend_edit="", blend_keep="", edit_threshold=0.55,
                keep_threshold=0.6) -> io.NodeOutput:
        controller = UnifiedControl(
            prompts,
            mode=mode,
            cross_replace=cross_replace,
            self_replace=self_replace,
            cross_from=cross_from,
            blend=make_layout_blend(
                parse_words(blend_edit), parse_words(blend_keep), edit_threshold, keep_threshold
            ),
        )
        return io.NodeOutput(with_controller(model, controller))
