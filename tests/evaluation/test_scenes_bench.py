"""Scenes-Bench: its cases, and that PIE-Bench's loader reads what it writes."""

from collections import Counter

import numpy as np
import pytest
from retrace.evaluation import pie_bench, scenes_bench
from retrace.evaluation.scenes import check
from retrace.evaluation.scores import is_right


@pytest.fixture(scope="module")
def cases():
    return scenes_bench.bench_cases(per_kind=4)


def test_there_are_enough_cases_of_every_kind():
    found = scenes_bench.bench_cases()
    assert Counter(case.kind.type_id for case in found) == dict.fromkeys((1, 2, 3, 5, 6, 7, 8), 30)
    assert len({case.key for case in found}) == len(found) == 210


def test_cases_are_the_same_every_time(cases):
    assert scenes_bench.bench_cases(per_kind=4) == cases


def test_the_exact_target_is_right_and_the_source_is_not(cases):
    for bench in cases:
        case = bench.case
        before, after = (
            is_right(check(picture, case.target), case.attribute)
            for picture in (case.source_image, case.target_image)
        )
        assert after and not before, bench


def test_a_written_benchmark_is_read_back_whole(cases, tmp_path):
    scenes_bench.write(tmp_path, cases)
    read = pie_bench.load(tmp_path)
    assert not read.damaged and len(read) == len(cases)
    for bench, found in zip(cases, read, strict=True):
        case = bench.case
        assert found.key == bench.key and found.type_id == str(bench.kind.type_id)
        assert (found.source_prompt, found.target_prompt) == (
            case.source_caption, case.target_caption
        )  # fmt: skip
        assert (found.image() == case.source_image).all()
        inner = np.s_[1:-1, 1:-1]
        assert (found.mask()[inner] == ~case.keep_mask[inner]).all()
        assert scenes_bench.read_scenes(found.entry) == (case.source, case.target)


def test_edited_words_are_in_brackets_and_instructions_read_well(cases):
    found = {bench.kind.attribute: bench for bench in cases}
    colour = found["colour"]
    assert f"[{colour.case.target_word}]" in scenes_bench.describe(colour)["editing_prompt"]
    assert found["add"].instruction == f"add a {found['add'].case.target_word}"
    assert f"[{found['add'].case.target_word}]" in scenes_bench.describe(found["add"])[
        "editing_prompt"
    ]
    assert found["delete"].instruction == f"remove the {found['delete'].case.source_word}"
    assert found["add"].blended == "" and len(found["shape"].blended.split()) == 2


def test_reshapes_say_no_colour_and_swap_one_word():
    found = scenes_bench.draw_reshapes(5, seed=1)
    assert len(found) == 5
    for case in found:
        (item,) = case.source.objects
        assert case.source_caption.startswith(f"a {item.shape} on a ")
        assert scenes_bench.phrases(case) == (case.source_word, case.target_word)
