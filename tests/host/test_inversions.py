"""Every inversion on every kind of model: exact pinned sources, round trips, sizes and batches."""

import pytest
import torch
from helpers_host import conditioning, rms

pytestmark = pytest.mark.host

STEPS = 5


@pytest.fixture(scope="module")
def models(tiny3):
    """The tiny UNet read as an eps-model, a v-model, and both with zero terminal SNR."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def patched(sampling, zsnr):
        return ModelSamplingDiscrete().patch(tiny3, sampling, zsnr)[0]

    return {
        "eps": tiny3,
        "v": patched("v_prediction", False),
        "v, zero SNR": patched("v_prediction", True),
        "eps, zero SNR": patched("eps", True),
    }


@pytest.fixture(scope="module")
def prompts(golden):
    embeddings = golden("prompt_embeddings")[0]["embeddings"]
    return [conditioning(embeddings[i : i + 1]) for i in range(3)]


def picture(batch=1, height=16, width=24):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 4, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return {"samples": smooth * 4}


def inverters():
    from retrace.host.inversion import invert
    from retrace.host.inversion_dpm import invert_with_dpm_solver
    from retrace.host.inversion_exact import (
        invert_with_edict,
        invert_with_noises,
        invert_without_model,
    )

    return {
        "ddim": lambda *a: invert(*a, steps=STEPS),
        "ddim, refined": lambda *a: invert(*a, steps=STEPS, refine=20),
        "ddim, regularised": lambda *a: invert(*a, steps=STEPS, regularise="fixed"),
        "midpoint": lambda *a: invert(*a, steps=STEPS, evaluate_at="midpoint"),
        "dpm-solver 1": lambda *a: invert_with_dpm_solver(*a, steps=STEPS, order=1, iterations=30,
                                                         tolerance=1e-6),
        "dpm-solver 2": lambda *a: invert_with_dpm_solver(*a, steps=STEPS, iterations=4),
        "edict": lambda *a: invert_with_edict(*a, steps=STEPS, cfg=1.0),
        "edit-friendly": lambda *a: invert_with_noises(*a, steps=STEPS),
        "ledits++": lambda *a: invert_with_noises(*a, steps=STEPS, kind="sde-dpmpp-2"),
        "virtual": lambda *a: invert_without_model(*a, steps=STEPS),
    }


NAMES = ("ddim", "ddim, refined", "ddim, regularised", "midpoint", "dpm-solver 1", "dpm-solver 2",
         "edict", "edit-friendly", "ledits++", "virtual")
EXACT = {"edict": 1e-4, "edit-friendly": 1e-4, "ledits++": 1e-4, "virtual": 1e-5}
KINDS = ("eps", "v", "v, zero SNR", "eps, zero SNR")


@pytest.mark.parametrize("name", NAMES)
def test_direct_inversion_on_top_is_exact_at_the_source(name, models, prompts):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.editing import run_edit

    latent = picture(batch=2)
    trajectory, noise, sigmas = inverters()[name](models["eps"], prompts[0], latent)
    pinned = trajectory.replace(source_rule=SourceRule(pinned=True))
    result = run_edit(models["eps"], pinned, prompts[1], prompts[2], cfg=3.0)
    assert torch.equal(result.source, latent["samples"])
    assert not torch.equal(result.edited, latent["samples"])
    assert noise.shape == latent["samples"].shape and torch.equal(sigmas.flip(0),
                                                                  trajectory.sigmas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_inversions_return_the_image_on_every_kind_of_model(name, kind, models, prompts):
    from retrace.host.editing import run_edit

    trajectory, _, _ = inverters()[name](models[kind], prompts[0], picture())
    assert trajectory.model.prediction == kind.partition(",")[0]
    result = run_edit(models[kind], trajectory, prompts[1], prompts[2], cfg=3.0)
    scale = float(trajectory.clean.pow(2).mean().sqrt())
    assert rms(result.source, trajectory.clean) <= EXACT[name] * scale


@pytest.mark.parametrize("kind", KINDS)
def test_refinement_brings_every_kind_of_model_closer(kind, models, prompts):
    from retrace.host.viewing import round_trip

    plain = inverters()["ddim"](models[kind], prompts[0], picture())[0]
    refined = inverters()["ddim, refined"](models[kind], prompts[0], picture())[0]
    assert round_trip(models[kind], refined)[-1] < 0.5 * round_trip(models[kind], plain)[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_bring_every_kind_of_model_closer(kind, models, prompts):
    from retrace.host.inversion_dpm import invert_with_dpm_solver
    from retrace.host.viewing import round_trip

    published, swept = (
        invert_with_dpm_solver(models[kind], prompts[0], picture(), steps=STEPS, iterations=10,
                               tolerance=1e-5, sweeps=sweeps)[0]
        for sweeps in (0, 3)
    )
    # five steps are too coarse for more than that; see the closed form in test_dpm_solver
    assert round_trip(models[kind], swept)[-1] < round_trip(models[kind], published)[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_null_text_and_negative_prompt_bring_back_the_source_on_every_kind_of_model(
    kind, models, prompts
):
    from retrace.host.editing import run_edit
    from retrace.host.negative_prompt import invert_negative_prompt
    from retrace.host.null_text import optimise

    trajectory = inverters()["ddim, refined"](models[kind], prompts[0], picture(2))[0]
    optimised, _ = optimise(models[kind], trajectory, prompts[2], cfg=4.0, inner_steps=3)
    negative = invert_negative_prompt(trajectory, prompts[2])

    def error(walked):
        result = run_edit(models[kind], walked, prompts[1], prompts[2], cfg=4.0)
        return rms(result.source, trajectory.clean)

    assert error(negative) < 0.5 * error(trajectory)
    assert error(optimised) < error(trajectory)


def test_a_trajectory_of_an_eps_model_is_refused_by_a_v_model(models, prompts):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.host.editing import run_edit

    trajectory = inverters()["virtual"](models["eps"], prompts[0], picture())[0]
    with pytest.raises(TrajectoryError, match="v-prediction"):
        run_edit(models["v"], trajectory, prompts[1], None, cfg=1.0)


@pytest.mark.parametrize("name", ["dpm-solver 2", "edict"])
def test_images_of_a_batch_are_inverted_as_if_alone(name, models, prompts):
    latent = picture(batch=2)
    both = inverters()[name](models["eps"], prompts[0], latent)[0]
    alone = inverters()[name](models["eps"], prompts[0], {"samples": latent["samples"][:1]})[0]
    assert rms(both.latents[:, :1], alone.latents) < 1e-3


def test_the_source_keeps_the_inversions_guidance_where_the_edit_has_another(models, prompts):
    from retrace.host.editing import run_edit
    from retrace.host.inversion_exact import invert_with_edict

    trajectory, _, _ = invert_with_edict(models["eps"], prompts[0], picture(), steps=STEPS,
                                         cfg=3.0, negative=prompts[2])
    for cfg in (1.0, 6.0):
        result = run_edit(models["eps"], trajectory, prompts[1], None if cfg == 1 else prompts[2],
                          cfg=cfg)
        assert rms(result.source, trajectory.clean) <= 1e-3


def test_the_report_says_how_the_solves_went(models, prompts):
    report = dict(inverters()["dpm-solver 1"](models["eps"], prompts[0], picture())[0].report)
    solves = [solve.split(": ") for solve in report["solve_per_step"].split(", ")]
    assert len(solves) == STEPS and report["iterations"] == sum(int(calls) for calls, _ in solves)
    assert f"{report['residual']:.1e}" == max((left for _, left in solves), key=float)


def test_a_virtual_inversion_asks_the_model_nothing(models, prompts):
    report = dict(inverters()["virtual"](models["eps"], prompts[0], picture())[0].report)
    assert report["row_forwards"] == 0


def test_sparse_guidance_acts_through_the_sampler_each_mask_in_its_own_way(models, prompts):
    from helpers_host import TokenizerOnly
    from retrace.attention.sparse_guidance import SparseGuidance
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.tokens import pair_prompts

    pair = pair_prompts(TokenizerOnly(), "a cat", "a dog")
    trajectory = inverters()["ledits++"](models["eps"], prompts[0], picture())[0]

    def edited(model):
        return run_edit(model, trajectory, prompts[1], prompts[2], cfg=7.5, start_step=2,
                        reconstruct=False).edited

    found = [edited(models["eps"])] + [
        edited(with_controller(models["eps"], SparseGuidance(pair.target, masks, 0.75)))
        for masks in ("noise", "attention", "intersect")
    ]
    assert all(rms(found[i], found[j]) > 1e-4 for i in range(4) for j in range(i))


def test_every_solver_survives_a_file(models, prompts):
    from retrace.diffusion.trajectory_file import from_bytes, to_bytes
    from retrace.host.editing import run_edit

    for name in ("edict", "edit-friendly", "virtual", "dpm-solver 2"):
        trajectory = inverters()[name](models["eps"], prompts[0], picture())[0]
        loaded = from_bytes(to_bytes(trajectory))
        first = run_edit(models["eps"], trajectory, prompts[1], prompts[2], cfg=2.0)
        second = run_edit(models["eps"], loaded, prompts[1], prompts[2], cfg=2.0)
        assert torch.equal(first.edited, second.edited)


@pytest.mark.parametrize(
    ("call", "options"),
    [("invert_with_edict", {"weight": 0.4}), ("invert_with_edict", {"strength": 0.0}),
     ("invert_with_noises", {"kind": "other"}), ("invert_with_noises", {"eta": 0.0}),
     ("invert_without_model", {"steps": 0})],
)
def test_bad_options_are_refused_before_any_work(call, options, models, prompts):
    from retrace.diffusion.errors import ScheduleError
    from retrace.host import inversion_exact

    with pytest.raises(ScheduleError):
        getattr(inversion_exact, call)(models["eps"], prompts[0], picture(), **options)
