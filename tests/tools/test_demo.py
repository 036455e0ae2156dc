"""The parts of the demo that need no server."""

import argparse
import json

import numpy as np
import pytest
from hosting import demo, imaging
from hosting.client import Run
from hosting.errors import HostError
from hosting.pictures import add_missing_pictures, picture_nodes
from PIL import Image


def workflow() -> dict:
    """An edit in the API form that shows only its edit, through a node in between."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "RetraceDemoModel", "inputs": {}},
        "3": {"class_type": "RetraceInvertDDIM", "inputs": {"model": ["2", 0], "steps": 50}},
        "4": {"class_type": "RetraceP2PController", "inputs": {"model": ["2", 0]}},
        "5": {"class_type": "RetraceEditSampler", "inputs": {"model": ["4", 0], "cfg": 7.5}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["2", 2]}},
        "7": {"class_type": "ImageInvert", "inputs": {"image": ["6", 0]}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_shown_edit_is_found_and_the_reconstruction_added():
    prompt = workflow()
    assert picture_nodes(prompt) == {"edit": "8"}
    add_missing_pictures(prompt)
    shown = picture_nodes(prompt)
    assert shown.keys() == {"edit", "reconstruction"}
    decoder = prompt[prompt[shown["reconstruction"]]["inputs"]["images"][0]]
    assert decoder["inputs"] == {"samples": ["5", 1], "vae": ["2", 2]}


def test_an_edit_pasted_back_into_the_photo_is_the_edit_and_not_its_mask():
    prompt = workflow()
    prompt["10"] = {"class_type": "VAEDecode", "inputs": {"samples": ["5", 1], "vae": ["2", 2]}}
    prompt["7"] = {
        "class_type": "RetracePasteBack",
        "inputs": {"edited": ["6", 0], "source": ["10", 0], "image": ["1", 0], "mask": ["5", 2]},
    }
    assert picture_nodes(prompt) == {"edit": "8"}


@pytest.mark.parametrize(
    ("node", "name", "value"), [("4", "blend_target", "cat"), ("5", "mask", ["1", 1])]
)
def test_mask_is_shown_where_one_is_asked_for(node, name, value):
    prompt = workflow()
    prompt[node]["inputs"][name] = value
    add_missing_pictures(prompt)
    assert "mask" in picture_nodes(prompt)


def test_workflow_without_an_edit_is_left_alone():
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
    add_missing_pictures(prompt)
    assert list(prompt) == ["1"]


def test_options_reach_their_node():
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    options = parser.parse_args(["--steps", "20", "--cfg", "5", "--cross-replace", "0.8"])
    assert (options.steps, options.cfg, options.cross_replace) == (20, 5.0, 0.8)
    prompt = workflow()
    demo.set_input(prompt, "RetraceInvertDDIM", "steps", options.steps)
    assert prompt["3"]["inputs"]["steps"] == 20
    with pytest.raises(HostError, match=r"RetraceP2PController.*blend_start"):
        demo.set_input(prompt, "RetraceP2PController", "blend_start", 0.2)


def test_seconds_are_summed_by_stage():
    run = Run("id", {}, {"2": 1.0, "3": 2.0, "5": 3.0, "6": 0.5, "demo-reconstruction": 0.5})
    prompt = workflow()
    add_missing_pictures(prompt)
    assert demo.seconds_by_stage(prompt, run) == {
        "the rest": 1.0,
        "inversion": 2.0,
        "edit": 3.0,
        "decode": 1.0,
    }


def test_row_forwards_are_read_from_what_nodes_say():
    text = ["prediction: eps\nrow-forwards: 130\nmodel-calls: 50"]
    run = Run("id", {"5": {"text": text}, "3": {"text": ["words"]}, "8": {"images": []}}, {})
    said = demo.notes(workflow(), run)
    assert said.keys() == {"RetraceEditSampler", "RetraceInvertDDIM"}
    assert demo.row_forwards(said) == {"RetraceEditSampler": 130}
    refined = {"Null-text": ["row-forwards: 50", "seconds: 2", "null-row-forwards: 600",
                             "null-row-backwards: 400"]}  # fmt: skip
    assert demo.row_forwards(refined) == {"Null-text": 600}


def test_psnr_is_the_textbook_one():
    grey = np.full((4, 4, 3), 100, np.uint8)
    lighter = grey + np.uint8(1)
    assert imaging.psnr(grey, lighter) == pytest.approx(48.1308, abs=1e-4)
    assert imaging.psnr(grey, grey) == float("inf")
    lighter[0, 0] = 255
    assert imaging.psnr(grey, lighter, np.arange(16).reshape(4, 4) > 0) == pytest.approx(48.1308)


def test_picture_is_brought_to_a_size_the_model_takes(tmp_path):
    Image.new("RGBA", (300, 200)).save(tmp_path / "in.png")
    told = imaging.prepare(str(tmp_path / "in.png"), str(tmp_path / "out.png"), 128)
    assert told == {"was": [300, 200], "size": [128, 128]}
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.size, picture.mode) == ((128, 128), "RGB")


def test_bundled_scene_has_an_exact_target(tmp_path):
    scene = imaging.make_scene("colour", str(tmp_path))
    pixels = {name: np.asarray(Image.open(scene[name])) for name in ("source", "exact", "keep")}
    changed = (pixels["source"] != pixels["exact"]).any(-1)
    assert 0 < changed.mean() < 0.3
    assert np.array_equal(pixels["keep"] == 255, ~changed)
    source, target = (prompt.split() for prompt in scene["prompts"])
    assert sum(a != b for a, b in zip(source, target, strict=True)) == 1


def test_sheet_and_figures_are_made(tmp_path):
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    edit = source.copy()
    edit[:8] = 0
    keep = np.zeros((32, 32), np.uint8)
    keep[8:] = 255
    for name, picture in {"source": source, "edit": edit, "mask": 255 - keep}.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    pictures = {name: str(tmp_path / f"{name}.png") for name in ("source", "edit", "mask")}
    report = imaging.finish(str(tmp_path), pictures, {"edit": "some long words " * 9}, None, None)
    assert report["outside"] == float("inf")
    assert "mask" in report["outside means"]
    with Image.open(report["sheet"]) as sheet:
        assert sheet.width > 3 * 256
    assert json.dumps(report)


@pytest.mark.parametrize(
    ("value", "said"), [(None, "not applicable"), (float("inf"), "exact"), (31.25, "31.2 dB")]
)
def test_decibels_are_written(value, said):
    assert said in demo.decibels(value)
