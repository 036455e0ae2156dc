"""Inversion nodes: from a LATENT to a TRAJECTORY, or from a TRAJECTORY to a better one."""

from comfy_api.latest import io, ui

from ..diffusion.trajectory import SourceRule
from ..host import inversion
from ..host.model import SCHEDULES
from . import types


class InvertDDIM(io.ComfyNode):
    """Invert-DDIM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertDDIM",
            display_name="Invert-DDIM",
            description=(
                "Retraces an image to noise by DDIM inversion and keeps every state on the way "
                "(Song et al. 2020; the convention of null-text inversion, Mokady et al. 2022)."
            ),
            search_aliases=["unsampler", "noise inversion", "ddim inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model; controllers are ignored."),
                io.Conditioning.Input("positive", tooltip="Source prompt: what the photo shows."),
                io.Latent.Input("latent", tooltip="The encoded photo, or a batch of them."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="Steps from image to noise; the edit takes as many."),
                io.Combo.Input("schedule", options=list(SCHEDULES), default="diffusers",
                               tooltip=(
                                   "Noise levels. 'diffusers' is the grid of the published codes; "
                                   "the others are the host's schedulers."
                               )),
                io.Float.Input("cfg", default=1.0, min=1.0, max=30.0, step=0.1, round=0.01,
                               tooltip=(
                                   "Guidance during inversion; 1 turns it off and is what the "
                                   "papers use. Above 2 the round trip degrades fast."
                               )),
                io.Combo.Input("evaluate_at", options=["next", "current"], default="next",
                               tooltip=(
                                   "Under which noise level the model is asked at each step: "
                                   "'next' is the published convention, 'current' the plain "
                                   "Euler step."
                               )),
                io.Int.Input("refine", default=0, min=0, max=50,
                             tooltip=(
                                 "Fixed-point iterations per step; each costs one model call. 0 is "
                                 "plain DDIM inversion, 2 to 5 make the round trip nearly exact."
                             )),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="Only used when cfg is above 1."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Noise levels to use instead of steps and schedule."),
                io.Combo.Input("refine_method", options=list(inversion.REFINEMENTS),
                               default="fixed-point", optional=True,
                               tooltip=(
                                   "How refine works: 'fixed-point' goes for the exact inverse, "
                                   "'renoise' averages predictions (Garibi et al. 2024)."
                               )),
                io.Combo.Input("regularise", options=["off", *inversion.REGULARISATIONS],
                               default="off", optional=True,
                               tooltip=(
                                   "Pull predicted noise towards white noise (Parmar et al. 2023, "
                                   "pix2pix-zero): easier to edit, harder to reconstruct. "
                                   "'published' keeps the code's quirks."
                               )),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, optional=True,
                             control_after_generate=False,  # a new seed would invert anew each run
                             tooltip="Of the random shifts of regularise; nothing else is random."),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="Every state from clean to noisy."),
                io.Latent.Output("noise", display_name="noise",
                                 tooltip="The last state, for a stock sampler with noise off."),
                io.Sigmas.Output("sigmas", display_name="sigmas",
                                 tooltip="The noise levels, noisy to clean, for a stock sampler."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, schedule, cfg, evaluate_at, refine,
                negative=None, sigmas=None, refine_method="fixed-point", regularise="off",
                seed=0) -> io.NodeOutput:
        trajectory, noise, grid = inversion.invert(
            model, positive, latent, steps=steps, schedule=schedule, cfg=cfg,
            evaluate_at=evaluate_at, refine=refine, negative=negative, sigmas=sigmas,
            refine_method=refine_method, regularise=regularise, seed=seed,
        )
        report = types.report_text(dict(trajectory.report))
        return io.NodeOutput(trajectory, {"samples": noise}, grid, ui=ui.PreviewText(report))


class InvertDirectInversion(io.ComfyNode):
    """Invert-DirectInversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertDirectInversion",
            display_name="Invert-DirectInversion",
            description=(
                "Pins the source branch of the edit to the trajectory, so that the original is "
                "kept exactly and the target stays free (Ju et al. 2023, Direct Inversion)."
            ),
            search_aliases=["pnp inversion", "direct inversion"],
            inputs=[
                types.Trajectory.Input("trajectory", tooltip="From any inversion node."),
                io.Float.Input("scale", default=1.0, min=0.0, max=1.0, step=0.05, round=0.01,
                               tooltip=(
                                   "Fraction of each step's offset that is corrected. 1 is exact "
                                   "and cheapest, 0 corrects nothing."
                               )),
                io.Int.Input("interval", default=1, min=1, max=1000,
                             tooltip="Correct only every n-th step; 1 corrects all."),
            ],
            outputs=[
                types.Trajectory.Output("trajectory", display_name="trajectory",
                                        tooltip="The same states with the source branch pinned."),
            ],
        )

    @classmethod
    def execute(cls, trajectory, scale, interval) -> io.NodeOutput:
        rule = SourceRule(pinned=True, scale=scale, interval=interval)
        return io.NodeOutput(trajectory.replace(source_rule=rule))
