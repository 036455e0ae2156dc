"""LEDITS++'s guidance; its inversion is Invert-EditFriendly with the solver sde-dpmpp-2."""

from comfy_api.latest import io

from ..attention.sparse_guidance import MASKS, SparseGuidance
from ..host.editing import with_controller
from . import types


class SparseGuidanceNode(io.ComfyNode):
    """Sparse-Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceSparseGuidance",
            display_name="Sparse-Guidance",
            description=(
                "Guides only where the guidance is strong and where the edit's words are looked "
                "at, so that the rest of the picture stays (LEDITS++, Brack et al. 2023). Give the "
                "Edit-Sampler the edit alone as its prompt, such as 'glasses'."
            ),
            search_aliases=["ledits++", "semantic guidance", "implicit masking"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, or a controller's."),
                io.Combo.Input("masks", options=list(MASKS), default="intersect",
                               tooltip=(
                                   "'intersect' is the paper's: both masks. 'attention' follows "
                                   "the edit's words, 'noise' the strength of the guidance."
                               )),
                io.Float.Input("quantile", default=0.75, min=0.01, max=0.99, step=0.05, round=0.01,
                               tooltip=(
                                   "Part of the picture where guidance is dropped; lower edits "
                                   "more of it."
                               )),
                io.Float.Input("start", default=0.0, min=0.0, max=0.99, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps at the noisy end that are guided "
                                   "everywhere; 0 masks from the first step."
                               )),
                types.Prompts.Input("prompts", optional=True,
                                    tooltip=(
                                        "Its target prompt must be the Edit-Sampler's; not needed "
                                        "for masks 'noise'."
                                    )),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, masks, quantile, start, prompts=None) -> io.NodeOutput:
        prompt = None if prompts is None else prompts.target
        return io.NodeOutput(with_controller(model, SparseGuidance(prompt, masks, quantile, start)))
