"""Runs where weights stay off the device (--lowvram, --novram): the same edits, with a LoRA too.

The host refuses both flags beside --cpu, so its states are set here, and the CPU stands in for a
device whose memory is short.
"""

import pytest
import torch
from helpers_host import SD_LIKE, conditioning, make_unet_model, words_prompt

pytestmark = pytest.mark.host

STEPS = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed):
    return conditioning(random(1, 77, 48, seed=seed))


@pytest.fixture
def model(comfy):
    """A model with a LoRA on three of its layers."""
    model = make_unet_model(SD_LIKE, "SD15", seed=1)
    weights = model.model.state_dict()
    names = ("middle_block.1.transformer_blocks.0.attn2.to_k", "output_blocks.2.0.in_layers.2",
             "output_blocks.2.1.transformer_blocks.0.attn1.to_q")  # fmt: skip
    keys = [f"diffusion_model.{name}.weight" for name in names]
    model.add_patches({key: (random(*weights[key].shape, seed=4) * 0.05,) for key in keys})
    return model


@pytest.fixture(params=["LOW_VRAM", "NO_VRAM"])
def short_of_memory(request, comfy, monkeypatch):
    """Return a function that puts the host into a state; it loads half of a model, or nothing."""
    management, free = comfy.model_management, 2**30

    def get_free_memory(device=None, torch_free_too=False):
        return (free, free) if torch_free_too else free

    def set_for(model):
        management.unload_all_models()
        for name, value in {
            "is_device_cpu": lambda device: False,
            "lowvram_available": True,
            "vram_state": management.VRAMState[request.param],
            "get_free_memory": get_free_memory,
            "minimum_inference_memory": lambda: free - model.model_size() // 2,
        }.items():
            monkeypatch.setattr(management, name, value)

    yield set_for
    monkeypatch.undo()
    management.unload_all_models()


def inverted(model):
    from retrace.diffusion.trajectory import SourceRule
    from retrace.host.inversion import invert

    latent = {"samples": random(1, 4, 16, 16, seed=7)}
    return invert(model, text(1), latent, steps=STEPS)[0].replace(source_rule=SourceRule(True))


def edit(controller):
    def run(model):
        from retrace.host.editing import run_edit, with_controller

        carried = with_controller(model, controller())
        return run_edit(carried, inverted(model), text(2), text(3), cfg=4.0).edited

    return run


def p2p():
    from retrace.attention.prompt_to_prompt import PromptPair, PromptToPrompt

    pair = PromptPair(words_prompt("a cat on a mat"), words_prompt("a dog on a mat"))
    return PromptToPrompt(pair, cross_replace=(0.0, 0.8))


def guidance():
    from retrace.attention.map_guidance import AttentionGuidance

    return AttentionGuidance(amount=0.1)


def plug_and_play():
    from retrace.attention.plug_and_play import PlugAndPlay

    return PlugAndPlay()


def null_text(model):
    from retrace.host.null_text import optimise

    return optimise(model, inverted(model), text(3), cfg=4.0, inner_steps=2,
                    early_stop=0.0)[0].null_embeddings  # fmt: skip


RUNS = {"p2p": edit(p2p), "guidance": edit(guidance), "plug-and-play": edit(plug_and_play),
        "null-text": null_text}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_same_when_weights_stay_off_the_device(name, model, short_of_memory):
    expected = RUNS[name](model)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    short_of_memory(model)
    found = RUNS[name](model)
    assert model.model.model_lowvram  # some weights stayed where they were
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert before.keys() == model.model.state_dict().keys()
