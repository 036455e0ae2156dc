"""The trajectory viewer: decoded states, labels, and the round-trip error."""

import pytest
import torch
from helpers_host import conditioning

pytestmark = pytest.mark.host

SCALE = 0.18215


class UpscaleVae:
    """A decoder whose pictures show the latent's first three channels, eight times as large."""

    def decode(self, samples):
        picture = samples[:, :3].movedim(1, -1)
        return picture.repeat_interleave(8, 1).repeat_interleave(8, 2) * 0.1 + 0.5


@pytest.fixture(scope="module")
def inverted(tiny3, golden):
    from retrace.host.inversion import invert

    z0 = golden("inputs")[0]["z0_tiny3"]
    embedding = golden("prompt_embeddings")[0]["embeddings"][:1]
    return lambda **options: invert(
        tiny3, conditioning(embedding), {"samples": z0 / SCALE}, steps=4, **options
    )[0]


def test_states_come_back_in_the_scale_the_vae_decodes(inverted):
    from retrace.host.viewing import state_at, to_latent_scale

    trajectory = inverted()
    outer = to_latent_scale(trajectory, state_at(trajectory, 3))
    assert torch.allclose(outer, state_at(trajectory, 3) / SCALE, atol=1e-4)


def test_the_first_picture_is_the_decoded_clean_latent(inverted):
    from retrace.host.viewing import CAPTION, filmstrip

    trajectory = inverted()
    strip = filmstrip(trajectory, UpscaleVae(), 3)
    wanted = UpscaleVae().decode(trajectory.clean)[0].clamp(0, 1)
    assert strip.shape == (1, 256 + CAPTION, 3 * 260, 3)
    assert torch.allclose(strip[0, CAPTION:, 2:258], wanted, atol=1e-4)


def test_there_are_never_more_pictures_than_states(inverted):
    from retrace.host.viewing import filmstrip

    assert filmstrip(inverted(), UpscaleVae(), 50).shape[2] == 5 * 260


def test_no_frames_are_refused(inverted):
    from retrace.diffusion.errors import PlanError
    from retrace.host.viewing import filmstrip

    with pytest.raises(PlanError, match="frames"):
        filmstrip(inverted(), UpscaleVae(), 0)


def test_the_round_trip_is_the_error_of_sampling_with_the_source_prompt(tiny3, inverted):
    from retrace.host.editing import run_edit
    from retrace.host.viewing import round_trip

    trajectory = inverted()
    errors = round_trip(tiny3, trajectory)
    result = run_edit(tiny3, trajectory, trajectory.source, None, cfg=1.0)
    wanted = (result.source - trajectory.clean).norm() / trajectory.clean.norm()
    assert len(errors) == 4 and abs(errors[-1] - float(wanted)) < 1e-5


def test_a_refined_inversion_has_the_smaller_error(tiny3, inverted):
    from retrace.host.viewing import round_trip

    assert round_trip(tiny3, inverted(refine=8))[-1] < 0.2 * round_trip(tiny3, inverted())[-1]


def test_guidance_without_a_negative_is_refused(tiny3, inverted):
    from retrace.diffusion.errors import PlanError
    from retrace.host.viewing import round_trip

    with pytest.raises(PlanError, match="negative"):
        round_trip(tiny3, inverted(), cfg=7.5)


def test_the_view_reports_and_plots(tiny3, inverted):
    from retrace.host.viewing import view

    strip, report, plot = view(inverted(), UpscaleVae(), 4, model=tiny3)
    assert report["solver"] == "euler" and 0 < report["round_trip_error"] < 1
    assert strip.shape[0] == 1 and plot.std() > 0.05
    assert view(inverted(), UpscaleVae(), 4)[2].std() == 0
