"""Whole edits on small random PixArts: prompts of any length, sizes, controllers, refusals."""

import pytest
import torch
from helpers_host import rms, words_prompt
from helpers_pixart import SIZE, make_pixart
from helpers_textbook import relative

pytestmark = pytest.mark.host

STEPS = 5
SOURCE, SWAPPED = "a cat on a mat", "a dog on a mat"
REFINED = "a wet dog on a red mat"


@pytest.fixture(scope="module")
def model(comfy):
    return make_pixart("alpha MS")


def prompt(text):
    return words_prompt(text, length=len(text.split()) + 2)


def text(words, seed=0):
    """An embedding of exactly as many positions as the prompt has, as T5's are."""
    size = (1, len(words.split()) + 2, 24)
    return [[torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4, {}]]


def inverted(model, size=SIZE, batch=1, source=SOURCE):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(7))
    trajectory = invert(model, text(source, 1), {"samples": latent}, steps=STEPS)[0]
    return trajectory.replace(source_rule=SourceRule(pinned=True))


def edit(model, trajectory, controllers=(), target=SWAPPED, **options):
    from retrace.host.editing import run_edit, with_controller

    for controller in controllers:
        model = with_controller(model, controller)
    options = {"cfg": 4.0, **options}
    return run_edit(model, trajectory, text(target, 2), text("", 3), **options)


def in_host(model, conds, closure):
    """Run closure(guider, options) where the host has loaded the model and processed the conds."""
    import comfy.samplers
    from retrace.host.guider import RowGuider

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            closure(guider, extra_args["model_options"])
            return noise

    guider = RowGuider(model, conds)
    x = torch.zeros(1, 4, *SIZE)
    with torch.inference_mode():
        guider.sample(x, x, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True)


def p2p(target=SWAPPED, **options):
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    return PromptToPrompt(PromptPair(prompt(SOURCE), prompt(target)), **options)


def test_prompts_of_different_lengths_ride_in_one_batch_as_each_would_alone(model):
    """The target has 9 positions, the source 7, the negative prompt 2."""
    from retrace.attention.rows import SOURCE_COND, TARGET_COND, TARGET_UNCOND
    from retrace.host.guider import Rows

    conds = {"a": text(SOURCE, 1), "b": text(REFINED, 2), "c": text("", 3)}
    x = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(1))
    rows = [Rows(SOURCE_COND, "a", x), Rows(TARGET_COND, "b", x), Rows(TARGET_UNCOND, "c", x)]

    def closure(guider, options):
        sigma = torch.tensor(3.0)
        together = guider.denoise_rows(rows, sigma, options)
        for row in rows:
            alone = guider.denoise_rows([row], sigma, options)
            assert relative(together[row.role], alone[row.role]) <= 1e-5

    in_host(model, conds, closure)


def test_texts_that_would_grow_too_long_together_are_refused(comfy):
    from comfy.conds import CONDRegular
    from retrace.diffusion.errors import HostError
    from retrace.host.conditioning import repeated

    column = [CONDRegular(torch.zeros(1, length, 4)) for length in (127, 131)]
    with pytest.raises(HostError, match=r"127, 131 tokens.*16637"):
        repeated(["source", "positive"], column)
    column = [CONDRegular(torch.zeros(1, length, 4)) for length in (10, 4)]
    assert [cond.cond.shape[1] for cond in repeated(["a", "b"], column)] == [20, 20]


@pytest.mark.parametrize("size", [SIZE, (48, 22), (70, 34)])
def test_every_size_and_prompt_length_can_be_edited(size, model):
    from retrace.attention.local_blend import LocalBlend
    from retrace.attention.masactrl import MasaCtrl

    trajectory = inverted(model, size)
    blend = LocalBlend(("cat",), ("dog",), threshold=0.6)
    controllers = [p2p(REFINED, self_replace=(0.0, 0.4), blend=blend), MasaCtrl(0.4, 2)]
    result = edit(model, trajectory, controllers, REFINED)
    assert result.edited.shape == trajectory.clean.shape
    assert result.mask.shape == (1, 8 * size[0], 8 * size[1])
    assert bool(result.edited.isfinite().all())
    assert rms(result.edited, edit(model, trajectory, target=REFINED).edited) > 1e-3
    mask = result.mask[:, None, ::8, ::8].bool().expand_as(result.edited)
    torch.testing.assert_close(result.edited[~mask], trajectory.clean[~mask], rtol=1e-5, atol=1e-5)


def test_a_plain_edit_is_the_same_bit_for_bit_after_a_controlled_one(model):
    from retrace.attention.masactrl import MasaCtrl

    trajectory = inverted(model)
    plain = edit(model, trajectory).edited
    controlled = edit(model, trajectory, [p2p(self_replace=(0, 0)), MasaCtrl(0.4, 2)]).edited
    assert relative(controlled, plain) > 1e-3
    assert torch.equal(edit(model, trajectory).edited, plain)
    assert not model.object_patches and not model.model_options["transformer_options"]


