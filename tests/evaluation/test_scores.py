"""Scores of pictures whose quality is known."""

import math

import pytest
from retrace.evaluation.scenes import swap_cases
from retrace.evaluation.scores import score_batch, summarise, to_pictures

CASES = swap_cases(4, seed=3)


def score(method, pictures):
    images = to_pictures(pictures).movedim(1, -1)
    source = to_pictures([case.source_image for case in CASES]).movedim(1, -1)
    return score_batch(method, range(4), CASES, images, source, source, (50, 130), 0.5)


def test_the_exact_target_scores_perfectly():
    scores = score("exact", [case.target_image for case in CASES])
    assert all(one.right and one.all_right for one in scores)
    assert all(one.keep == one.exact == math.inf for one in scores)
    assert all(one.keep_ssim == pytest.approx(1) for one in scores)


def test_the_untouched_source_keeps_everything_and_edits_nothing():
    scores = score("nothing", [case.source_image for case in CASES])
    assert not any(one.right for one in scores)
    assert all(one.keep == math.inf and one.exact < 40 for one in scores)


def test_a_change_inside_the_edit_costs_nothing_of_what_must_stay():
    scores = score("mixed", [
        case.target_image * case.keep_mask[..., None] for case in CASES
    ])  # fmt: skip
    assert all(one.keep == math.inf for one in scores)


def test_summaries_average_over_cases_and_split_by_attribute():
    scores = score("nothing", [case.source_image for case in CASES])
    scores += score("exact", [case.target_image for case in CASES])
    nothing, exact = summarise(scores)
    assert (nothing.method, exact.method) == ("nothing", "exact")
    assert nothing.right == {"colour": 0, "shape": 0} and exact.right == {"colour": 1, "shape": 1}
    assert exact.rows == (50, 130) and exact.count == 4
    assert nothing.exact == pytest.approx(sum(s.exact for s in scores[:4]) / 4)


def test_the_look_is_the_source_object_s_colour_with_its_shade():
    reshaped = [one for one in score("exact", [case.target_image for case in CASES])
                if one.attribute == "shape"]  # fmt: skip
    assert reshaped and all(one.look < 1.0 for one in reshaped)
    darker = [one for one in score("dark", [case.target_image - case.target_image // 8
                                            for case in CASES]) if one.attribute == "shape"]
    assert all(one.look > 3.0 for one in darker)


def test_the_look_of_a_recoloured_object_is_not_asked_for():
    scores = score("exact", [case.target_image for case in CASES])
    assert all(math.isnan(one.look) for one in scores if one.attribute == "colour")
