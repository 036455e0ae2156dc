"""Edits replayed from an attention store equal live edits and cost target rows only."""

import pytest
import torch
from helpers_host import SMALL_UNET, TokenizerOnly, conditioning, make_unet_model

pytestmark = pytest.mark.host

STEPS = 6
SOURCE, TARGET = "a cat on a bench", "a dog on a wooden bench"


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SMALL_UNET)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(3)
    names = ("source", "target", "negative")
    return {name: conditioning(torch.randn(1, 77, 64, generator=generator)) for name in names}


@pytest.fixture(scope="module")
def trajectory(model, prompts):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    samples = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(1))
    made = invert(model, prompts["source"], {"samples": samples}, steps=STEPS)[0]
    return made.replace(source_rule=SourceRule(pinned=True))


@pytest.fixture(scope="module")
def store(model, trajectory, prompts):
    from retrace.host.capture import capture_attention

    return capture_attention(model, trajectory, dtype="fp32", negative=prompts["negative"])[0]


@pytest.fixture(scope="module")
def pair(comfy):
    from retrace.host.tokens import pair_prompts

    return pair_prompts(TokenizerOnly(), SOURCE, TARGET)


def p2p(pair, **changes):
    from retrace.attention.prompt_to_prompt import PromptToPrompt

    return PromptToPrompt(pair, **changes)


def edit(model, controller, trajectory, prompts, store=None, **changes):
    from retrace.host.editing import run_edit, with_controller

    return run_edit(
        with_controller(model, controller, store), trajectory, prompts["target"],
        prompts["negative"], **changes,
    )


def close(a: torch.Tensor, b: torch.Tensor, bound: float) -> None:
    assert float((a - b).norm()) <= bound * float(b.norm())


def test_a_replayed_edit_equals_the_live_one(model, pair, trajectory, prompts, store):
    live = edit(model, p2p(pair), trajectory, prompts)
    replayed = edit(model, p2p(pair), trajectory, prompts, store)
    close(replayed.edited, live.edited, 1e-4)
    plain = edit(model, p2p(pair, cross_replace=(0.0, 0.2), self_replace=(0.0, 0.0)), trajectory,
                 prompts)
    assert float((plain.edited - live.edited).norm()) > 0.01 * float(live.edited.norm())


def controllers(pair) -> dict:
    from retrace.attention.key_masks import make_auto_mask
    from retrace.attention.local_blend import make_blend
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.plug_and_play import PlugAndPlay

    blend = make_blend(("cat",), ("dog",), (), 0.3, 0.0)
    auto = make_auto_mask(pair, ("cat",), ("dog",), 0.1)
    return {
        "refine and reweight": [p2p(pair, mode="refine", reweight=(("dog", 2.0),))],
        "local blend": [p2p(pair, blend=blend, cross_replace=(0.0, 0.8))],
        "mutual attention": [MasaCtrl(start_step=1, start_layer=3)],
        "automatic masks": [MasaCtrl(start_step=1, start_layer=3, auto=auto)],
        "features and maps": [PlugAndPlay(0.8, 0.5)],
        "unified": [p2p(pair, self_replace=(0.0, 0.0)), MasaCtrl(start_step=1, start_layer=3)],
        "guided swap": [p2p(pair), AttentionGuidance(amount=0.5, until=0.5)],
    }


@pytest.mark.parametrize(
    "name", ["refine and reweight", "local blend", "mutual attention", "automatic masks",
             "features and maps", "unified", "guided swap"],
)
def test_every_controller_replays(name, model, pair, trajectory, prompts, store):
    from retrace.host.editing import run_edit, with_controller

    live = replaying = model
    for controller in controllers(pair)[name]:
        live = with_controller(live, controller)
        replaying = with_controller(replaying, controller, store)
    inputs = trajectory, prompts["target"], prompts["negative"]
    expected, replayed = run_edit(live, *inputs), run_edit(replaying, *inputs)
    close(replayed.edited, expected.edited, 1e-3)
    guided = len(replayed.report.get("gradient_norm", "").split())
    assert replayed.report["row_forwards"] == (STEPS * 2 + guided) * 2
    assert torch.equal(replayed.mask, expected.mask)


