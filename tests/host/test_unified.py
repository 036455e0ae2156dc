"""InfEdit's unified attention control against its equations: three branches on whole maps."""

import pytest
import torch
import torch.nn.functional as F
from helpers_host import SD_LIKE, conditioning, make_unet_model, rms, words_prompt
from helpers_textbook import softmax_maps, times_values

pytestmark = pytest.mark.host

STEPS, GUIDANCE, IMAGES, SIZE = 6, 2.3, 2, (16, 24)
US, UT, UM, CS, CT, CM = range(6)  # the published batch: source, target, mutual of both halves
SOURCE, TARGET = "a cat sitting on a bench", "a wet dog sitting on a red bench"
CASES = {
    "benchmark": {},
    "layout branch refines": {"self_replace": 0.3},
    "source refines": {"self_replace": 0.3, "cross_from": "source"},
    "words may change": {"self_replace": 0.5, "edit": ("dog",)},
    "words must stay": {"keep": ("bench",)},
    "words of both": {"self_replace": 0.3, "edit": ("dog", "red"), "keep": ("red", "bench")},
}


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SD_LIKE, "SD15", seed=1)


@pytest.fixture(scope="module")
def embeddings():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, 77, 48, generator=generator) for _ in range(3)]


def controller(source=SOURCE, target=TARGET, edit=(), keep=(), **options):
    from retrace.attention.layout_blend import make_layout_blend
    from retrace.attention.prompt_to_prompt import PromptPair
    from retrace.attention.unified import UnifiedControl

    pair = PromptPair(words_prompt(source), words_prompt(target))
    blend = make_layout_blend(edit, keep, 0.9, 0.85)
    return UnifiedControl(pair, blend=blend, **options)


def virtual(model, embeddings, images=IMAGES, size=SIZE):
    from retrace.host.inversion_exact import invert_without_model

    generator = torch.Generator().manual_seed(3)
    latent = {"samples": torch.randn(images, 4, *size, generator=generator) * 3}
    return invert_without_model(model, conditioning(embeddings[0]), latent, steps=STEPS, seed=7)[0]


def edit(model, asked, trajectory, embeddings, cfg=GUIDANCE, target=1):
    from retrace.host.editing import run_edit, with_controller

    changed = with_controller(model, asked)
    return run_edit(changed, trajectory, conditioning(embeddings[target]),
                    conditioning(embeddings[2]), cfg=cfg)


