"""Inversions that sampling undoes exactly: coupled latents, kept noises, or no model at all."""

from comfy_api.latest import io, ui

from ..host import inversion_exact
from ..host.model import SCHEDULES
from . import types


def outputs() -> list:
    """Return the outputs that every inversion has."""
    return [
        types.Trajectory.Output("trajectory", display_name="trajectory",
                                tooltip="Every state from clean to noisy."),
        io.Latent.Output("noise", display_name="noise", tooltip="The noisiest state."),
        io.Sigmas.Output("sigmas", display_name="sigmas",
                         tooltip="The noise levels, noisy to clean."),
    ]


def pack(result: tuple) -> io.NodeOutput:
    """Return trajectory, noise and sigmas as a node's output, the report beside them."""
    trajectory, noise, sigmas = result
    report = types.report_text(dict(trajectory.report))
    return io.NodeOutput(trajectory, {"samples": noise}, sigmas, ui=ui.PreviewText(report))


def schedule_input(published: str) -> io.Combo.Input:
    return io.Combo.Input("schedule", options=list(SCHEDULES), default="diffusers",
                          tooltip=f"Noise levels. 'diffusers' is {published}; the others are the "
                                  "host's schedulers.")


def common_inputs() -> list:
    return [
        io.Model.Input("model", tooltip="The checkpoint's model; controllers are ignored."),
        io.Conditioning.Input("positive", tooltip="Source prompt: what the photo shows."),
        io.Latent.Input("latent", tooltip="The encoded photo, or a batch of them."),
    ]


class InvertEDICT(io.ComfyNode):
    """Invert-EDICT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertEDICT",
            display_name="Invert-EDICT",
            description=(
                "Retraces an image with two coupled latents whose steps undo each other exactly, "
                "at any guidance (EDICT, Wallace et al. 2022). Each step costs two evaluations."
            ),
            search_aliases=["edict", "coupled latents", "exact inversion"],
            inputs=[
                *common_inputs(),
                io.Int.Input("steps", default=50, min=2, max=1000,
                             tooltip="Steps of the whole schedule; strength walks a part."),
                schedule_input("EDICT's own published grid"),
                io.Float.Input("strength", default=0.8, min=0.05, max=1.0, step=0.05, round=0.01,
                               tooltip="Part of the schedule that is walked; 1 goes to noise."),
                io.Float.Input("mixing", default=0.93, min=0.51, max=1.0, step=0.01, round=0.001,
                               tooltip=(
                                   "How much a latent keeps of itself when the two are mixed; 1 "
                                   "turns mixing off, below 0.9 details are lost."
                               )),
                io.Float.Input("cfg", default=3.0, min=1.0, max=30.0, step=0.1, round=0.01,
                               tooltip=(
                                   "Guidance of the inversion; give the Edit-Sampler the same. 1 "
                                   "turns it off."
                               )),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="Needed when cfg is above 1; the paper's is empty."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Noise levels to use instead of steps and schedule."),
                io.Boolean.Input("double_precision", default=True, optional=True,
                                 tooltip=(
                                     "Keep the latents in 64 bits, as published; the model runs in "
                                     "its own precision. Off saves a little memory."
                                 )),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, schedule, strength, mixing, cfg,
                negative=None, sigmas=None, double_precision=True) -> io.NodeOutput:
        return pack(inversion_exact.invert_with_edict(
            model, positive, latent, steps=steps, schedule=schedule, strength=strength,
            weight=mixing, cfg=cfg, double=double_precision, negative=negative, sigmas=sigmas,
        ))


class InvertEditFriendly(io.ComfyNode):
    """Invert-EditFriendly."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceInvertEditFriendly",
            display_name="Invert-EditFriendly",
            description=(
                "Finds the noises with which stochastic sampling draws this very image, and lets "
                "the edit replay them (edit-friendly DDPM, Huberman-Spiegelglas et al. 2023; "
                "LEDITS++, Brack et al. 2023)."
            ),
            search_aliases=["edit friendly ddpm", "ledits++", "ddpm inversion"],
            inputs=[
                *common_inputs(),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip=(
                                 "Steps from image to noise. Let the Edit-Sampler skip about a "
                                 "quarter of them with its start_step."
                             )),
                schedule_input("the published grid of the chosen solver"),
                io.Combo.Input("solver", options=list(inversion_exact.KINDS), default="ddpm",
                               tooltip=(
                                   "'ddpm' is edit-friendly DDPM; 'sde-dpmpp-2' is LEDITS++, good "
                                   "with 20 to 50 steps."
                               )),
                io.Float.Input("cfg", default=1.0, min=1.0, max=30.0, step=0.1, round=0.01,
                               tooltip=(
                                   "Guidance of the inversion, which the source branch keeps; 1 "
                                   "turns it off. The papers use 1 to 3.5."
                               )),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1,
                             control_after_generate=True,
                             tooltip="Of the noisy versions; another seed gives another edit."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="Only used when cfg is above 1."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Noise levels to use instead of steps and schedule."),
                io.Float.Input("eta", default=1.0, min=0.05, max=1.0, step=0.05, round=0.01,
                               optional=True,
                               tooltip="How much of a step is noise; 1 is DDPM, as published."),
                io.Float.Input("skip", default=0.15, min=0.0, max=0.9, step=0.05, round=0.01,
                               optional=True,
                               tooltip=(
                                   "LEDITS++ only: part of the noise range left out at the noisy "
                                   "end; 0 starts from full noise."
                               )),
                io.Boolean.Input("keep_last_noise", default=True, optional=True,
                                 tooltip=(
                                     "Keep the noise of the last step, so that the image returns "
                                     "exactly. Off zeroes it, as edit-friendly DDPM's code does."
                                 )),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, schedule, solver, cfg, seed, negative=None,
                sigmas=None, eta=1.0, skip=0.15, keep_last_noise=True) -> io.NodeOutput:
        return pack(inversion_exact.invert_with_noises(
            model, positive, latent, steps=steps, schedule=schedule, kind=solver, cfg=cfg,
            seed=seed, negative=negative, sigmas=sigmas, eta=eta, skip=skip,
            keep_last_noise=keep_last_noise,
        ))


class VirtualInversion(io.ComfyNode):
    """Virtual-Inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return types.schema(
            node_id="RetraceVirtualInversion",
            display_name="Virtual-Inversion",
            description=(
                "Needs no inversion: the source is noised afresh at every step and the target "
                "follows the difference of the two predictions (DDCM of InfEdit, Xu et al. 2023). "
                "Made for few-step models such as LCM."
            ),
            search_aliases=["infedit", "ddcm", "inversion-free editing", "lcm edit"],
            inputs=[
                *common_inputs(),
                io.Int.Input("steps", default=12, min=1, max=1000,
                             tooltip="Steps of the edit; nothing is evaluated before it."),
                schedule_input("the published grid"),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1,
                             control_after_generate=True,
                             tooltip="Of the noise at every step; another seed, another edit."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Noise levels to use instead of steps and schedule."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, schedule, seed,
                sigmas=None) -> io.NodeOutput:
        return pack(inversion_exact.invert_without_model(
            model, positive, latent, steps=steps, schedule=schedule, seed=seed, sigmas=sigmas,
        ))
