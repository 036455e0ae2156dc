"""Fewer tokens in attention: a MODEL in, a MODEL out that merges similar ones."""

from comfy_api.latest import io

from ..attention.patch_merge import MERGED, MOST_MERGED
from ..attention.patch_merge import PatchMerge as Merge
from ..host.merging import with_patch_merge
from . import types


class PatchMerge(io.ComfyNode):
    """PatchMerge."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetracePatchMerge",
            display_name="PatchMerge",
            description=(
                "Makes large pictures faster: similar image tokens are merged before "
                "self-attention and put back after (DiT4Edit, Feng et al. 2024; ToMe, Bolya et "
                "al. 2023). Acts in Retrace's inversion nodes and the Edit-Sampler."
            ),
            search_aliases=["tome", "token merging", "tomesd", "dit4edit", "speed"],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The checkpoint's model, or a controller's. Give its output to the inversion "
                    "and to the Edit-Sampler, so that both merge."
                )),
                io.Float.Input("ratio", default=0.5, min=0.0, max=MOST_MERGED, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "Fraction of the tokens that is merged away; 0 turns it off, "
                                   "0.8 is the paper's. Higher is faster and coarser."
                               )),
                io.Int.Input("stride", default=2, min=2, max=16,
                             tooltip=(
                                 "Side, in tokens, of the squares that keep one token each to "
                                 "merge into. Grows by itself where the ratio needs it: 2 is "
                                 "enough up to 0.75, 0.8 takes 3."
                             )),
                io.Int.Input("max_downsample", default=1, min=1, max=8,
                             tooltip=(
                                 "Coarsest level of a UNet that is merged: 1 is the latent's own "
                                 "size, 2 half of it, and so on. SDXL has attention from 2 on. "
                                 "Transformers (PixArt) have one level and ignore it."
                             )),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip="First step that merges, as a fraction; 0 is the noisiest."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps where merging ends; 1 merges to the "
                                   "last. Lower leaves the finest detail to whole attention."
                               )),
                io.Combo.Input("merged", options=list(MERGED), default="all", optional=True,
                               tooltip=(
                                   "'all' merges queries, keys and values (published); 'queries' "
                                   "keeps every key, 'keys and values' every query: slower, closer "
                                   "to not merging."
                               )),
                io.String.Input("layers", default="", optional=True,
                                tooltip=(
                                    "Self-attention layers that may merge: numbers in call order "
                                    "('10-27'), or addresses ('output', 'block.3'), separated by "
                                    "commas. Empty: all."
                                )),
            ],
            outputs=[
                io.Model.Output("model", display_name="model",
                                tooltip=(
                                    "For an inversion node, a controller or the Edit-Sampler."
                                )),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, ratio, stride, max_downsample, start, end, merged="all",
                layers="") -> io.NodeOutput:
        return io.NodeOutput(with_patch_merge(model, Merge(
            ratio=ratio, stride=stride, max_downsample=max_downsample, window=(start, end),
            merged=merged, layers=layers,
        )))  # fmt: skip
