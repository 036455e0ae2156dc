"""Controller nodes: a MODEL in, a MODEL out that carries what to do to attention."""

from comfy_api.latest import io

from ..attention.local_blend import make_blend
from ..attention.prompt_to_prompt import PromptToPrompt
from ..attention.windows import parse_reweight, parse_word_windows, parse_words
from ..host.editing import with_controller
from . import types


class P2PController(io.ComfyNode):
    """P2P-Controller."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceP2PController",
            display_name="P2P-Controller",
            description=(
                "Holds the picture together while words change: the source's attention is used for "
                "the target's (Prompt-to-Prompt, Hertz et al. 2022). Acts in the Edit-Sampler only."
            ),
            search_aliases=["prompt to prompt", "prompt2prompt", "attention replace"],
            inputs=[
                *types.prompted_inputs(),
                io.Float.Input("cross_replace", default=0.4, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end, in which the "
                                   "source's word maps are used; 0 turns it off. Low for "
                                   "textures, high for keeping the layout."
                               )),
                io.Float.Input("self_replace", default=0.6, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps in which the source's self-attention is "
                                   "used; 0 turns it off. High keeps shapes."
                               )),
                types.word_windows_input(),
                io.String.Input("reweight", default="",
                                tooltip=(
                                    "Factors on target words: 'fluffy: 2, snow: 0.5'; 1 changes "
                                    "nothing, negative suppresses. Acts inside the cross window."
                                )),
                io.String.Input("blend_source", default="",
                                tooltip=(
                                    "Source words or phrases, separated by commas: what they show "
                                    "may change, the rest is kept from the source (LocalBlend). "
                                    "Empty here and in blend_target turns it off."
                                )),
                io.String.Input("blend_target", default="",
                                tooltip=(
                                    "Target words or phrases whose region may change, joined to "
                                    "that of blend_source."
                                )),
                io.Float.Input("blend_threshold", default=0.3, min=0.0, max=0.99, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of a word map's maximum above which a place belongs "
                                   "to the region; higher keeps more of the source, 0 nearly "
                                   "nothing."
                               )),
                io.Float.Input("blend_start", default=0.2, min=0.0, max=0.99, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the steps before the first blend; 0 blends from "
                                   "the first step."
                               )),
                io.String.Input("blend_subtract", default="",
                                tooltip=(
                                    "Words of either prompt whose region is kept from the source "
                                    "after all. Empty: none."
                                )),
                types.recorded_input(),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, prompts, mode, cross_replace, self_replace, word_windows="",
                reweight="", blend_source="", blend_target="", blend_threshold=0.3,
                blend_start=0.2, blend_subtract="", attention=None) -> io.NodeOutput:
        blend = make_blend(
            parse_words(blend_source), parse_words(blend_target), parse_words(blend_subtract),
            blend_threshold, blend_start,
        )
        controller = PromptToPrompt(
            prompts,
            mode=mode,
            cross_replace=(0.0, cross_replace),
            self_replace=(0.0, self_replace),
            word_windows=parse_word_windows(word_windows),
            reweight=parse_reweight(reweight),
            blend=blend,
        )
        return io.NodeOutput(with_controller(model, controller, attention))
