"""PatchMerge in whole runs: what it leaves alone, what it shares, and what it gives back."""

import pytest
import torch
from helpers_host import (
    SD_LIKE,
    SDXL_LIKE,
    conditioning,
    make_inference_tensors,
    make_unet_model,
    words_prompt,
)
from helpers_textbook import relative

pytestmark = pytest.mark.host

STEPS = 3
SIZE = (17, 14)  # tokens of the finest level; the next has 9 x 7


@pytest.fixture(scope="module")
def model(comfy):
    return make_unet_model(SD_LIKE, "SD15", seed=1)


def text(seed, **options):
    generator = torch.Generator().manual_seed(seed)
    [[embedding, _]] = conditioning(torch.randn(1, 77, 48, generator=generator))
    return [[embedding, options]]


def latent(images=1, size=SIZE):
    generator = torch.Generator().manual_seed(7)
    return {"samples": torch.randn(images, 4, *size, generator=generator)}


def merging(model, ratio=0.5, **asked):
    from retrace.attention.patch_merge import PatchMerge
    from retrace.host.merging import with_patch_merge

    return with_patch_merge(model, PatchMerge(ratio=ratio, **asked))


def inverted(model, pinned=True, **inputs):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    trajectory = invert(model, text(1), latent(**inputs), steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=pinned))


def run(model, trajectory, *controllers, positive=None, **options):
    from retrace.host.editing import run_edit, with_controller

    for controller in controllers:
        model = with_controller(model, controller)
    return run_edit(model, trajectory, positive or text(2), text(3), **options)


def p2p(target="a dog on a mat", **options):
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    pair = PromptPair(words_prompt("a cat on a mat"), words_prompt(target))
    return PromptToPrompt(pair, **{"cross_replace": (0.0, 0.8), **options})


def one_call(model, other=None):
    """Return one model call over two rows; other: an attn1 patch and an attn1 output patch."""
    import comfy.samplers
    from retrace.attention.rows import TARGET_COND, TARGET_UNCOND
    from retrace.host.guider import RowGuider, Rows
    from retrace.host.inversion import run_guider

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            rows = [
                Rows(TARGET_UNCOND, "negative", noise + start),
                Rows(TARGET_COND, "positive", noise + start),
            ]
            out = guider.denoise_rows(rows, sigmas[0], extra_args["model_options"])
            return torch.cat([out[TARGET_UNCOND], out[TARGET_COND]])

    start = latent()["samples"] * 3
    if other is not None:
        model = model.clone()
        model.set_model_attn1_patch(other[0])
        model.set_model_attn1_output_patch(other[1])
    guider = RowGuider(model, {"positive": text(1), "negative": text(2)})
    return run_guider(guider, torch.zeros_like(start), Once(), torch.tensor([2.0, 1.0])), guider


def textbook_patches(model, ratio, stride, merged):
    """Return the two patches of merging at the finest level, from the whole similarity."""
    from retrace.attention.patch_merge import matching_seed
    from retrace.attention.token_merge import cell_side, destinations
    from retrace.host.model import attention_sites

    count, groups = SIZE[0] * SIZE[1], {}
    orders = {site.address: site for site in attention_sites(model) if site.kind == "self"}

    def before(query, key, value, extra):
        groups.clear()
        if query.shape[1] != count:
            return query, key, value
        site, away = orders[(*extra["block"], extra["block_index"])], int(ratio * count)
        side = cell_side(*SIZE, away, stride)
        targets = destinations(*SIZE, side, matching_seed(2.0, site)).tolist()
        metric = torch.nn.functional.normalize(query.mean(0).double(), dim=1)
        similarity = metric @ metric.T
        others = [n for n in range(count) if n not in targets]
        best, at = similarity[others][:, targets].max(1)
        groups.update({target: [target] for target in targets})
        for index in best.argsort(descending=True)[:away].tolist():
            groups[targets[int(at[index])]].append(others[index])
        taken = {n for members in groups.values() for n in members}
        groups.update({n: [n] for n in range(count) if n not in taken})

        def merge(x):
            return torch.stack([x[:, members].mean(1) for members in groups.values()], dim=1)

        if merged == "keys and values":
            return query, merge(key), merge(value)
        keys = (merge(key), merge(value)) if merged == "all" else (key, value)
        return (merge(query), *keys)

    def after(out, extra):
        if out.shape[1] != len(groups) or not groups or merged == "keys and values":
            return out
        whole = out.new_empty(len(out), count, out.shape[2])
        for number, members in enumerate(groups.values()):
            whole[:, members] = out[:, number : number + 1]
        return whole

    return before, after


