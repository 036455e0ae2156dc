"""Nodes as users and their saved workflows meet them, on a live server."""

import copy
import json
import urllib.request

import help_pages
import pytest
from graphing.schemas import broken_promises, snapshot
from graphing.slots import read_slots
from hosting.layout import REPOSITORY

SNAPSHOT = json.loads((REPOSITORY / "tests" / "nodes" / "schemas.json").read_text("utf-8"))
on_server = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]
LANGUAGES = ("en", "zh")


def marked(function):
    for mark in on_server:
        function = mark(function)
    return function


@pytest.fixture
def ours(object_info) -> dict:
    return {name: info for name, info in object_info.items() if name.startswith("Retrace")}


@marked
def test_saved_workflows_keep_working(object_info):
    assert broken_promises(SNAPSHOT, snapshot(object_info)) == []


@marked
def test_snapshot_is_complete(object_info):
    assert SNAPSHOT == snapshot(object_info), "run python3 tools/schemas.py"


@marked
def test_every_node_says_what_it_does(ours):
    for name, info in ours.items():
        assert len(info["description"]) > 40, name
        assert info["category"].startswith("image editing/retrace"), name
        assert info["display_name"].replace("-", "").isalnum(), name


@marked
def test_every_input_and_output_has_a_tooltip(ours):
    for name, info in ours.items():
        for slot in read_slots(info):
            assert len(slot.options.get("tooltip") or "") > 8, f"{name}.{slot.name}"
        tooltips = info.get("output_tooltips") or []
        assert len(tooltips) == len(info["output"]), name
        assert all(len(tooltip or "") > 8 for tooltip in tooltips), name


@marked
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_its_inputs(ours, language):
    for name, info in ours.items():
        page = REPOSITORY / "web" / "docs" / name / f"{language}.md"
        assert page.is_file(), page
        text = page.read_text(encoding="utf-8")
        assert info["display_name"] in text, page
        for slot in read_slots(info):
            assert f"`{slot.name}`" in text, f"{page}: {slot.name}"
        for output in info["output_name"]:
            assert f"`{output}`" in text, f"{page}: {output}"


@marked
def test_every_node_is_translated_as_the_page_expects(ours, client):
    served = client.get("/i18n")
    for name, info in ours.items():
        told = served["zh"]["nodeDefs"][name]
        assert told["display_name"] and told["description"], name
        for slot in read_slots(info):
            words = told["inputs"][slot.name]
            assert words["name"] and words["tooltip"], f"{name}.{slot.name}"
        assert len(told["inputs"]) == len(read_slots(info)), name
        assert list(told["outputs"]) == [str(i) for i in range(len(info["output"]))], name
        for i, words in told["outputs"].items():
            assert words["name"] and words["tooltip"], f"{name} output {i}"


@marked
def test_help_pages_have_the_nodes_present_inputs(object_info):
    for page, text in help_pages.fill_all(object_info).items():
        assert page.read_text("utf-8") == text, "run python3 tools/help_pages.py"


@marked
def test_help_pages_and_workflows_are_served(ours, client):
    for name in ours:
        page = f"{client.url}/extensions/retrace/docs/{name}/en.md"
        with urllib.request.urlopen(page) as answer:
            assert answer.read().startswith(b"# "), name
    assert "edit_word_swap" in client.get("/api/workflow_templates")["retrace"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda nodes: nodes.pop("RetraceEditSampler"), "is gone"),
        (lambda nodes: nodes["RetraceEditSampler"]["inputs"].pop("cfg"), "lost inputs"),
        (lambda nodes: nodes["RetraceEditSampler"]["inputs"]["cfg"].update(default=5), "was"),
        (lambda nodes: nodes["RetraceEditSampler"]["outputs"].pop(), "outputs were"),
        (
            lambda nodes: nodes["RetraceP2PController"]["inputs"]["mode"]["choices"].pop(),
            "lost the choices",
        ),
        (
            lambda nodes: nodes["RetraceEditSampler"]["inputs"].update(
                cfg=nodes["RetraceEditSampler"]["inputs"].pop("cfg")
            ),
            "another order",
        ),
        (
            lambda nodes: nodes["RetraceEditSampler"]["inputs"].update(
                new={"type": "INT", "required": True}
            ),
            "has to be optional",
        ),
    ],
)
def test_change_that_breaks_workflows_is_told(change, said):
    new = copy.deepcopy(SNAPSHOT)
    change(new)
    (told,) = broken_promises(SNAPSHOT, new)
    assert said in told


def test_added_optional_input_and_node_break_nothing():
    new = copy.deepcopy(SNAPSHOT)
    new["RetraceNew"] = new["RetraceEditSampler"]
    new["RetraceEditSampler"]["inputs"]["new"] = {"type": "INT", "required": False}
    assert broken_promises(SNAPSHOT, new) == []
