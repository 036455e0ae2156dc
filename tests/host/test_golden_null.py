"""Numbers of the papers' own code: null-text, negative-prompt and proximal inversion."""

import json

import pytest
import torch
from helpers_host import TokenizerOnly, conditioning, rms
from retrace.attention.plan import Control
from retrace.attention.proximal import ProximalGuidance

pytestmark = pytest.mark.host

SCALE = 0.18215


@pytest.fixture(scope="module")
def clip(comfy):
    return TokenizerOnly()


@pytest.fixture(scope="module")
def embeddings(golden_dir, golden):
    texts = json.loads((golden_dir / "prompt_embeddings.json").read_text())
    tensors, _ = golden("prompt_embeddings")
    return {text: conditioning(tensors["embeddings"][i : i + 1]) for i, text in enumerate(texts)}


def invert_photo(tiny3, golden, embedding, steps):
    from retrace.host.inversion import invert

    latent = {"samples": golden("inputs")[0]["z0_tiny3"] / SCALE}
    return invert(tiny3, embedding, latent, steps=steps)[0]


@pytest.fixture(scope="module")
def inverted(tiny3, golden, embeddings):
    return invert_photo(tiny3, golden, embeddings["a cat sitting on a bench"], 10)


@pytest.fixture(scope="module")
def optimised(tiny3, inverted, embeddings):
    """Null-text optimisation of the golden inversion as the published code runs it: states too."""
    from retrace.host.null_text import apply_variant, walk

    settings = {"inner_steps": 10, "learning_rate": 1e-2, "early_stop": 1e-5}
    sampler, clean = walk(tiny3, inverted, embeddings[""], 7.5, "never", settings)
    return apply_variant(inverted, sampler.states, "null-text", clean), sampler


def edit_like(name, trajectory, tiny3, golden, clip, embeddings):
    """Edit with a golden file's arguments; return our result and the file's tensors."""
    from retrace.attention.prompt_to_prompt import PromptToPrompt
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.tokens import pair_prompts

    tensors, facts = golden(f"p2p/tiny3_10/{name}")
    kwargs = facts["kwargs"]
    model = with_controller(tiny3, PromptToPrompt(
        pair_prompts(clip, kwargs["prompt_src"], kwargs["prompt_tar"], published=True),
        mode="replace" if kwargs.get("is_replace_controller") else "refine",
        cross_replace=(0.0, kwargs["cross_replace_steps"]),
        self_replace=(0.0, kwargs["self_replace_steps"]),
        self_tokens=32 * 32,
    ))
    result = run_edit(model, trajectory, embeddings[kwargs["prompt_tar"]], embeddings[""],
                      cfg=kwargs["guidance_scale"])
    return result, tensors


@pytest.mark.parametrize("case", ["swap_replace", "refine"])
def test_negative_prompt_edit_equals_the_published_one(case, inverted, tiny3, golden, clip,
                                                       embeddings):
    from retrace.host.negative_prompt import invert_negative_prompt

    trajectory = invert_negative_prompt(inverted, embeddings[""])
    result, tensors = edit_like(
        f"negative-prompt-inversion+p2p__{case}", trajectory, tiny3, golden, clip, embeddings
    )
    assert rms(result.source * SCALE, tensors["edit_final"][:1]) <= 5e-4
    assert rms(result.edited * SCALE, tensors["edit_final"][1:]) <= 5e-4
    assert result.report["row_forwards"] == 3 * 10  # the source's unconditional row is redundant


class TeacherForced(Control):
    """Compares the target after every step with the published one, then continues from that."""

    name = "teacher"
    on_attention = False

    def __init__(self, steps: torch.Tensor) -> None:
        self.steps, self.worst = steps, 0.0

    def __deepcopy__(self, memo):
        return self

    def prepare(self, facts):
        return self

    def after_step(self, step, sigma, source, target):
        scale = (1 + sigma**2).sqrt()
        self.worst = max(self.worst, float((target / scale - self.steps[step]).abs().max()))
        return self.steps[step] * scale