class InfEdit:
    """The paper's loop: all six rows at every step, every map built, z = sqrt(abar) x."""

    def __init__(self, model, asked, trajectory, embeddings):
        from retrace.attention.alignment import make_token_map
        from retrace.host.model import attention_sites

        self.model, self.asked, self.trajectory = model, asked, trajectory
        source, target, empty = (e.expand(IMAGES, -1, -1) for e in embeddings)
        self.context = torch.cat([empty, empty, empty, source, target, source])
        self.map = make_token_map(asked.prompts.source, asked.prompts.target, asked.mode)
        self.sites, self.maps = attention_sites(model), {"s": 0, "m": 0}
        self.done = 0.0

    def images(self, x):
        return x.unflatten(0, (6, IMAGES))

    def self_attention(self, q, k, v, heads):
        q, k, v = (self.images(x) for x in (q, k, v))
        out = torch.empty_like(q)
        for s, t, m in ((US, UT, UM), (CS, CT, CM)):
            if self.done < self.asked.self_replace:
                rows = ((s, s, s, s), (t, s, s, t), (m, s, s, s))
            else:
                rows = ((s, s, s, s), (t, t, t, t), (m, t, s, s))
            for row, a, b, c in rows:
                out[row] = times_values(softmax_maps(q[a], k[b], heads), v[c])
        return out.flatten(0, 1)

    def refined(self, base, target):
        columns = []
        for n in range(target.shape[-1]):
            if self.map.mapped[n]:
                columns.append(base @ self.map.weights[:, n])
            else:
                columns.append(target[..., n])
        return torch.stack(columns, dim=-1)

    def cross_attention(self, site, q, k, v, heads):
        maps = self.images(softmax_maps(q, k, heads)).clone()
        by_source, by_layout = (self.refined(maps[row], maps[CT]) for row in (CS, CM))
        if site.downsample == 2 and site.stage != "middle":  # the grid nearest to a quarter
            self.maps["s"] = self.maps["s"] + by_source.mean(1)
            self.maps["m"] = self.maps["m"] + by_layout.mean(1)
        if self.done <= self.asked.cross_replace:
            maps[CT] = by_layout if self.asked.cross_from == "layout" else by_source
        return times_values(maps.flatten(0, 1), v)

    def options(self):
        slots = {"attn1": {}, "attn2": {}}
        for site in self.sites:
            if site.kind == "self":
                slots["attn1"][site.address] = lambda q, k, v, extra: self.self_attention(
                    q, k, v, extra["n_heads"])
            else:
                slots["attn2"][site.address] = lambda q, k, v, extra, site=site: (
                    self.cross_attention(site, q, k, v, extra["n_heads"]))
        return {"patches_replace": slots}

    def run(self):
        sigmas = self.trajectory.sigmas.double()
        abar = 1 / (1 + sigmas**2)
        a, s = abar.sqrt().float(), (1 - abar).sqrt().float()
        zs = zt = zm = self.trajectory.latents[STEPS] * a[STEPS]
        z0 = self.trajectory.latents[0] * a[0]
        for step in range(STEPS):
            i, self.done = STEPS - step, (step + 1) / STEPS
            es, et, em = self.predict(torch.cat([zs, zt, zm] * 2) / a[i], s[i] / a[i])
            consistent = (zs - a[i] * z0) / s[i]
            xt, xm = ((z - s[i] * (e - es + consistent)) / a[i] for z, e in ((zt, et), (zm, em)))
            if i > 1:
                noise = s[i - 1] * self.trajectory.noises[step]
                zs, zt, zm = (a[i - 1] * x + noise for x in (z0, xt, xm))
            else:
                zs, zt, zm = z0, xt, xm
            if step > 0 and self.asked.blend is not None:
                zt = self.blend(zs, zt, zm, a[i], step)
        return zt

    def predict(self, x, sigma):
        with torch.no_grad():
            denoised = self.model.model.apply_model(
                x, sigma.expand(len(x)), c_crossattn=self.context,
                transformer_options=self.options())
        eps = self.images((x - denoised) / sigma)
        return eps[CS], eps[UT] + GUIDANCE * (eps[CT] - eps[UT]), eps[CM]

    def blend(self, zs, zt, zm, a, step):
        blend, prompt = self.asked.blend, self.asked.prompts.target
        e = {n for word in blend.edit for n in prompt.span(word)}
        m = {n for word in blend.keep for n in prompt.span(word)}
        if e:
            threshold = max(0.15 / float(a), blend.edit_threshold)
            zt = torch.where(self.mask("m", e, threshold), zt, zm)
        if m - e:
            zt = torch.where(self.mask("s", m - e, blend.keep_threshold), zs, zt)
        if m & e and step == STEPS - 1:
            zt = torch.where(self.mask("m", m & e, blend.edit_threshold), zm, zt)
        return zt

    def mask(self, name, tokens, threshold):
        seen = self.maps[name][..., sorted(tokens)].amax(-1)
        seen = seen.unflatten(1, (SIZE[0] // 2, SIZE[1] // 2))[:, None]
        seen = F.interpolate(seen, size=SIZE, mode="nearest")
        return seen / seen.amax((2, 3), keepdim=True) > threshold


@pytest.mark.parametrize("name", CASES)
def test_the_edit_is_the_papers_three_branches_on_whole_maps(name, model, embeddings):
    trajectory, asked = virtual(model, embeddings), controller(**CASES[name])
    result = edit(model, asked, trajectory, embeddings)
    expected = InfEdit(model, asked, trajectory, embeddings).run()
    ours = model.model.process_latent_in(result.edited)
    assert rms(ours, expected) <= 2e-3 * float(expected.pow(2).mean().sqrt())
    plain = edit(model, controller(cross_replace=0.2, self_replace=0), trajectory, embeddings)
    assert rms(plain.edited, result.edited) > 0.01 * float(result.edited.pow(2).mean().sqrt())
    if asked.blend:
        assert 0.02 < result.report["blend_area"] < 0.98
    assert rms(result.source, trajectory.clean) < 1e-5


def test_only_rows_that_somebody_reads_are_evaluated(model, embeddings):
    """Four with the source's structure, three without, and the layout branch only when read."""
    trajectory = virtual(model, embeddings)
    counts = {
        name: edit(model, controller(**options), trajectory, embeddings).report["row_forwards"]
        for name, options in CASES.items()
    }
    assert counts["benchmark"] == IMAGES * (4 * 4 + 2 * 3)
    assert counts["layout branch refines"] == IMAGES * (1 * 4 + 5 * 3 + 3)
    assert counts["source refines"] == IMAGES * (1 * 4 + 5 * 3)
    assert counts["words may change"] == IMAGES * (2 * 4 + 4 * 4)


def test_an_unchanged_prompt_returns_the_image(model, embeddings):
    trajectory = virtual(model, embeddings)
    asked = controller(target=SOURCE, self_replace=0.3, edit=("cat",))
    result = edit(model, asked, trajectory, embeddings, cfg=1.0, target=0)
    assert rms(result.edited, trajectory.clean) < 1e-5


def test_images_of_a_batch_are_edited_as_if_alone(model, embeddings):
    asked, both = controller(self_replace=0.3), virtual(model, embeddings)
    alone = both.replace(latents=both.latents[:, 1:], clean=both.clean[1:],
                         noises=both.noises[:, 1:])
    together, single = (edit(model, asked, t, embeddings).edited for t in (both, alone))
    assert rms(together[1:], single) <= 1e-4 * float(single.pow(2).mean().sqrt())


@pytest.mark.parametrize("pinned", [True, False])
def test_other_trajectories_walk_the_layout_branch_with_their_own_solver(
    pinned, model, embeddings
):
    """Guided as the source is: with a source that drifts at cfg, its uncond row is evaluated."""
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = {"samples": virtual(model, embeddings, 1, (16, 16)).clean}
    trajectory = invert(model, conditioning(embeddings[0]), latent, steps=STEPS)[0]
    trajectory = trajectory.replace(source_rule=SourceRule(pinned=pinned))
    for options in ({"self_replace": 0.3}, {"self_replace": 0.3, "edit": ("dog",)}):
        result = edit(model, controller(**options), trajectory, embeddings)
        assert bool(result.edited.isfinite().all())
        if pinned:
            assert torch.equal(result.source, trajectory.clean)
    without = edit(model, controller(self_replace=0.3, cross_from="source"), trajectory, embeddings)
    beside = edit(model, controller(self_replace=0.3), trajectory, embeddings)
    assert rms(without.edited, beside.edited) > 1e-4


def test_the_model_is_left_as_it_was(model, embeddings):
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    edit(model, controller(self_replace=0.3), virtual(model, embeddings), embeddings)
    after = model.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert "retrace_plan" not in model.model_options.get("transformer_options", {})
