"""PIE-Bench's format: masks, prompts, damaged entries; Scenes-Bench written and read in it."""

import json

import numpy as np
import pytest
from PIL import Image
from retrace.evaluation import pie_bench


def entry(**changes):
    found = {
        "image_path": "1_change_object_80/1_artificial/1_animal/111000000000.jpg",
        "original_prompt": "a [cat] sitting on a bench",
        "editing_prompt": "a [dog] sitting on a [wooden bench]",
        "editing_instruction": "change the cat to a dog",
        "editing_type_id": "1",
        "blended_word": "cat dog",
        "mask": [10, 5, 600, 20],
    }
    return {**found, **changes}


@pytest.fixture
def folder(tmp_path):
    """A data set of one good entry; `add` puts further ones beside it."""
    file = tmp_path / pie_bench.IMAGES / entry()["image_path"]
    file.parent.mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(file)
    (tmp_path / pie_bench.MAPPING).write_text(json.dumps({"111000000000": entry()}))
    return tmp_path


def load_with(folder, other):
    file = folder / pie_bench.MAPPING
    file.write_text(json.dumps({"bad": other, **json.loads(file.read_text())}))
    return pie_bench.load(folder)


def test_an_entry_is_read_as_the_published_code_reads_it(folder):
    (case,) = pie_bench.load(folder)
    assert case.source_prompt == "a cat sitting on a bench"
    assert case.target_prompt == "a dog sitting on a wooden bench"
    assert case.edited_words == ("dog", "wooden bench")
    assert case.blended == ("cat", "dog")
    assert (case.type_name, case.instruction) == ("change object", "change the cat to a dog")
    assert case.image().shape == (512, 512, 3)


def test_mask_equals_the_published_decoding(golden):
    tensors, _ = golden("metrics/metrics")
    runs = tensors["rle"].tolist()
    assert (pie_bench.decode_mask(runs) == tensors["mask"].numpy().astype(bool)).all()


def test_mask_runs_over_rows_is_cut_at_the_end_and_has_its_border_set():
    mask = pie_bench.decode_mask([7, 2, 23, 99], (5, 5))
    inner = np.zeros((5, 5), bool)
    inner[1, 2:4] = True
    assert (mask[1:-1, 1:-1] == inner[1:-1, 1:-1]).all()
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    bare = pie_bench.decode_mask([7, 2, 23, 99], (5, 5), border=False)
    assert bare.sum() == 4 and bare[4, 3:].all()


def test_encoding_is_the_inverse_of_decoding():
    masks = np.random.default_rng(0).random((50, 6, 9)) < 0.5
    for mask in masks:
        runs = pie_bench.encode_mask(mask)
        assert (pie_bench.decode_mask(runs, (6, 9), border=False) == mask).all()


DAMAGED = [
    (entry(image_path="gone.jpg"), "gone.jpg is missing"),
    (entry(image_path="../../secret.png"), "leads out of"),
    (entry(mask=[1, 2, 3]), "come in pairs"),
    (entry(mask=[0, 4, 512 * 512, 1]), "outside its 512 x 512"),
    (entry(mask=[0, -4]), "outside its 512 x 512"),
    (entry(mask="0 4"), "not a list of whole numbers"),
    (entry(mask=[0.5, 1]), "not a list of whole numbers"),
    (entry(mask_size=[128, 128], mask=[0, 1]), "512 x 512 but its mask 128 x 128"),
    (entry(mask_size="big"), "mask_size"),
    (entry(editing_type_id="12"), "unknown editing_type_id '12'"),
    (entry(original_prompt="[]"), "original_prompt is empty"),
    (entry(editing_prompt=None), "editing_prompt is empty or no text"),
    (entry(blended_word="cat  dog"), "not two words"),
    ({"image_path": "x.jpg"}, "lacks original_prompt, editing_prompt"),
    (["not", "an", "entry"], "is a list, not an object"),
]


@pytest.mark.parametrize(("other", "reason"), DAMAGED)
def test_a_damaged_entry_is_named_with_its_reason_and_the_rest_is_read(folder, other, reason):
    bench = load_with(folder, other)
    assert list(bench.damaged) == ["bad"] and reason in bench.damaged["bad"]
    assert [case.key for case in bench] == ["111000000000"]


def test_a_file_that_is_no_picture_is_damaged(folder):
    (folder / pie_bench.IMAGES / "text.jpg").write_text("not a picture")
    bench = load_with(folder, entry(image_path="text.jpg"))
    assert "text.jpg is not a picture" in bench.damaged["bad"]


def test_a_truncated_picture_is_refused_when_it_is_read(folder):
    whole = (folder / pie_bench.IMAGES / entry()["image_path"]).read_bytes()
    (folder / pie_bench.IMAGES / "half.jpg").write_bytes(whole[: len(whole) // 2])
    case = load_with(folder, entry(image_path="half.jpg")).cases[0]
    with pytest.raises(pie_bench.DamagedEntry, match=r"half\.jpg cannot be decoded"):
        case.image()


@pytest.mark.parametrize(("text", "words"), [(None, "has no"), ("{", "not JSON"), ("[]", "object")])
def test_a_folder_without_a_mapping_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / pie_bench.MAPPING).write_text(text)
    with pytest.raises(ValueError, match=words):
        pie_bench.load(tmp_path)