@pytest.mark.parametrize("merged", ["all", "queries", "keys and values"])
@pytest.mark.parametrize(("ratio", "stride"), [(0.5, 2), (0.8, 2)])
def test_a_model_call_is_the_one_with_a_textbook_matching_in_its_attention(
    model, ratio, stride, merged
):
    ours, guider = one_call(merging(model, ratio, stride=stride, merged=merged))
    expected, _ = one_call(model, textbook_patches(model, ratio, stride, merged))
    plain, _ = one_call(model)
    assert relative(ours, expected) <= 1e-5
    assert relative(ours, plain) > 1e-3
    counts = {(238, 238 - int(ratio * 238))}
    assert set(guider.merging.merged.values()) == counts


def test_ratio_zero_is_no_node_bit_for_bit_in_inversion_and_edit(model):
    zero = merging(model, 0.0)
    trajectory, same = inverted(model), inverted(zero)
    assert torch.equal(trajectory.latents, same.latents)
    plain, edited = (run(m, trajectory, p2p()) for m in (model, zero))
    assert torch.equal(plain.edited, edited.edited)
    assert "patch_merge" not in edited.report


def test_inversions_and_edits_say_what_they_merged_and_do_it_again_bit_for_bit(model):
    fast = merging(model, 0.8, max_downsample=2)
    state = torch.random.get_rng_state()
    first, again = inverted(fast), inverted(fast)
    assert torch.equal(first.latents, again.latents)
    assert dict(first.report)["patch_merge"] == "6 layers, 238 to 48 tokens, 63 to 13 tokens"
    edits = [run(fast, first, p2p()) for _ in range(2)]
    assert torch.equal(edits[0].edited, edits[1].edited)
    assert edits[0].report["patch_merge"] == "6 layers, 238 to 48 tokens, 63 to 13 tokens"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.latents[-1], inverted(model).latents[-1])


def test_a_run_leaves_nothing_on_the_model_and_a_plain_sampler_is_not_touched(model):
    fast = merging(model)
    run(fast, inverted(fast), p2p())
    assert "patches" not in fast.model_options["transformer_options"]
    from retrace.host.inversion import invert

    plain = invert(model, text(1), latent(), steps=STEPS)[0]
    assert torch.equal(plain.latents, inverted(model).latents)
    network = model.model.diffusion_model
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_a_target_that_is_its_source_stays_its_source(model):
    """Rows share their matching, so swapping rows of one thing for itself changes nothing."""
    fast, source = merging(model, 0.8), text(1)
    trajectory = inverted(fast, pinned=False)
    for controller in (p2p("a cat on a mat", self_replace=(0.0, 1.0)), masactrl()):
        result = run(fast, trajectory, controller, positive=source)
        assert relative(result.edited, result.source) <= 1e-5


def masactrl(**options):
    from retrace.attention.masactrl import MasaCtrl

    return MasaCtrl(start_step=1, start_layer=2, **options)


def test_images_of_a_batch_are_merged_each_on_its_own(model):
    fast = merging(model)
    together = run(fast, inverted(fast, images=2), p2p()).edited
    samples = latent(images=2)["samples"]
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    for number in range(2):
        one = {"samples": samples[number : number + 1]}
        trajectory = invert(fast, text(1), one, steps=STEPS)[0]
        trajectory = trajectory.replace(source_rule=SourceRule(pinned=True))
        assert relative(together[number : number + 1], run(fast, trajectory, p2p()).edited) <= 1e-4


def test_steps_outside_the_window_are_those_of_the_plain_model(model):
    late = inverted(merging(model, window=(0.34, 1.0)))  # the noisiest step is plain
    plain = inverted(model)
    early = inverted(merging(model, window=(0.0, 0.34)))
    assert torch.equal(early.latents[:STEPS], plain.latents[:STEPS])
    assert not torch.equal(early.latents[STEPS], plain.latents[STEPS])
    assert not torch.equal(late.latents[1], plain.latents[1])


def test_other_packs_patches_see_every_token_before_and_after(model):
    seen = []

    def before(query, key, value, extra):
        seen.append(("before", query.shape[1]))
        return query * 1.01, key, value

    def after(out, extra):
        seen.append(("after", out.shape[1]))
        return out * 0.99

    with_other, _ = one_call(merging(model), (before, after))
    assert {length for _, length in seen} == {238, 63, 20}
    assert seen[0::2] == [("before", n) for _, n in seen[0::2]]
    assert relative(with_other, one_call(merging(model))[0]) > 1e-5
    expected, _ = one_call(model, chained((before, after), textbook_patches(model, 0.5, 2, "all")))
    assert relative(with_other, expected) <= 1e-5


