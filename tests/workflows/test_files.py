"""The workflow files: sound as graphs, faithful to what draws them, good as shared files."""

import json
import re
from itertools import pairwise

import pytest
from graphing.blueprint import draw_blueprint
from graphing.graph import write
from graphing.recipes import RECIPES
from hosting.layout import REPOSITORY
from workflow_api import to_api

import workflows as tool

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]
FOLDERS = {"CheckpointLoaderSimple": "checkpoints", "UNETLoader": "diffusion_models",
           "CLIPLoader": "text_encoders", "VAELoader": "vae"}  # fmt: skip
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def nodes_by_id(workflow: dict) -> dict[int, dict]:
    return {node["id"]: node for node in workflow["nodes"]}


def box(node: dict) -> tuple[float, float, float, float]:
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - 30, left + width, top + height  # the title lies above the node's place


def test_files_are_what_the_descriptions_draw(object_info):
    drawn = tool.draw_all(object_info)
    assert sorted(drawn) == [file.name for file in FILES]
    stale = [file.name for file in FILES if file.read_text(encoding="utf-8") != drawn[file.name]]
    assert not stale, "run python3 tools/workflows.py"


def test_blueprint_is_what_is_drawn(object_info):
    drawn = write(draw_blueprint(object_info, *tool.project()))
    assert tool.BLUEPRINT.read_text(encoding="utf-8") == drawn, "run python3 tools/workflows.py"


@each_file
def test_links_are_known_at_both_ends_and_types_agree(file, object_info):
    workflow = read(file)
    nodes = nodes_by_id(workflow)
    numbers = [link[0] for link in workflow["links"]]
    assert len(set(numbers)) == len(numbers)
    for number, origin, slot, target, place, kind in workflow["links"]:
        assert number in nodes[origin]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        declared = object_info[nodes[origin]["type"]]["output"][slot]
        assert kind == nodes[origin]["outputs"][slot]["type"] == declared
        assert nodes[target]["inputs"][place]["type"] in (kind, "*", "COMBO")
        assert nodes[origin]["order"] < nodes[target]["order"]
    wired = {
        slot["link"] for node in workflow["nodes"] for slot in node["inputs"] if slot["link"]
    }
    assert wired == set(numbers)
    assert max(nodes) <= workflow["last_node_id"]
    assert max(numbers) <= workflow["last_link_id"]
    assert workflow["version"] == 0.4


@each_file
def test_widget_values_are_as_many_as_the_page_shows(file, object_info):
    for node in read(file)["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs = object_info[node["type"]]["input"]
        specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
        kinds = [
            "COMBO" if isinstance(spec[0], list) else spec[0]
            for spec in specs.values()
            if not (len(spec) > 1 and spec[1].get("forceInput"))
        ]
        expected = sum(kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") for kind in kinds)
        # an upload button and a choice of what happens to a seed are fields of the page's own
        expected += any(len(spec) > 1 and spec[1].get("image_upload") for spec in specs.values())
        expected += sum(
            spec[1].get("control_after_generate", True)
            for name, spec in specs.items()
            if name in ("seed", "noise_seed")
        )
        assert len(node["widgets_values"]) == expected, node["type"]


@each_file
def test_groups_hold_their_nodes_and_nothing_overlaps(file):
    workflow = read(file)
    boxes = [box(node) for node in workflow["nodes"]]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom
            assert apart, workflow["nodes"][i]["type"]
    frames = []
    for group in workflow["groups"]:
        left, top, width, height = group["bounding"]
        frames.append((left, top, left + width, top + height))
    assert all(one[2] <= next_[0] for one, next_ in pairwise(frames))
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        inside = [f for f in frames if f[0] <= left and f[1] <= top and right <= f[2]]
        inside = [f for f in inside if bottom <= f[3]]
        assert len(inside) == (node["type"] != "MarkdownNote"), node["type"]


@each_file
def test_file_is_fit_to_share(file):
    workflow = read(file)
    notes = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1
    assert "Then change" in notes[0]["widgets_values"][0]
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = node["type"].startswith("Retrace")
        assert node["properties"]["cnr_id"] == ("retrace" if ours else "comfy-core")
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])
        if node["type"] in FOLDERS:
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["directory"] == FOLDERS[node["type"]]
    assert not re.search(r'"(/[a-z]+/|[A-Z]:\\\\)', json.dumps(workflow))


@each_file
def test_conversion_gives_back_what_was_described(file, object_info):
    """Drawing and converting are separate codes; each value must come back under its name."""
    workflow = read(file)
    prompt = to_api(workflow, object_info)
    recipe = next(r for r in sorted(RECIPES, key=lambda r: -len(r.name))
                  if file.stem.startswith(r.name))  # fmt: skip
    words = next(w for kit, w in recipe.words if file.stem == recipe.name + kit.suffix)
    (text,) = (n for n in prompt.values() if n["class_type"] == "PrimitiveStringMultiline")
    assert text["inputs"] == {"value": words.source}
    pairs = [n["inputs"] for n in prompt.values() if n["class_type"] == "RetracePromptPair"]
    assert bool(pairs) == bool(words.target)
    for pair in pairs[:1]:
        assert prompt[pair["source"][0]] is text
        assert (pair["target"], pair["alignment"]) == (words.target, "fixed")
    switched_on = [node for node in workflow["nodes"] if node["mode"] == 0]
    assert len(prompt) == len(switched_on) - 1  # less the note
    for node in prompt.values():
        assert set(node["inputs"]) >= set(object_info[node["class_type"]]["input"]["required"])


def test_demo_workflows_speak_of_the_scene_they_show(object_info):
    from retrace.demo.scenes import SCENES

    for recipe in RECIPES:
        for kit, words in recipe.words:
            if words.scene:
                source, _ = SCENES[words.scene].prompts
                assert words.source == source, recipe.name + kit.suffix


def test_every_node_is_in_a_workflow(object_info):
    ours = {name for name in object_info if name.startswith("Retrace")}
    used = {node["type"] for file in FILES for node in read(file)["nodes"]}
    assert ours <= used
