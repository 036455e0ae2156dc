"""Value-side attention edits against the papers' formulas on maps, in whole small networks."""

import pytest
import torch
from helpers_host import SD_LIKE, SDXL_LIKE, make_unet_model, words_prompt
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.host

SOURCE, TARGET = "a cat sitting on a bench", "a wet dog sitting on a red bench"
SWAPPED = "a dog sitting on a chair"
STEPS = 10
TU, SU, SC, TC = range(4)  # order of roles in the batch: target/source x uncond/cond


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


def softmax_maps(q, k, heads):
    """Return attention maps "rows heads queries keys"."""
    q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)


def times_values(maps, v):
    """Return maps times values, "rows queries channels"."""
    v = v.unflatten(2, (maps.shape[1], -1)).transpose(1, 2)
    return (maps @ v).transpose(1, 2).flatten(2)


class Textbook:
    """The papers' algorithms on materialised maps, through the host's replacement slots."""

    def __init__(self, cases, facts, step):
        self.cases, self.facts, self.step = cases, facts, step
        self.seen = []  # maps for automatic masks, of the layers that have run

    def images(self, x):
        return x.unflatten(0, (4, self.facts.images))

    def options(self):
        slots = {"attn1": {}, "attn2": {}}
        for site in self.facts.sites:
            kind = "attn1" if site.kind == "self" else "attn2"
            method = self.self_attention if site.kind == "self" else self.cross_attention
            slots[kind][site.address] = self.bound(method, site)
        return {"patches_replace": slots}

    @staticmethod
    def bound(method, site):
        return lambda q, k, v, extra: method(site, q, k, v, extra["n_heads"])

    def cross_attention(self, site, q, k, v, heads):
        """Prompt-to-Prompt: edit the map of the target's cond rows, then multiply."""
        maps = self.images(softmax_maps(q, k, heads)).clone()
        if site.downsample == 2 and site.stage != "middle":  # the grid nearest to a quarter
            self.seen.append(maps[[SC, TC]].mean(2))
        for case in self.cases:
            if type(case).__name__ == "PromptToPrompt":
                maps[TC] = self.edited_map(case, maps[SC], maps[TC])
        return times_values(maps.flatten(0, 1), v)

    def edited_map(self, case, source, target):
        """M' = alpha eq M_hat + (1 - alpha) M_t, token by token."""
        from retrace.attention.alignment import make_token_map

        pair = case.prompts
        token_map = make_token_map(pair.source, pair.target, case.mode)
        # a context that was padded by repetition is the prompt's: its columns add up
        source = source.unflatten(-1, (-1, len(pair.source.tokens))).sum(-2)
        edited, tokens = target.clone(), target.shape[-1]
        windows = dict.fromkeys(range(tokens), case.cross_replace)
        for word, window in case.word_windows:
            windows |= dict.fromkeys(pair.target.span(word), window)
        factors = dict.fromkeys(range(tokens), 1.0)
        for word, factor in case.reweight:
            factors |= dict.fromkeys(pair.target.span(word), factor)
        for n in range(tokens):
            start, end = (int(f * (STEPS + 1)) for f in windows[n])
            if not start <= self.step < end:
                continue
            if token_map.mapped[n]:
                mixed = sum(
                    float(token_map.weights[w, n]) * source[..., w]
                    for w in token_map.weights[:, n].nonzero()[:, 0].tolist()
                )
            else:
                mixed = target[..., n]
            edited[..., n] = factors[n] * mixed
        return edited

    def self_attention(self, site, q, k, v, heads):
        for case in self.cases:
            kind = type(case).__name__
            if kind == "MasaCtrl" and self.step >= 0.2 * STEPS and site.order >= 2:
                return self.mutual(case, site, q, k, v, heads)
        maps = self.images(softmax_maps(q, k, heads)).clone()
        for case in self.cases:
            kind = type(case).__name__
            if kind == "PromptToPrompt" and self.step < int(case.self_replace[1] * STEPS):
                if self.facts.tokens(site) <= self.facts.latent_tokens // 4:
                    maps[TC] = maps[SC]
            if kind == "PlugAndPlay" and self.step < int(case.attention_fraction * STEPS):
                decoder = [s.index for s in self.facts.sites if s.stage == "output"]
                if site.stage == "output" and site.index > min(decoder):
                    maps[TC] = maps[SC]
                    maps[TU] = maps[SC]
        return times_values(maps.flatten(0, 1), v)

    def mutual(self, case, site, q, k, v, heads):
        """MasaCtrl: logits of target queries and source keys; masked ones are minus infinity."""
        out = self.images(times_values(softmax_maps(q, k, heads), v)).clone()
        q, k, v = self.images(q), self.images(k), self.images(v)
        for target, source in ((TU, SU), (TC, SC)):
            for image in range(self.facts.images):
                qt, ks, vs = q[target][image], k[source][image], v[source][image]
                if case.mask_source is None and case.auto is None:
                    one = times_values(softmax_maps(qt[None], ks[None], heads), vs[None])[0]
                else:
                    one = self.masked(case, site, image, qt, ks, vs, heads)
                out[target][image] = one
        return out.flatten(0, 1)

    def masked(self, case, site, image, q, k, v, heads):
        grid, parts = self.facts.grid(site), []
        masks = (case.mask_source, case.mask_target) if case.auto is None else self.read(case.auto)
        masks = [
            torch.nn.functional.interpolate(m[None, image % len(m)][None], size=grid).flatten()
            for m in masks
        ]
        for allowed in (masks[0] == 1, masks[0] == 0):
            qh, kh = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k))
            logits = qh @ kh.transpose(1, 2) * qh.shape[-1] ** -0.5
            logits = logits.masked_fill(~allowed, -torch.inf)
            parts.append(times_values(logits.softmax(-1)[None], v[None])[0])
        return parts[0] * masks[1][:, None] + parts[1] * (1 - masks[1][:, None])

    def read(self, auto):
        """Automatic masks: the words' maps averaged over layers, scaled to [0, 1], thresholded."""
        grid = tuple(-(-side // 2) for side in (self.facts.height, self.facts.width))
        masks = []
        for branch, prompt, words in (
            (0, auto.source_prompt, auto.source), (1, auto.target_prompt, auto.target)
        ):
            tokens = [position for word in words for position in prompt.span(word)]
            mean = torch.stack([maps[branch][..., tokens].sum(-1) for maps in self.seen]).mean(0)
            low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
            scaled = (mean - low) / (high - low)
            masks.append((scaled >= auto.threshold).float().unflatten(1, grid))
        return masks

    def inject_features(self, network):
        """Plug-and-Play: out = skip(x) + h with the source's h, on the published block."""
        handles = []
        for case in self.cases:
            if type(case).__name__ == "PlugAndPlay" and self.step < case.feature_fraction * STEPS:
                decoder = sorted({s.index for s in self.facts.sites if s.stage == "output"})
                block = network.output_blocks[decoder[1]][0]
                handles.append(block.register_forward_hook(self.features))
        return handles

    def features(self, block, inputs, out):
        skip = block.skip_connection(inputs[0])
        h = self.images(out - skip).clone()
        h[TU] = h[SC]
        h[TC] = h[SC]
        return skip + h.flatten(0, 1)


def make_inputs(model, images, size=(16, 16)):
    """Return rows of latents, contexts and the pooled vector; source and target differ."""
    generator = torch.Generator().manual_seed(5)
    width = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k
    x = torch.randn(4, images, 4, *size, generator=generator)
    x[SU], x[TU] = x[SC], x[TC]
    context = torch.randn(3, 1, 77, width.in_features, generator=generator)
    context = context[[0, 0, 1, 2]].expand(-1, images, -1, -1)
    extra = {}
    if model.model.diffusion_model.num_classes is not None:
        extra["y"] = torch.randn(1, 2816, generator=generator).expand(4 * images, -1)
    return x.flatten(0, 1) * 3, context.flatten(0, 1), extra


def long_inputs(model, images):
    """Return inputs whose source context is one chunk, repeated by the host, the target's two."""
    x, context, extra = make_inputs(model, images)
    context = context.unflatten(0, (4, images)).repeat(1, 1, 2, 1)
    second = torch.randn(images, 77, context.shape[-1], generator=torch.Generator().manual_seed(9))
    context[TC, :, 77:] = second
    return x, context.flatten(0, 1), extra


def prepare(model, cases, images, size=(16, 16)):
    from retrace.attention.plan import EditPlan, RunFacts
    from retrace.attention.run import EditRun
    from retrace.host.model import attention_sites

    facts = RunFacts(STEPS, 0, *size, images, attention_sites(model))
    return facts, EditRun(facts, EditPlan(tuple(cases)).prepare(facts))


def ours(model, run, step, x, context, extra, override=None):
    """Return the network's output with the run's hooks, in one call of all rows."""
    from retrace.attention.rows import (
        SOURCE_COND,
        SOURCE_UNCOND,
        TARGET_COND,
        TARGET_UNCOND,
        RowLayout,
    )
    from retrace.host.attach import attach_unet, residual_hooks
    from retrace.host.guider import ACTIVE

    roles = (TARGET_UNCOND, SOURCE_UNCOND, SOURCE_COND, TARGET_COND)
    layout = RowLayout(roles, len(x) // 4)
    options = attach_unet({"transformer_options": {ACTIVE: layout}}, run)["transformer_options"]
    if override is not None:
        options["optimized_attention_override"] = override
    run.begin(step, layout)
    with torch.no_grad(), residual_hooks(model.model.diffusion_model, run):
        out = model.model.apply_model(
            x, torch.full((len(x),), 4.0), c_crossattn=context, transformer_options=options, **extra
        )
    run.end()
    return out


def textbook(model, cases, facts, step, x, context, extra):
    book = Textbook(cases, facts, step)
    handles = book.inject_features(model.model.diffusion_model)
    try:
        with torch.no_grad():
            return model.model.apply_model(
                x, torch.full((len(x),), 4.0), c_crossattn=context,
                transformer_options=book.options(), **extra
            )
    finally:
        for handle in handles:
            handle.remove()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


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