def chained(outer, inner):
    return (
        lambda q, k, v, extra: inner[0](*outer[0](q, k, v, extra), extra),
        lambda out, extra: outer[1](inner[1](out, extra), extra),
    )


def test_the_hosts_own_token_merging_may_stand_beside_and_is_named(model, caplog):
    from comfy_extras.nodes_tomesd import TomePatchModel

    both = merging(TomePatchModel.execute(model, 0.3).args[0])
    with caplog.at_level("WARNING"):
        trajectory = inverted(both)
    assert trajectory.latents.isfinite().all()
    assert "changes its tokens" in caplog.text
    assert dict(trajectory.report)["patch_merge_left_out"].startswith("3 layers")


def test_masked_self_attention_keeps_all_its_tokens_and_the_report_says_so(model, caplog):
    mask = torch.zeros(1, *SIZE)
    mask[:, :9] = 1
    fast = merging(model)
    with caplog.at_level("WARNING"):
        result = run(fast, inverted(fast), masactrl(mask_source=mask))
    assert result.edited.isfinite().all()
    assert result.report["patch_merge_left_out"] == "2 layers, replaced or masked"


def test_blends_probe_maps_of_the_whole_grid(model):
    from retrace.attention.local_blend import make_blend

    fast = merging(model, 0.8)
    blend = make_blend(("cat",), ("dog",), (), 0.3, 0.2)
    result = run(fast, inverted(fast), p2p(blend=blend))
    assert result.mask.shape[1:] == (8 * SIZE[0], 8 * SIZE[1])
    assert "blend_area" in result.report and "patch_merge" in result.report


def test_attention_is_recorded_on_the_whole_grid_and_replayed_under_merging(model):
    from retrace.host.capture import capture_attention

    fast = merging(model, 0.8)
    trajectory = inverted(fast)
    store, report = capture_attention(
        fast, trajectory, dtype="fp32", negative=text(3), budget_mb=256
    )
    assert report["steps_per_pass"] == 1
    from retrace.host.editing import run_edit, with_controller

    replayed = run_edit(
        with_controller(fast, masactrl(), store), trajectory, text(2), text(3)
    )
    assert replayed.edited.isfinite().all()
    assert replayed.report["patch_merge"] == "3 layers, 238 to 48 tokens"
    assert relative(replayed.edited, run(fast, trajectory, masactrl()).edited) < 0.5


@pytest.mark.parametrize("mode", ["never", "always"])
def test_null_text_optimisation_runs_through_merged_attention(comfy, mode):
    from retrace.host.null_text import optimise

    fast = merging(make_inference_tensors(make_unet_model(SD_LIKE, "SD15", seed=1)))
    with torch.inference_mode():
        trajectory = inverted(fast, pinned=False)
        refined, _ = optimise(
            fast, trajectory, text(3), cfg=3.0, inner_steps=2, checkpointing=mode
        )
    losses = dict(refined.report)["null_loss"]
    assert refined.null_embeddings.isfinite().all() and losses == losses


def test_sdxl_is_merged_from_its_own_finest_level_on(comfy):
    from retrace.diffusion.errors import BlockSelectionError

    xl = make_unet_model(SDXL_LIKE, "SDXL", seed=1)
    with pytest.raises(BlockSelectionError, match="raise it to 2"):
        merging(xl)
    assert len(merging(xl, max_downsample=2).model_options["transformer_options"]) == 1


def test_a_family_without_support_is_named_with_those_that_have_it(model):
    from retrace.diffusion.errors import HostError

    other = model.clone()
    other.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(HostError, match=r"does not support Linear.*SD1\.5.*PixArt"):
        merging(other)
    assert merging(other, 0.0) is not None


def test_the_node_hands_on_what_its_inputs_say(model):
    from retrace.host.editing import get_plan
    from retrace.nodes.merging import PatchMerge

    out = PatchMerge.execute(model, 0.8, 3, 2, 0.1, 0.9, "queries", "output").args[0]
    [asked] = get_plan(out).controllers
    assert (asked.ratio, asked.stride, asked.max_downsample) == (0.8, 3, 2)
    assert (asked.window, asked.merged, asked.layers) == ((0.1, 0.9), "queries", "output")
    assert not get_plan(model).controllers
