"""Controllers of guidance: a MODEL in, a MODEL out that carries how the Edit-Sampler guides."""

from comfy_api.latest import io

from ..attention.map_guidance import AttentionGuidance
from ..diffusion.proximal import MODES
from ..host.editing import with_controller
from ..host.gradients import CHECKPOINTING
from ..host.negative_prompt import with_proximal_guidance
from . import types


class ProximalGuidance(io.ComfyNode):
    """Proximal-Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceProximalGuidance",
            display_name="Proximal-Guidance",
            description=(
                "Drops weak guidance so that only what the prompts really disagree on is edited, "
                "and pulls the rest to the inversion (ProxEdit, Han et al. 2023). Made for "
                "Invert-NegativePrompt; acts in the Edit-Sampler only."
            ),
            search_aliases=["proxedit", "proxnpi", "proximal negative prompt inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, or a controller's."),
                io.Combo.Input("mode", options=list(MODES), default="soft",
                               tooltip=(
                                   "'soft' shrinks the guidance difference by the threshold, "
                                   "'hard' keeps what is above it. 'published-l0' is soft with the "
                                   "reference's smaller mask, 'published-l1' its sign-flipping one."
                               )),
                io.Float.Input("quantile", default=0.75, min=0.0, max=0.99, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the difference that counts as weak; 0 thresholds "
                                   "nothing."
                               )),
                io.Combo.Input("quantile_over", options=["both rows", "target"],
                               default="both rows",
                               tooltip=(
                                   "'both rows' counts the source's (usually zero) difference too, "
                                   "as published: 0.75 there is 0.5 of the target alone."
                               )),
                io.Float.Input("pull", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Rate of the pull to the inversion outside the edited region; "
                                   "1 copies it, 0 turns it off."
                               )),
                io.Float.Input("pull_until", default=0.4, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "The pull acts at noise levels below this fraction of the "
                                   "training timesteps (published: 400 of 1000); 0 turns it off."
                               )),
                io.Int.Input("dilate", default=2, min=0, max=32,
                             tooltip="Growth of the edited region in latent pixels; 0 is none."),
                io.Float.Input("threshold", default=0.0, min=0.0, max=10.0, step=0.01, round=0.001,
                               optional=True,
                               tooltip=(
                                   "A fixed threshold in units of predicted noise, instead of the "
                                   "quantile; 0 uses the quantile."
                               )),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, mode, quantile, quantile_over, pull, pull_until, dilate,
                threshold=0.0) -> io.NodeOutput:
        return io.NodeOutput(with_proximal_guidance(
            model, mode=mode, quantile=quantile, both_rows=quantile_over == "both rows",
            rate=pull, pull_until=pull_until, dilate=dilate, threshold=threshold or None,
        ))


class XAttnGuidance(io.ComfyNode):
    """XAttn-Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceXAttnGuidance",
            display_name="XAttn-Guidance",
            description=(
                "Pulls the target's word maps to the source's by a gradient step on the latent "
                "before each step of the edit (pix2pix-zero, Parmar et al. 2023). About three "
                "times the cost of the plain edit; acts in the Edit-Sampler only."
            ),
            search_aliases=["pix2pix-zero", "cross-attention guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, or a controller's."),
                io.Float.Input("amount", default=0.1, min=0.001, max=10.0, step=0.01, round=0.001,
                               tooltip=(
                                   "Length of the gradient step. 0.1 is the paper's for photos, "
                                   "0.15 for generated images; Stable Diffusion 2 needs about 0.01."
                               )),
                io.Float.Input("until", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of the steps, from the noisy end, that are guided; "
                                   "1 guides all."
                               )),
                io.String.Input("layers", default="", optional=True,
                                tooltip=(
                                    "Cross-attention layers to compare: 'output, middle', "
                                    "'input.4', or numbers '2-5'. Empty: all, as published."
                                )),
                io.Boolean.Input("normalise", default=True, optional=True,
                                 tooltip=(
                                     "Weigh layers alike whatever their resolution and number, so "
                                     "that one amount fits all sizes and models. Off: plain sum."
                                 )),
                io.Boolean.Input("published", default=False, optional=True,
                                 tooltip=(
                                     "Reproduce the reference code: plain sum over layers, loss on "
                                     "both guidance rows, each with a latent of its own. Off costs "
                                     "less and guides the one latent."
                                 )),
                io.Combo.Input("checkpointing", options=list(CHECKPOINTING), default="auto",
                               optional=True,
                               tooltip=(
                                   "Recomputes instead of storing: slower, a fraction of the "
                                   "memory. 'auto' starts when memory runs out, 'never' turns it "
                                   "off."
                               )),
                types.recorded_input(),
            ],
            outputs=[
                types.controlled_output(),
            ],
        )

    @classmethod
    def execute(cls, model, amount, until, layers="", normalise=True, published=False,
                checkpointing="auto", attention=None) -> io.NodeOutput:
        return io.NodeOutput(with_controller(model, AttentionGuidance(
            amount=amount, until=until, layers=layers, normalise=normalise, published=published,
            checkpointing=checkpointing,
        ), attention))
