"""Saved workflows to the API form, against descriptions as a server gives them."""

import pytest
from workflow_api import WorkflowError, to_api

INFO = {
    "Load": {
        "input": {
            "required": {"image": [["a.png", "b.png"], {"image_upload": True}]},
            "optional": {},
        },
        "output": ["IMAGE"],
        "display_name": "Load Image",
    },
    "Sample": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "seed": ["INT", {"default": 0}],
                "steps": ["INT", {"default": 20}],
                "name": [["euler", "heun"]],
            },
            "optional": {
                "text": ["STRING", {"multiline": True}],
                "size": ["INT", {"forceInput": True}],
            },
        },
    },
    "Choose": {
        "input": {
            "required": {
                "mode": ["COMBO", {"options": ["auto", "replace"], "control_after_generate": True}],
                "seed": ["INT", {"control_after_generate": False}],
                "on": ["BOOLEAN", {"default": True}],
                "amount": ["FLOAT", {}],
            },
        },
        "input_order": {"required": ["on", "mode", "seed", "amount"]},
    },
    "Show": {"input": {"required": {"images": ["IMAGE"]}}},
    "Points": {"input": {"required": {"points": ["STRING", {}]}}},
}


def node(number, kind, inputs=(), values=None, mode=0, **more):
    """A saved node; inputs are (name, link) or (name, link, type)."""
    slots = [
        {"name": name, "link": link, "type": rest[0] if rest else "IMAGE"}
        for name, link, *rest in inputs
    ]
    saved = {"id": number, "type": kind, "mode": mode, "inputs": slots, **more}
    return saved if values is None else {**saved, "widgets_values": values}


def graph(*nodes, links=()):
    """A saved workflow; links are (id, from, slot, to, slot)."""
    return {"nodes": list(nodes), "links": [[*link, "IMAGE"] for link in links]}


def inputs(workflow, number):
    return to_api(workflow, INFO)[str(number)]["inputs"]


def test_links_and_widgets_get_their_names():
    workflow = graph(
        node(1, "Load", values=["b.png", "image"]),
        node(2, "Sample", [("image", 7)], [5, "randomize", 30, "heun", "words"], title="Mine"),
        links=[(7, 1, 0, 2, 0)],
    )
    assert to_api(workflow, INFO) == {
        "1": {"class_type": "Load", "inputs": {"image": "b.png"}, "_meta": {"title": "Load Image"}},
        "2": {
            "class_type": "Sample",
            "inputs": {"image": ["1", 0], "seed": 5, "steps": 30, "name": "heun", "text": "words"},
            "_meta": {"title": "Mine"},
        },
    }


def test_control_after_generate_follows_the_declaration_and_input_order():
    workflow = graph(node(1, "Choose", values=[False, "replace", "fixed", 3, 0.5]))
    assert inputs(workflow, 1) == {"on": False, "mode": "replace", "seed": 3, "amount": 0.5}


def test_values_that_were_not_saved_are_the_defaults():
    expected = {"on": True, "mode": "auto", "seed": 0, "amount": 0.0}
    assert inputs(graph(node(1, "Choose", values=[])), 1) == expected
    assert inputs(graph(node(1, "Choose")), 1) == expected


def test_values_saved_by_name_are_taken_by_name():
    workflow = graph(node(1, "Choose", values={"amount": 2.0, "on": False, "preview": "x"}))
    assert inputs(workflow, 1) == {"amount": 2.0, "on": False}


def test_wired_widget_keeps_its_place_among_the_values():
    workflow = graph(
        node(1, "Sample", values=[5, "fixed", 30, "heun", ""]),
        node(2, "Sample", [("steps", 1, "INT")], [6, "fixed", 31, "euler", "t"]),
        links=[(1, 1, 0, 2, 1)],
    )
    assert inputs(workflow, 2) == {"seed": 6, "steps": ["1", 0], "name": "euler", "text": "t"}


def test_notes_are_left_out_and_reroutes_followed():
    workflow = graph(
        node(1, "Load", values=["a.png"]),
        node(2, "Reroute", [("", 1, "*")]),
        node(3, "Reroute", [("", 2, "*")]),
        node(4, "Show", [("images", 3)]),
        node(5, "Note", values=["read me"]),
        node(6, "MarkdownNote", values=["read me"]),
        links=[(1, 1, 0, 2, 0), (2, 2, 0, 3, 0), (3, 3, 0, 4, 0)],
    )
    assert set(to_api(workflow, INFO)) == {"1", "4"}
    assert inputs(workflow, 4) == {"images": ["1", 0]}


def test_primitive_gives_its_value():
    workflow = graph(
        node(1, "PrimitiveNode", values=[12, "fixed"]),
        node(2, "Sample", [("steps", 1, "INT")], [6, "fixed", 31, "euler", "t"]),
        links=[(1, 1, 0, 2, 1)],
    )
    assert inputs(workflow, 2)["steps"] == 12


def test_bypassed_node_hands_its_image_through():
    workflow = graph(
        node(1, "Load", values=["a.png"]),
        node(
            2, "Sample", [("size", None, "INT"), ("image", 1)], [0, "fixed", 1, "euler", ""], mode=4
        ),
        node(3, "Show", [("images", 2)]),
        links=[(1, 1, 0, 2, 1), (2, 2, 0, 3, 0)],
    )
    assert set(to_api(workflow, INFO)) == {"1", "3"}
    assert inputs(workflow, 3) == {"images": ["1", 0]}


def test_bypassed_node_of_an_unknown_type_does_no_harm():
    workflow = graph(
        node(1, "Load", values=["a.png"]),
        node(2, "Unknown", [("image", 1)], mode=4),
        node(3, "Show", [("images", 2)]),
        links=[(1, 1, 0, 2, 0), (2, 2, 0, 3, 0)],
    )
    assert inputs(workflow, 3) == {"images": ["1", 0]}


def test_muted_node_and_the_wires_from_it_are_left_out():
    workflow = graph(
        node(1, "Load", values=["a.png"], mode=2),
        node(2, "Show", [("images", 1)]),
        links=[(1, 1, 0, 2, 0)],
    )
    assert to_api(workflow, INFO).keys() == {"2"}
    assert inputs(workflow, 2) == {}


def test_list_is_marked_as_a_value():
    assert inputs(graph(node(1, "Points", values=[[1, 2]])), 1) == {"points": {"__value__": [1, 2]}}


def test_links_saved_as_objects_are_read():
    link = {
        "id": 9,
        "origin_id": 1,
        "origin_slot": 0,
        "target_id": 2,
        "target_slot": 0,
        "type": "IMAGE",
    }
    workflow = graph(node(1, "Load", values=["a.png"]), node(2, "Show", [("images", 9)]))
    assert inputs({**workflow, "links": [link]}, 2) == {"images": ["1", 0]}


def test_unknown_node_types_are_named():
    with pytest.raises(WorkflowError, match="no node type Other, Unknown"):
        to_api(graph(node(1, "Unknown"), node(2, "Other")), INFO)


def test_subgraph_is_refused_with_advice():
    workflow = {**graph(node(1, "abc-def")), "definitions": {"subgraphs": [{"id": "abc-def"}]}}
    with pytest.raises(WorkflowError, match="unpack it"):
        to_api(workflow, INFO)


def test_api_form_is_returned_and_nonsense_refused():
    prompt = {"1": {"class_type": "Load", "inputs": {}}}
    assert to_api(prompt, INFO) is prompt
    with pytest.raises(WorkflowError, match="no ComfyUI workflow"):
        to_api({}, INFO)
