"""Prompts: source and target text, encoded and aligned."""

from comfy_api.latest import io

from ..host.tokens import encode, pair_prompts
from . import types


class PromptPair(io.ComfyNode):
    """Prompt-Pair."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetracePromptPair",
            display_name="Prompt-Pair",
            description=(
                "Says what the photo shows (source) and what the result should show (target), and "
                "aligns their words for Prompt-to-Prompt (Hertz et al. 2022)."
            ),
            search_aliases=["prompt to prompt", "p2p prompts", "source and target prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the checkpoint."),
                io.String.Input(
                    "source",
                    multiline=True,
                    default="a photo of a cat",
                    tooltip="What the photo shows, in plain words. Used by the inversion.",
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    default="a photo of a dog",
                    tooltip="The same sentence with the change: swap, add or remove words.",
                ),
                io.Combo.Input(
                    "alignment",
                    options=["fixed", "published"],
                    default="fixed",
                    optional=True,
                    tooltip=(
                        "How tokens after a changed word are aligned. 'published' reproduces the "
                        "reference code, which shifts them when the word's token count changes."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output("source", display_name="source",
                                       tooltip="Source prompt, for the inversion."),
                io.Conditioning.Output("target", display_name="target",
                                       tooltip="Target prompt, the Edit-Sampler's positive."),
                types.Prompts.Output("prompts", display_name="prompts",
                                     tooltip="Both texts, their tokens and their alignment."),
            ],
        )

    @classmethod
    def execute(cls, clip, source, target, alignment="fixed") -> io.NodeOutput:
        pair = pair_prompts(clip, source, target, published=alignment == "published")
        return io.NodeOutput(encode(clip, source), encode(clip, target), pair)