def test_replaying_recorded_attention_equals_running_the_source_beside(model):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.host.capture import capture_attention
    from retrace.host.editing import run_edit, with_controller

    trajectory = inverted(model)
    controllers = [p2p(REFINED, self_replace=(0.0, 0.4)), MasaCtrl(0.4, 2)]
    beside = edit(model, trajectory, controllers, REFINED)
    store, report = capture_attention(
        model, trajectory, dtype="fp32", negative=text("", 3)
    )
    assert report["layers"] == 8
    carrying = model
    for controller in controllers:
        carrying = with_controller(carrying, controller, store)
    replayed = run_edit(carrying, trajectory, text(REFINED, 2), text("", 3), cfg=4.0)
    assert replayed.report["row_forwards"] < beside.report["row_forwards"]
    assert relative(replayed.edited, beside.edited) <= 1e-4


def test_words_can_be_looked_up_in_captured_attention(model):
    from retrace.attention.maps import word_maps
    from retrace.host.capture import capture_attention

    trajectory = inverted(model)
    store, _ = capture_attention(model, trajectory, kind="cross", dtype="fp32")
    maps = word_maps(store, prompt(SOURCE), SOURCE.split())
    assert maps.shape == (1, 5, SIZE[0] // 2, SIZE[1] // 2)
    # words share a map's mass with the start and end tokens
    assert 0 < float(maps.sum(1).mean()) < 1


def test_attention_guidance_pulls_the_maps_together(model):
    from retrace.attention.map_guidance import AttentionGuidance

    trajectory = inverted(model)
    guided = edit(model, trajectory, [AttentionGuidance(amount=0.05, until=0.4)])
    plain = edit(model, trajectory)
    losses = [float(loss) for loss in guided.report["map_loss"].split()]
    assert len(losses) == 2 and min(losses) >= 0 and losses[1] > 0
    assert relative(guided.edited, plain.edited) > 1e-4
    for module in model.model.diffusion_model.modules():
        assert "forward" not in vars(module) and not module._forward_hooks


def test_guidance_gradients_are_those_of_the_maps_distance(model):
    """Finite differences of the loss along the gradient."""
    from retrace.attention.rows import SOURCE_COND, TARGET_COND
    from retrace.host.guider import Rows
    from retrace.host.map_guidance import map_gradients
    from retrace.host.model import attention_sites

    weights = {site: 1.0 for site in attention_sites(model) if site.kind == "cross"}
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(1, 4, *SIZE, generator=generator) for _ in range(2))

    def closure(guider, options):
        def loss(target, mode="never"):
            pairs = [(Rows(SOURCE_COND, "a", x.clone()), Rows(TARGET_COND, "b", target))]
            losses, found, _ = map_gradients(
                guider, pairs, torch.tensor(1.0), options, weights, mode
            )
            return losses, found[TARGET_COND]

        gradient = loss(y)[1]
        step = 0.01 * gradient / gradient.norm()
        measured = float((loss(y + step)[0] - loss(y - step)[0]) / 0.02)
        assert float(gradient.norm()) == pytest.approx(measured, rel=0.02)
        assert torch.equal(loss(y, "always")[1], gradient)  # checkpointed: the same operations

    in_host(model, {"a": text(SOURCE, 1), "b": text(SWAPPED, 2)}, closure)


@pytest.mark.parametrize(
    ("size", "words"),
    [((35, 40), "multiples of 2, got 35 x 40"), ((32, 32), "more than 32 on average")],
)
def test_sizes_that_pixart_cannot_take_are_refused_before_work(size, words, model):
    from retrace.diffusion.errors import LatentError

    with pytest.raises(LatentError, match=words):
        inverted(model, size)


def test_layers_that_do_not_exist_are_named(model):
    from retrace.attention.masactrl import MasaCtrl
    from retrace.attention.plug_and_play import PlugAndPlay
    from retrace.diffusion.errors import BlockSelectionError

    trajectory = inverted(model)
    with pytest.raises(BlockSelectionError, match=r"start_layer 28, but this model has 4"):
        edit(model, trajectory, [MasaCtrl(0, 28)])
    with pytest.raises(BlockSelectionError, match="holds none of this model's 4"):
        edit(model, trajectory, [p2p(self_depth=(0.9, 0.95))])
    with pytest.raises(BlockSelectionError, match="features are those of a UNet"):
        edit(model, trajectory, [PlugAndPlay(0.8, 0.5)])
    assert edit(model, trajectory, [PlugAndPlay(0.0, 0.5)]).edited.isfinite().all()


def test_a_family_without_support_is_named_with_those_that_have_it(comfy):
    from retrace.diffusion.errors import HostError
    from retrace.host.model import attention_sites

    class Other:
        def get_model_object(self, name):
            return torch.nn.Linear(1, 1)

    with pytest.raises(HostError, match=r"Linear yet; supported are UNets .* and PixArt"):
        attention_sites(Other())


def test_pixarts_grid_has_the_published_noise_levels(model):
    """Linear betas from 1e-4 to 0.02, leading steps with an offset of one, as SD's grid."""
    from retrace.host.model import make_grid, model_facts

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    sigmas = ((1 - abar) / abar).sqrt()
    grid = make_grid(model, "diffusers", 10)
    steps = torch.arange(10) * 100 + 1
    assert grid[1:].tolist() == pytest.approx(sigmas[steps].tolist(), rel=1e-4)
    assert grid[0] == pytest.approx(float(sigmas[0]), rel=1e-4)
    assert model_facts(model).prediction == "eps" and model_facts(model).channels == 4


def test_style_diffusion_refuses_pixart_by_name(model):
    from retrace.diffusion.errors import HostError
    from retrace.host.style_diffusion import cross_sites

    with pytest.raises(HostError, match=r"does not support PixArt.*SD1\.5"):
        cross_sites(model)
