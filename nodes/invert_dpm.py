"""Inversion with the solver that most people sample with."""

from comfy_api.latest import io, ui

from ..host.inversion_dpm import METHODS, VARIANTS, invert_with_dpm_solver
from ..host.model import SCHEDULES
from . import types


class InvertDPMSolver(io.ComfyNode):
    """Invert-DPMSolver."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertDPMSolver",
            display_name="Invert-DPMSolver",
            description=(
                "Retraces an image to noise by inverting DPM-Solver++ step by step (Hong et al. "
                "2024, as in DiT4Edit); the Edit-Sampler then samples with the same solver."
            ),
            search_aliases=["dpm inversion", "dpm++ 2m inversion", "exact inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model; controllers are ignored."),
                io.Conditioning.Input("positive", tooltip="Source prompt: what the photo shows."),
                io.Latent.Input("latent", tooltip="The encoded photo, or a batch of them."),
                io.Int.Input("steps", default=30, min=1, max=1000,
                             tooltip="Steps from image to noise; the edit takes as many."),
                io.Combo.Input("schedule", options=list(SCHEDULES), default="diffusers",
                               tooltip=(
                                   "Noise levels. 'diffusers' is the grid of the published codes; "
                                   "the others are the host's schedulers."
                               )),
                io.Int.Input("order", default=2, min=1, max=2,
                             tooltip="2 is DPM-Solver++ 2M, 1 is DDIM inverted exactly."),
                io.Float.Input("cfg", default=1.0, min=1.0, max=30.0, step=0.1, round=0.01,
                               tooltip="Guidance during inversion; 1 turns it off."),
                io.Int.Input("iterations", default=10, min=0, max=500,
                             tooltip=(
                                 "Most model calls that each step may spend on its inner solve; 0 "
                                 "keeps the first guess."
                             )),
                io.Float.Input("tolerance", default=1e-4, min=0.0, max=1.0, step=1e-5, round=1e-7,
                               tooltip=(
                                   "A step's solve ends when its residual, in latent units, is "
                                   "below this; 0 always spends all iterations."
                               )),
                io.Combo.Input("variant", options=list(VARIANTS), default="fine",
                               tooltip=(
                                   "How order 2 guesses the step beyond: 'fine' by three small "
                                   "steps (Hong et al.), 'cheap' by one (DiT4Edit)."
                               )),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="Only used when cfg is above 1."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Noise levels to use instead of steps and schedule."),
                io.Combo.Input("method", options=list(METHODS), default="fixed-point",
                               optional=True,
                               tooltip=(
                                   "The inner solve: 'fixed-point' is quick, 'forward-step' takes "
                                   "the paper's smaller steps, which converge at a high cfg too."
                               )),
                io.Int.Input("sweeps", default=0, min=0, max=20, optional=True,
                             tooltip=(
                                 "Order 2 only: how often all steps are solved again with what was "
                                 "found for the step beyond, in place of the guess. 0 is as "
                                 "published; each brings the way back closer to exact."
                             )),
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
    def execute(cls, model, positive, latent, steps, schedule, order, cfg, iterations, tolerance,
                variant, negative=None, sigmas=None, method="fixed-point",
                sweeps=0) -> io.NodeOutput:
        trajectory, noise, grid = invert_with_dpm_solver(
            model, positive, latent, steps=steps, schedule=schedule, order=order, cfg=cfg,
            iterations=iterations, tolerance=tolerance, variant=variant, negative=negative,
            sigmas=sigmas, method=method, sweeps=sweeps,
        )
        report = types.report_text(dict(trajectory.report))
        return io.NodeOutput(trajectory, {"samples": noise}, grid, ui=ui.PreviewText(report))
