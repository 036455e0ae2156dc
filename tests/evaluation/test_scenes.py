"""Scenes, their pictures and captions: values that render exactly and edit exactly."""

import numpy as np
import pytest
from retrace.evaluation.scenes import (
    Background,
    Scene,
    SceneObject,
    add_object,
    caption,
    edit_scene,
    held_out_prompts,
    held_out_scenes,
    remove_object,
    render,
    sample_scene,
    swap_cases,
)
from retrace.evaluation.scenes.scene import position_words, size_word
from retrace.evaluation.scenes.vocabulary import COLOURS

BALL = SceneObject("circle", "red", 42.0, 64.0, 20.0)
SCENE = Scene(Background("white", "striped"), (BALL,))
PAIR = add_object(SCENE, SceneObject("star", "blue", 95.0, 64.0, 25.0))


def test_a_seed_gives_the_same_scenes_and_pictures():
    first, second = held_out_scenes(5, seed=3), held_out_scenes(5, seed=3)
    assert first == second
    assert np.array_equal(render(first[0]), render(second[0]))
    assert first != held_out_scenes(5, seed=4)


def test_training_seeds_are_refused_for_held_out_scenes():
    with pytest.raises(ValueError, match="held-out seeds"):
        held_out_scenes(1, seed=1_000_000)


def test_objects_keep_off_the_border_and_off_each_other():
    rng = np.random.default_rng(0)
    for scene in (sample_scene(rng) for _ in range(300)):
        for item in scene.objects:
            assert item.radius * 1.05 < min(item.x, item.y, 128 - item.x, 128 - item.y)
        if len(scene.objects) == 2:
            first, second = scene.objects
            apart = max(abs(first.x - second.x), abs(first.y - second.y))
            assert apart > first.radius + second.radius
        colours = [scene.background.colour, *(item.colour for item in scene.objects)]
        assert len(set(colours)) == len(colours)


def test_a_picture_has_the_colours_of_its_scene_where_they_belong():
    picture = render(SCENE)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[64, 42]) == COLOURS["red"]
    assert tuple(picture[2, 2]) == COLOURS["white"]
    assert tuple(picture[2, 18]) == tuple(round(c * 0.8) for c in COLOURS["white"])


def test_sizes_show_the_same_scene():
    small, large = render(SCENE, 64), render(SCENE, 256, supersample=2)
    assert np.abs(large.reshape(64, 4, 64, 4, 3).mean((1, 3)) - small).mean() < 1.0


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ("none", "a red circle and a blue star on a striped white background"),
        ("size", "a small red circle and a blue star on a striped white background"),
        ("position", "a red circle left of a blue star on a striped white background"),
        ("full", "a small red circle left of a blue star on a striped white background"),
    ],
)
def test_a_caption_says_as_much_as_asked(details, expected):
    assert caption(PAIR, details) == expected


def test_a_single_object_is_placed_by_words():
    assert caption(SCENE, "position") == "a red circle at the left on a striped white background"


def test_at_least_two_captions_in_five_leave_size_and_position_out():
    texts = [text for _, text in held_out_prompts(500)]
    details = {"small", "large", "at", "in", "of", "above", "below"}
    assert sum(details.isdisjoint(text.split()) for text in texts) >= 200


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("colour", "green"), ("shape", "heart"), ("background", "pink"), ("pattern", "plain")],
)
def test_an_edit_changes_its_attribute_and_can_be_taken_back(attribute, value):
    edited = edit_scene(SCENE, attribute, value)
    assert edited != SCENE
    old = {"colour": "red", "shape": "circle", "background": "white", "pattern": "striped"}
    assert edit_scene(edited, attribute, old[attribute]) == SCENE


def test_size_and_position_edits_are_what_a_caption_then_says():
    assert size_word(edit_scene(SCENE, "size", "large").objects[0]) == "large"
    assert position_words(edit_scene(SCENE, "position", "right").objects[0]) == ("right", "middle")
    assert position_words(edit_scene(SCENE, "position", "top").objects[0]) == ("left", "top")


def test_adding_and_removing_an_object_are_inverse():
    assert remove_object(PAIR, 1) == SCENE


def test_an_edit_that_hides_an_object_or_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="hide"):
        edit_scene(SCENE, "colour", "white")
    with pytest.raises(ValueError, match="unknown attribute"):
        edit_scene(SCENE, "mood", "happy")
    with pytest.raises(ValueError, match="unknown shape"):
        edit_scene(SCENE, "shape", "cube")


def test_captions_of_a_swap_differ_in_exactly_one_word():
    for case in swap_cases(60, 1, ("colour", "shape", "background", "pattern")):
        before, after = case.source_caption.split(), case.target_caption.split()
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert changed == [(case.source_word, case.target_word)]


def test_keep_mask_is_where_both_exact_pictures_agree():
    for case in swap_cases(20, 2):
        equal = (render(case.source) == render(case.target)).all(-1)
        assert np.array_equal(case.keep_mask, equal)
        assert 0.5 < case.keep_mask.mean() < 1.0


def test_swap_cases_are_the_same_for_the_same_seed():
    assert swap_cases(6, 5) == swap_cases(6, 5)
    with pytest.raises(ValueError, match="attributes"):
        swap_cases(1, 0, ("mood",))