@pytest.mark.parametrize(("case", "mode"), [
    ("swap_refine", "published-l0"), ("swap_refine", "soft"), ("swap_refine@l1", "published-l1"),
])
def test_each_proximal_step_equals_the_published_one(case, mode, inverted, tiny3, golden, clip,
                                                     embeddings):
    # step by step, for the published l1 jumps at its thresholds and amplifies rounding
    from retrace.host.editing import with_controller
    from retrace.host.negative_prompt import invert_negative_prompt

    trajectory = invert_negative_prompt(inverted, embeddings[""])
    name = f"negative-prompt-inversion+proximal-guidance__{case}"
    teacher = TeacherForced(golden(f"p2p/tiny3_10/{name}")[0]["edit_steps"][:, 1:])
    model = with_controller(tiny3, ProximalGuidance(mode=mode, quantile=0.75))
    edit_like(name, trajectory, with_controller(model, teacher), golden, clip, embeddings)
    assert 0 < teacher.worst <= 5e-5


def test_proximal_edit_equals_the_published_one(inverted, tiny3, golden, clip, embeddings):
    from retrace.host.editing import with_controller
    from retrace.host.negative_prompt import invert_negative_prompt

    trajectory = invert_negative_prompt(inverted, embeddings[""])
    model = with_controller(tiny3, ProximalGuidance(mode="soft", quantile=0.75))
    result, tensors = edit_like(
        "negative-prompt-inversion+proximal-guidance__swap_refine", trajectory, model, golden, clip,
        embeddings,
    )
    assert rms(result.edited * SCALE, tensors["edit_final"][1:]) <= 5e-4


def test_slerp_equals_the_published_one(golden):
    from retrace.diffusion.embeddings import slerp

    tensors, _ = golden("aligner/aligner")
    found = slerp(tensors["slerp.a"], tensors["slerp.b"], 0.3)
    assert torch.allclose(found, tensors["slerp.0.3"], atol=1e-5)


def test_null_text_losses_equal_the_published_ones(optimised, golden):
    tensors, facts = golden("p2p/tiny3_10/null-text-inversion+p2p__swap_replace")
    trajectory, sampler = optimised
    losses = torch.cat([state.losses for state in sampler.states])[:, 0]
    assert len(losses) == facts["n_null_inner"] == sampler.backwards
    assert (losses - tensors["null_losses"]).abs().max() <= 1e-4
    assert rms(trajectory.null_embeddings, tensors["uncond_embeddings"]) <= 5e-3


def test_null_text_costs_one_row_less_a_step_than_published(optimised, golden):
    _, facts = golden("p2p/tiny3_10/null-text-inversion+p2p__swap_replace")
    rows = optimised[1].guider.row_forwards
    assert rows == facts["n_null_inner"] + 2 * 10


def test_early_stop_equals_the_published_one(tiny3, golden):
    from retrace.host.null_text import walk

    tensors, facts = golden("p2p/null_text_extra/earlystop")
    context = tensors["context"]
    trajectory = invert_photo(tiny3, golden, conditioning(context[1:]), facts["steps"])
    settings = {"inner_steps": facts["num_inner_steps"], "learning_rate": 1e-2,
                "early_stop": facts["early_stop_epsilon"]}
    sampler, _ = walk(tiny3, trajectory, conditioning(context[:1]), facts["guidance_scale"],
                      "never", settings)
    counts = [len(state.losses) for state in sampler.states]
    losses = torch.cat([state.losses for state in sampler.states])[:, 0]
    assert counts == tensors["inner_count"].tolist()
    assert (losses - tensors["losses"]).abs().max() <= 1e-4


@pytest.mark.parametrize("case", ["swap_replace", "refine"])
def test_null_text_edit_equals_the_published_one(case, optimised, tiny3, golden, clip, embeddings):
    result, tensors = edit_like(
        f"null-text-inversion+p2p__{case}", optimised[0], tiny3, golden, clip, embeddings
    )
    assert rms(result.source * SCALE, tensors["edit_final"][:1]) <= 5e-3
    assert rms(result.edited * SCALE, tensors["edit_final"][1:]) <= 5e-3
