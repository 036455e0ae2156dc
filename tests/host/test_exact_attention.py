"""Value-side attention edits against the papers' formulas on maps, in whole small networks."""

import pytest
import torch
from helpers_host import SD_LIKE, SDXL_LIKE, make_unet_model, words_prompt
from helpers_textbook import TC, make_inputs, ours, prepare, relative, textbook
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.host

SOURCE, TARGET = "a cat sitting on a bench", "a wet dog sitting on a red bench"
SWAPPED = "a dog sitting on a chair"


@pytest.fixture(scope="module", params=["SD", "SDXL"])
def model(request, comfy):
    if request.param == "SD":
        return make_unet_model(SD_LIKE, "SD15", seed=1)
    return make_unet_model(SDXL_LIKE, "SDXL", seed=2)


def controllers(name):
    """Return the controllers of one case, and the formula's settings for the textbook."""
    from retrace.attention.key_masks import AutoMask
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.plug_and_play import PlugAndPlay
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    source, target = words_prompt(SOURCE), words_prompt(TARGET)
    swapped = PromptPair(source, words_prompt(SWAPPED))
    refined = PromptPair(source, target)
    fore = torch.zeros(1, 16, 16)
    fore[:, 2:9, 3:12] = 1
    moved = torch.zeros(2, 16, 16)
    moved[0, 5:14, 1:9], moved[1, :4] = 1, 1
    return {
        "replace": [PromptToPrompt(swapped)],
        "replace with a word's own window": [
            PromptToPrompt(swapped, word_windows=(("dog", (0.2, 0.8)),), self_replace=(0.0, 0.2))
        ],
        "refine": [PromptToPrompt(refined)],
        "refine and reweight": [
            PromptToPrompt(refined, reweight=(("wet", 3.0), ("bench", -1.0)), self_replace=(0, 0))
        ],
        "masactrl": [MasaCtrl(start_step=0.2, start_layer=2)],
        "masactrl with masks": [
            MasaCtrl(start_step=0.2, start_layer=2, mask_source=fore, mask_target=moved)
        ],
        "masactrl with automatic masks": [
            MasaCtrl(0.2, 2, auto=AutoMask(source, swapped.target, ("cat",), ("dog",), 0.5))
        ],
        "plug and play": [PlugAndPlay(0.8, 0.5)],
        "replace and masactrl": [
            PromptToPrompt(swapped, self_replace=(0.0, 0.2)), MasaCtrl(0.2, 2)
        ],
        "masactrl and refine": [MasaCtrl(0.2, 2), PromptToPrompt(refined, self_replace=(0, 0))],
        "plug and play, then masactrl": [PlugAndPlay(0.8, 0.2), MasaCtrl(0.2, 2)],
        "plug and play and reweight": [
            PlugAndPlay(), PromptToPrompt(refined, self_replace=(0, 0), reweight=(("red", 2.0),))
        ],
    }[name]


CASES = [
    "replace",
    "replace with a word's own window",
    "refine",
    "refine and reweight",
    "masactrl",
    "masactrl with masks",
    "masactrl with automatic masks",
    "plug and play",
    "replace and masactrl",
    "masactrl and refine",
    "plug and play, then masactrl",
    "plug and play and reweight",
]


def long_inputs(model, images):
    """Return inputs whose source context is one chunk, repeated by the host, the target's two."""
    x, context, extra = make_inputs(model, images)
    context = context.unflatten(0, (4, images)).repeat(1, 1, 2, 1)
    second = torch.randn(images, 77, context.shape[-1], generator=torch.Generator().manual_seed(9))
    context[TC, :, 77:] = second
    return x, context.flatten(0, 1), extra


@pytest.mark.parametrize("name", CASES)
def test_value_side_edit_equals_the_papers_formula_on_maps(name, model):
    cases = controllers(name)
    facts, run = prepare(model, cases, images=2)
    inputs = make_inputs(model, images=2)
    plain = textbook(model, [], facts, 0, *inputs)
    changed = []
    for step in (1, 3, 7):
        expected = textbook(model, cases, facts, step, *inputs)
        out = ours(model, run, step, *inputs)
        assert relative(out, expected) <= 1e-5
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        changed.append(relative(out, plain) > 1e-4)
    assert any(changed)  # the case does something


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_prompts_of_different_chunk_counts_are_edited_by_the_formula(mode, model):
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    words = [f"word{n}" for n in range(60)]
    changed = ["other" if n in (3, 40) else word for n, word in enumerate(words)]
    pair = PromptPair(words_prompt(" ".join(words)), words_prompt(" ".join(changed), repeats=2))
    cases = [PromptToPrompt(pair, mode=mode, reweight=(("word5", 2.0),))]
    facts, run = prepare(model, cases, images=1)
    inputs = long_inputs(model, images=1)
    expected = textbook(model, cases, facts, 1, *inputs)
    assert relative(ours(model, run, 1, *inputs), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["refine and reweight", "masactrl with masks", "plug and play"])
def test_low_precision_error_is_within_twice_the_materialised_ones(name, dtype, comfy):
    """Three errors against the fp32 formula; the materialised one runs in the same precision."""
    full, low = (make_unet_model(SD_LIKE, "SD15", seed=1) for _ in range(2))
    low.model.diffusion_model.to(dtype).dtype = dtype
    low.model.manual_cast_dtype = None
    cases = controllers(name)
    facts, run = prepare(full, cases, images=2)
    inputs = make_inputs(full, images=2)
    exact = textbook(full, cases, facts, 3, *inputs)
    materialised = relative(textbook(low, cases, facts, 3, *inputs), exact)
    assert 1e-5 < materialised < 0.2  # the network did run in low precision
    assert relative(ours(low, run, 3, *inputs), exact) <= 2 * materialised


class Largest(TorchDispatchMode):
    """Keeps the shape of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("name", [*CASES, "blend"])
def test_no_tensor_of_queries_by_keys_is_made(name, comfy, model):
    from comfy.ldm.modules.attention import attention_pytorch
    from retrace.host.compat import ATTENTION_TAKES_OPTIONS

    if not ATTENTION_TAKES_OPTIONS:
        pytest.skip("a host before 0.3.60 lets nobody choose its attention function")
    cases = blending() if name == "blend" else controllers(name)
    size = (24, 40)
    facts, run = prepare(model, cases, images=2, size=size)
    inputs = make_inputs(model, images=2, size=size)

    def fused(func, *args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    queries = {facts.tokens(site) for site in facts.sites}
    for step in (1, 3):
        with Largest() as seen:
            ours(model, run, step, *inputs, override=fused)
        assert not maps_among(seen.shapes, queries)
    with Largest() as seen:
        textbook(model, cases, facts, 1, *inputs)
    assert maps_among(seen.shapes, queries)  # the watch does see maps where there are some


def maps_among(shapes, queries):
    """Return shapes of queries x keys: of all image tokens, or of the prompt's."""
    return {
        shape for shape in shapes
        if len(shape) >= 2 and shape[-2] in queries and (shape[-1] in queries or shape[-1] == 77)
    }


def blending():
    """Return a controller that reads columns of cross-attention maps."""
    from retrace.attention.local_blend import LocalBlend
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    source, target = words_prompt(SOURCE), words_prompt(SWAPPED)
    blend = LocalBlend(("cat",), ("dog",), ("bench",))
    return [PromptToPrompt(PromptPair(source, target), blend=blend)]