@pytest.mark.parametrize("asked", [{}, {"normalise": False, "layers": "output", "until": 0.5}])
def test_replayed_map_guidance_equals_the_live_one(asked, model, trajectory, prompts, store):
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.host.editing import run_edit

    guidance = AttentionGuidance(amount=0.5, **asked)
    live, replayed = (edit(model, guidance, trajectory, prompts, kept) for kept in (None, store))
    plain = run_edit(model, trajectory, prompts["target"], prompts["negative"])
    change = float((live.edited - plain.edited).norm())
    assert change > 0.01 * float(plain.edited.norm())
    assert float((replayed.edited - live.edited).norm()) <= 1e-2 * change
    close(replayed.edited, live.edited, 1e-4)
    norms = [[float(x) for x in run.report["gradient_norm"].split()] for run in (live, replayed)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    guided = len(norms[0])
    assert replayed.report["row_forwards"] == 2 * (STEPS * 2 + guided)  # 2 images
    assert live.report["row_forwards"] == 2 * (STEPS * 2 + 2 * guided)


def test_published_map_guidance_refuses_a_store(model, trajectory, prompts, store):
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.diffusion.errors import PlanError

    with pytest.raises(PlanError, match="turn 'published' off"):
        edit(model, AttentionGuidance(published=True), trajectory, prompts, store)


def test_a_store_without_the_guided_layers_is_refused(model, trajectory, prompts):
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.diffusion.errors import PlanError
    from retrace.host.capture import capture_attention

    part, _ = capture_attention(model, trajectory, kind="cross", window=(0.0, 0.5))
    edit(model, AttentionGuidance(until=0.5), trajectory, prompts, part)
    with pytest.raises(PlanError, match=r"of cross .* at step 4"):
        edit(model, AttentionGuidance(), trajectory, prompts, part)


def test_a_replayed_edit_costs_target_rows_only(model, pair, trajectory, prompts, store):
    images = 2
    live = edit(model, p2p(pair), trajectory, prompts)
    replayed = edit(model, p2p(pair), trajectory, prompts, store)
    assert replayed.report["row_forwards"] == STEPS * 2 * images
    assert live.report["row_forwards"] > replayed.report["row_forwards"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_store_of_half_precision_stays_near(model, pair, trajectory, prompts, dtype):
    from retrace.host.capture import capture_attention

    store, _ = capture_attention(model, trajectory, dtype=dtype)
    live = edit(model, p2p(pair), trajectory, prompts)
    replayed = edit(model, p2p(pair), trajectory, prompts, store)
    close(replayed.edited, live.edited, 2e-2)


def test_a_store_on_disk_gives_the_same_bits(model, pair, trajectory, prompts, store, tmp_path):
    from retrace.host.capture import capture_attention

    on_disk, _ = capture_attention(
        model, trajectory, dtype="fp32", place="disk", folder=str(tmp_path),
        negative=prompts["negative"],
    )
    first = edit(model, p2p(pair), trajectory, prompts, store)
    second = edit(model, p2p(pair), trajectory, prompts, on_disk)
    assert torch.equal(first.edited, second.edited)


def test_source_and_target_prompts_may_differ_in_length(model, trajectory, prompts, store):
    """A target of two chunks: the live batch pads the source by repetition, the replay too."""
    from retrace.host.tokens import pair_prompts

    pair = pair_prompts(TokenizerOnly(), SOURCE, TARGET + " with many words" * 30)
    generator = torch.Generator().manual_seed(9)
    longer = {**prompts, "target": conditioning(torch.randn(1, 154, 64, generator=generator))}
    controller = p2p(pair, mode="refine")
    live = edit(model, controller, trajectory, longer)
    close(edit(model, controller, trajectory, longer, store).edited, live.edited, 1e-4)


def test_start_step_replays_the_later_steps(model, pair, trajectory, prompts, store):
    controller = p2p(pair, cross_replace=(0.0, 1.0))
    live = edit(model, controller, trajectory, prompts, start_step=2)
    replayed = edit(model, controller, trajectory, prompts, store, start_step=2)
    close(replayed.edited, live.edited, 1e-4)


def test_the_store_survives_further_clones_of_the_model(model, pair, store):
    from retrace.host.editing import get_plan, with_controller

    carrying = with_controller(model, p2p(pair), store)
    assert get_plan(carrying.clone().clone()).store is store


def test_a_store_of_another_trajectory_is_refused(model, pair, trajectory, prompts, store):
    from retrace.diffusion.errors import TrajectoryError

    other = trajectory.replace(latents=trajectory.latents * 1.0001)
    with pytest.raises(TrajectoryError, match="another trajectory"):
        edit(model, p2p(pair), other, prompts, store)


def test_a_source_that_is_not_pinned_is_refused(model, pair, trajectory, prompts, store):
    from retrace.diffusion.errors import TrajectoryError
    from retrace.diffusion.trajectory import SourceRule

    free = trajectory.replace(source_rule=SourceRule())
    with pytest.raises(TrajectoryError, match="Invert-DirectInversion"):
        edit(model, p2p(pair), free, prompts, store)


def test_another_negative_prompt_is_refused(model, pair, trajectory, prompts, store):
    from retrace.diffusion.errors import PlanError

    changed = {**prompts, "negative": conditioning(prompts["negative"][0][0] * 2)}
    with pytest.raises(PlanError, match="another negative prompt"):
        edit(model, p2p(pair), trajectory, changed, store)


def test_layers_that_were_not_captured_are_named(model, pair, trajectory, prompts):
    from retrace.diffusion.errors import PlanError
    from retrace.host.capture import capture_attention

    part, _ = capture_attention(model, trajectory, kind="cross")
    with pytest.raises(PlanError, match=r"hidden of self .* at step 1"):
        edit(model, p2p(pair), trajectory, prompts, part)


def test_two_different_stores_on_one_model_are_refused(model, pair, trajectory, store):
    from retrace.diffusion.errors import PlanError
    from retrace.host.capture import capture_attention
    from retrace.host.editing import with_controller

    other, _ = capture_attention(model, trajectory, kind="cross")
    carrying = with_controller(model, p2p(pair), store)
    with pytest.raises(PlanError, match="different attention stores"):
        with_controller(carrying, p2p(pair), other)
