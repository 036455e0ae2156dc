"""Refinements of a trajectory: better unconditional embeddings for guided sampling."""

from comfy_api.latest import io, ui

from ..host import negative_prompt, null_text
from . import types


class InvertNullText(io.ComfyNode):
    """Invert-NullText-Optimize."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertNullText",
            display_name="Invert-NullText-Optimize",
            description=(
                "Optimises the unconditional embedding of every step until guided sampling "
                "retraces the inversion (null-text inversion, Mokady et al. 2022). Slow: about 20 "
                "model evaluations for each step of the edit."
            ),
            search_aliases=["null text inversion", "nti", "null-text optimization"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model; controllers are ignored."),
                types.Trajectory.Input("trajectory", tooltip="From Invert-DDIM, at its cfg 1."),
                io.Conditioning.Input("negative",
                                      tooltip="Where the optimisation starts; an empty prompt."),
                io.Float.Input("cfg", default=7.5, min=1.05, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance scale of the edit that follows: use the same."),
                io.Int.Input("inner_steps", default=10, min=1, max=1000,
                             tooltip="Most optimisation steps per sampling step."),
                io.Float.Input("learning_rate", default=0.01, min=1e-5, max=1.0, step=0.001,
                               round=0.00001,
                               tooltip=(
                                   "Adam's rate at the noisiest step; it falls by a hundredth of "
                                   "itself per step, as published."
                               )),
                io.Float.Input("early_stop", default=1e-5, min=0.0, max=1.0, step=1e-6,
                               round=1e-7,
                               tooltip=(
                                   "A step ends when its loss is below this, plus 2e-5 per step "
                                   "walked; 0 leaves the 2e-5 per step."
                               )),
                io.Combo.Input("variant", options=list(null_text.VARIANTS), default="null-text",
                               optional=True,
                               tooltip=(
                                   "'null-text' is the paper's; 'single-branch' uses embeddings "
                                   "for the source only; 'null-latent' pins the source to the "
                                   "latents found and leaves the embeddings out."
                               )),
                types.checkpointing_input(),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="The same states with an embedding per step."),
                io.Image.Output("losses", display_name="loss curve",
                                tooltip="Loss over all inner steps, logarithmic."),
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, negative, cfg, inner_steps, learning_rate, early_stop,
                variant="null-text", checkpointing="auto") -> io.NodeOutput:
        refined, losses = null_text.optimise(
            model, trajectory, negative, cfg=cfg, inner_steps=inner_steps,
            learning_rate=learning_rate, early_stop=early_stop, variant=variant,
            checkpointing=checkpointing,
        )
        report = types.report_text(dict(refined.report))
        return io.NodeOutput(refined, losses, ui=ui.PreviewText(report))


class InvertNegativePrompt(io.ComfyNode):
    """Invert-NegativePrompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertNegativePrompt",
            display_name="Invert-NegativePrompt",
            description=(
                "Uses the source prompt as the negative prompt of the edit: nearly null-text "
                "inversion, at no cost (negative-prompt inversion, Miyake et al. 2023)."
            ),
            search_aliases=["negative prompt inversion", "npi"],
            inputs=[
                types.Trajectory.Input("trajectory", tooltip="From Invert-DDIM."),
                io.Conditioning.Input("negative",
                                      tooltip="The interpolation's other end; an empty prompt."),
                io.Float.Input("interpolation", default=0.0, min=0.0, max=1.0, step=0.05,
                               round=0.01,
                               tooltip=(
                                   "0 is the source prompt (the paper), 1 the negative one; "
                                   "between them on the great circle."
                               )),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="The same states with these embeddings."),
            ],
        )

    @classmethod
    def execute(cls, trajectory, negative, interpolation) -> io.NodeOutput:
        return io.NodeOutput(
            negative_prompt.invert_negative_prompt(trajectory, negative, interpolation)
        )
