"""Numbers of pix2pix-zero's own code: the gradient of the maps and a guided step."""

import pytest
import torch
from helpers_host import conditioning, rms
from retrace.attention.plan import Control

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def published(golden):
    return golden("pix2pix_zero/tiny3_10/ddim+pix2pix-zero")


class Sampler:
    """What a guidance step needs of the Edit-Sampler: rows, guider, trajectory's facts."""

    def __init__(self, guider, cfg):
        from retrace.diffusion.trajectory import ModelFacts

        self.guider, self.cfg, self.own = guider, cfg, {}
        self.trajectory = type("Facts", (), {"model": ModelFacts("", "eps", "", 4)})

    def row(self, role, x, step):
        from retrace.host.editing import CONDS
        from retrace.host.guider import Rows

        return Rows(role, CONDS[role], x)


def run_in_host(guider, closure):
    """Run a closure where the host has its model loaded and the conds processed."""
    import comfy.samplers

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            closure(extra_args["model_options"])
            return noise

    x = torch.zeros(1, 4, 32, 32)
    with torch.inference_mode():
        guider.sample(x, x, Once(), torch.tensor([1.0, 0.0]), disable_pbar=True)


def test_gradients_and_guided_latents_equal_the_published_ones(tiny3, published):
    from retrace.attention.map_guidance import MapGuidance
    from retrace.attention.rows import TARGET_COND
    from retrace.host.guider import RowGuider
    from retrace.host.map_guidance import MapPuller
    from retrace.host.model import attention_sites

    tensors, facts = published
    caption = tensors["emb_caption"]
    edited = caption + tensors["emb_tar"] - tensors["emb_src"]
    guider = RowGuider(tiny3, {"source": conditioning(caption), "negative": conditioning(caption),
                               "positive": conditioning(edited)})
    table = tiny3.get_model_object("model_sampling").sigmas
    sites = [site for site in attention_sites(tiny3) if site.kind == "cross"]
    amount = facts["xa_guidance"]
    guidance = MapGuidance(amount, dict.fromkeys(sites, 1.0), True, "never")
    found = []

    def closure(options):
        for step, label in enumerate(facts["edit_t"]):
            if step % 3:
                continue  # every third step is enough, and quicker
            sigma = table[label].float()
            root = (1 + sigma**2).sqrt()
            source = tensors["rec_latents_before_step"][step] * root
            target = tensors["xa_x_before"][step][:1] * root
            sampler = Sampler(guider, facts["guidance_scale"])
            moved = MapPuller().pull(sampler, guidance, step, sigma, source, target, options)
            rows = torch.cat([moved, sampler.own[TARGET_COND]]) / root
            found.append((step, (tensors["xa_x_before"][step] - rows) / amount))

    run_in_host(guider, closure)
    assert len(found) == 4
    for step, gradient in found:
        expected = tensors["xa_grad"][step]
        assert rms(gradient, expected) <= 1e-3 * rms(expected, torch.zeros_like(expected))


class TeacherForced(Control):
    """Compares the target after every step with the published one, then continues from that."""

    name = "teacher"

    def __init__(self, states: torch.Tensor) -> None:
        self.states, self.worst = states, 0.0

    def __deepcopy__(self, memo):
        return self

    def prepare(self, facts):
        return self

    def after_step(self, step, sigma, source, target):
        scale = (1 + sigma**2).sqrt()
        self.worst = max(self.worst, float((target / scale - self.states[step]).abs().max()))
        return self.states[step] * scale


def test_each_step_of_an_edit_equals_the_published_one(tiny3, published):
    # step by step, for the gradient of a random network's maps amplifies rounding
    from retrace.attention.map_guidance import AttentionGuidance
    from retrace.diffusion.trajectory import Trajectory
    from retrace.host.editing import run_edit, with_controller
    from retrace.host.model import make_grid, model_facts

    tensors, facts = published
    caption = conditioning(tensors["emb_caption"])
    edited = conditioning(tensors["emb_caption"] + tensors["emb_tar"] - tensors["emb_src"])
    sigmas = make_grid(tiny3, "diffusers", 10)
    # only the last state is used: the published sampler starts there, its levels below are its own
    root = (1 + sigmas**2).sqrt()[:, None, None, None, None]
    trajectory = Trajectory(tensors["z_inv"] * root, sigmas, tensors["z_inv"][0] / 0.18215,
                            model_facts(tiny3), source=caption)
    states = torch.cat([tensors["xa_x_before"][1:, :1], tensors["edit_final"][None]])
    teacher = TeacherForced(states)
    asked = AttentionGuidance(facts["xa_guidance"], published=True, checkpointing="never")
    guided = with_controller(with_controller(tiny3, asked), teacher)
    result = run_edit(guided, trajectory, edited, caption, cfg=facts["guidance_scale"])
    assert 0 < teacher.worst <= 5e-5
    assert rms(result.source * 0.18215, tensors["rec_final"]) <= 5e-4
