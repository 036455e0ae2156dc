"""Edits of scenes in batches: mixing prompts in a batch changes nothing."""

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def demo(comfy):
    from retrace.demo.bundle import load_demo

    return load_demo()


@pytest.fixture(scope="module")
def cases():
    from retrace.evaluation.scenes import swap_cases

    return swap_cases(12, seed=5)


def bench(demo, cases):
    from retrace.evaluation.settings import Settings
    from retrace.evaluation.workbench import Workbench

    return Workbench(demo, cases, Settings(steps=3, cfg=3.0, cross=0.5, self_=0.5))


def test_every_case_is_in_one_batch_of_at_most_the_size_asked_for(demo, cases):
    from retrace.evaluation.workbench import batches

    found = batches(demo.clip, cases, 3)
    assert sorted(number for batch in found for number in batch) == list(range(12))
    assert max(map(len, found)) == 3
    assert found == batches(demo.clip, cases, 3)


@pytest.mark.parametrize("name", ["P2P", "DirectInversion + P2P"])
def test_a_batch_of_different_prompts_equals_edits_one_by_one(demo, cases, name):
    from retrace.evaluation.methods import METHODS
    from retrace.evaluation.workbench import batches

    chosen = [cases[number] for number in batches(demo.clip, cases, 2)[0]]
    assert chosen[0].source_caption != chosen[1].source_caption
    together = METHODS[name](bench(demo, chosen))
    for row, case in enumerate(chosen):
        alone = METHODS[name](bench(demo, [case]))
        torch.testing.assert_close(together.edited[row], alone.edited[0], atol=1e-3, rtol=1e-3)
        assert alone.rows == together.rows


def test_row_forwards_are_those_of_one_picture(demo, cases):
    from retrace.evaluation.methods import METHODS

    def rows(name):
        return METHODS[name](bench(demo, cases[:1])).rows

    assert rows("plain DDIM") == (3, 3 * 2)
    # windows of half of three steps: int(.5 * 4) = 2 steps of cross-attention
    assert rows("P2P") == (3, 2 * 4 + 1 * 2)
    assert rows("DDIM + P2P") == (3, 3 * 4)  # the same with its reconstruction
    assert rows("DirectInversion + P2P") == (3, 2 * 3 + 1 * 2)


def test_inversions_are_made_once_for_all_methods(demo, cases):
    one = bench(demo, cases[:1])
    assert one.ddim() is one.ddim()


def test_sentences_for_a_direction_differ_in_the_swapped_word_only(comfy, cases):
    from retrace.evaluation.direction_methods import SENTENCES, sentence_sets

    for case in cases[:4]:
        before, after = sentence_sets(case)
        assert len(before) == len(after) == SENTENCES
        for old, new in zip(before, after, strict=True):
            assert len(old.split()) == len(case.source_caption.split())
            changed = [i for i, (a, b) in enumerate(zip(old.split(), new.split(), strict=True))
                       if a != b]  # fmt: skip
            assert len(changed) == 1 and old.split()[changed[0]] == case.source_word
            assert new.split()[changed[0]] == case.target_word


def test_a_pasted_edit_is_the_photo_itself_where_nothing_was_edited(demo, cases):
    from retrace.evaluation.methods import METHODS
    from retrace.evaluation.workbench import batches

    chosen = [cases[number] for number in batches(demo.clip, cases, 2)[0]]
    one = bench(demo, chosen)
    photos = torch.stack([torch.from_numpy(case.source_image) for case in chosen]) / 255
    made = METHODS["DirectInversion + P2P + LocalBlend, pasted back"](one)
    assert 0 < float(made.mask.mean()) < 1
    edited, source = one.decode(made.edited), one.decode(made.source)
    found, reconstructed = one.pictures(made)
    assert torch.equal(reconstructed, source)
    levels = 255 * (edited - source).abs().amax(-1)
    kept, replaced = (made.mask == 0) | (levels < 15.9), (made.mask == 1) & (levels > 48.1)
    assert kept.any() and replaced.any()
    assert torch.equal(found[kept], photos[kept])
    torch.testing.assert_close(found[replaced], edited[replaced])
    plain = METHODS["DirectInversion + P2P + LocalBlend"](one)
    assert torch.equal(plain.edited, made.edited)
    assert torch.equal(one.pictures(plain)[0], one.decode(plain.edited))
