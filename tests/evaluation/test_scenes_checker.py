"""The checker: right on exact pictures, wrong as soon as one attribute is another."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from retrace.evaluation.scenes import (
    check,
    edit_scene,
    held_out_scenes,
    read_picture,
    remove_object,
    render,
    swap_cases,
)

ATTRIBUTES = ("colour", "shape", "background", "pattern")


def test_every_attribute_of_300_exact_renders_is_right():
    for scene in held_out_scenes(300, seed=11):
        result = check(render(scene), scene)
        assert result.all and result.located, scene


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_changed_attribute_is_wrong_and_the_others_stay_right(attribute):
    for case in swap_cases(60, 12, (attribute,)):
        result = check(case.source_image, case.target)
        assert not result.all
        verdicts = {name: getattr(result, name) for name in ATTRIBUTES}
        assert verdicts == {name: name != attribute for name in ATTRIBUTES}, case


def test_a_missing_or_a_further_object_is_wrong():
    for scene in [s for s in held_out_scenes(60, seed=13) if len(s.objects) == 2][:10]:
        single = remove_object(scene, 1)
        assert not check(render(single), scene).count
        assert not check(render(scene), single).count
        assert not check(render(single), scene).colour


def test_colours_swapped_between_two_objects_are_wrong():
    scene = next(s for s in held_out_scenes(60, seed=14) if _two_shapes(s))
    first, second = (item.colour for item in scene.objects)
    free = next(c for c in ("pink", "green", "red", "black") if c not in _colours(scene))
    swapped = edit_scene(scene, "colour", free, 0)
    swapped = edit_scene(edit_scene(swapped, "colour", first, 1), "colour", second, 0)
    assert not check(render(swapped), scene).all


def test_an_object_elsewhere_is_right_but_not_located():
    scene = next(s for s in held_out_scenes(60, seed=15) if _is_left(s))
    result = check(render(edit_scene(scene, "position", "right")), scene)
    assert result.all and not result.located


@pytest.mark.parametrize("seed", [16, 17])
def test_mild_blur_and_noise_change_nothing(seed):
    rng = np.random.default_rng(seed)
    scenes = held_out_scenes(40, seed)
    verdicts = []
    for scene in scenes:
        blurred = Image.fromarray(render(scene)).filter(ImageFilter.GaussianBlur(0.7))
        noisy = np.asarray(blurred) / 255 + 0.015 * rng.standard_normal((128, 128, 3))
        verdicts.append(check(noisy, scene).all)
    assert np.mean(verdicts) >= 0.97


def test_a_bare_background_has_no_objects():
    scene = held_out_scenes(1, seed=18)[0]
    ground = render(scene).copy()
    ground[:] = (238, 238, 238)
    reading = read_picture(ground)
    assert (reading.background, reading.pattern, reading.objects) == ("white", "plain", ())


def test_grey_and_noise_are_no_background():
    rng = np.random.default_rng(0)
    assert read_picture(np.full((128, 128, 3), 0.5)).background is None
    assert read_picture(rng.random((128, 128, 3))).background is None


def test_a_blob_is_no_shape():
    scene = next(s for s in held_out_scenes(60, seed=19) if len(s.objects) == 1)
    item = scene.objects[0]
    ys, xs = np.mgrid[:128, :128]
    bar = (abs(xs - item.x) < 9) & (abs(ys - item.y) < 22)  # no shape is so narrow
    picture = render(scene).copy()
    picture[:] = picture[0, 0]
    picture[bar] = (0, 255, 0)
    assert read_picture(picture).objects[0].shape is None


def test_larger_pictures_are_brought_to_size():
    scene = held_out_scenes(1, seed=20)[0]
    assert check(render(scene, 256), scene).all


def test_a_wrong_layout_is_refused():
    with pytest.raises(ValueError, match="expected a picture"):
        read_picture(np.zeros((3, 128, 128)))


def _colours(scene):
    return {scene.background.colour, *(item.colour for item in scene.objects)}


def _two_shapes(scene):
    return len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape


def _is_left(scene):
    return len(scene.objects) == 1 and scene.objects[0].x < 50
