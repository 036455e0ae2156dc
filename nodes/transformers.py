"""Controllers made for diffusion transformers."""

from comfy_api.latest import io

from ..attention import dit4edit
from ..attention.local_blend import make_blend
from ..attention.windows import parse_reweight, parse_word_windows, parse_words
from ..host.editing import with_controller
from . import types


class DiT4EditController(io.ComfyNode):
    """DiT4Edit-Controller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceDiT4EditController",
            display_name="DiT4Edit-Controller",
            description=(
                "Unified attention control for PixArt and other models, in one node: the source's "
                "word maps throughout, its structure in the early steps, its content in the later "
                "ones (DiT4Edit, Feng et al. 2024). Acts in the Edit-Sampler only."
            ),
            search_aliases=["dit4edit", "unified attention control", "pixart edit"],
            inputs=[
                *types.prompted_inputs(),
                io.Float.Input("cross_replace", default=dit4edit.CROSS_REPLACE, min=0.0, max=1.0,
                               step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end, in which the "
                                   "source's word maps are used; 0 turns it off."
                               )),
                io.Float.Input("switch", default=dit4edit.SWITCH, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps after which self-attention turns from "
                                   "the source's structure to the target's own layout filled with "
                                   "the source's content; 0 is content only, 1 structure only."
                               )),
                io.Float.Input("cross_from", default=dit4edit.CROSS_FROM, min=0.0, max=0.99,
                               step=0.05, round=0.01,
                               tooltip=(
                                   "First controlled cross-attention layer, as a fraction of all "
                                   "layers in call order; 0 is all."
                               )),
                io.Float.Input("self_from", default=dit4edit.SELF_FROM, min=0.0, max=0.99,
                               step=0.05, round=0.01,
                               tooltip=(
                                   "First controlled self-attention layer, as a fraction of all "
                                   "layers; 0 is all. Deep layers carry the layout."
                               )),
                types.word_windows_input(),
                io.String.Input("reweight", default="",
                                tooltip=(
                                    "Factors on target words: 'fluffy: 2, snow: 0.5'; 1 changes "
                                    "nothing. Empty: none."
                                )),
                io.String.Input("blend_source", default="",
                                tooltip=(
                                    "Source words whose region may change, the rest is kept from "
                                    "the source (LocalBlend). Empty here and in blend_target "
                                    "turns it off."
                                )),
                io.String.Input("blend_target", default="",
                                tooltip="Target words whose region may change too."),
                io.Float.Input("blend_threshold", default=0.3, min=0.0, max=0.99, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of a word map's maximum above which a place belongs "
                                   "to the region."
                               )),
                types.recorded_input(),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, prompts, mode, cross_replace, switch, cross_from, self_from,
                word_windows="", reweight="", blend_source="", blend_target="",
                blend_threshold=0.3, attention=None) -> io.NodeOutput:
        controllers = dit4edit.unified_control(
            prompts,
            mode=mode,
            cross_replace=cross_replace,
            switch=switch,
            cross_from=cross_from,
            self_from=self_from,
            word_windows=parse_word_windows(word_windows),
            reweight=parse_reweight(reweight),
            blend=make_blend(
                parse_words(blend_source), parse_words(blend_target), (), blend_threshold
            ),
        )
        for controller in controllers:
            model = with_controller(model, controller, attention)
        return io.NodeOutput(model)
