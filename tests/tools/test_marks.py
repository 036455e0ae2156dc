"""Workflows as methods: where a case goes in, and where its edit comes out."""

import pytest
from evaluating.marks import MarkError, read_method


def spec(**inputs):
    return {"input": {"required": {name: [kind] for name, kind in inputs.items()}}}


INFO = {
    "LoadImage": spec(image="COMBO"),
    "PrimitiveStringMultiline": spec(value="STRING"),
    "RetracePromptPair": spec(clip="CLIP", source="STRING", target="STRING"),
    "RetraceP2PController": spec(model="MODEL", blend_source="STRING", blend_target="STRING"),
    "RetraceEditSampler": spec(model="MODEL"),
    "CLIPTextEncode": spec(clip="CLIP", text="STRING"),
    "Two": spec(one="STRING", other="STRING"),
    "VAEDecode": spec(samples="LATENT"),
    "SaveImage": spec(images="IMAGE"),
}


def node(kind, title="", **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def drawn():
    """A workflow as users draw it: nothing marked."""
    return {
        "1": node("LoadImage", image="mine.png"),
        "2": node("PrimitiveStringMultiline", value="a cat"),
        "3": node("RetracePromptPair", source=["2", 0], target="a dog"),
        "4": node("RetraceP2PController", prompts=["3", 0], blend_source="cat", blend_target=""),
        "5": node("RetraceEditSampler", model=["4", 0], trajectory=["1", 0]),
        "6": node("VAEDecode", samples=["5", 0]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="x"),
        "8": node("VAEDecode", samples=["5", 1]),
        "9": node("PreviewImage", images=["8", 0]),
    }


VALUES = {"image": "case.png", "source": "S", "target": "T", "blend_source": "b"}


def test_an_unmarked_workflow_is_filled_by_its_node_types():
    method = read_method("m", drawn(), INFO)
    filled = method.fill(VALUES)
    assert filled["1"]["inputs"]["image"] == "case.png"
    assert filled["2"]["inputs"]["value"] == "S"
    assert filled["3"]["inputs"] == {"source": ["2", 0], "target": "T"}
    assert filled["4"]["inputs"]["blend_source"] == "b"
    assert "blend_target" not in method.inputs  # it was empty: the workflow does not blend by it
    assert method.fill(VALUES) == filled and method.prompt["2"]["inputs"]["value"] == "a cat"


def test_only_what_the_edit_needs_is_run_and_nothing_is_saved():
    method = read_method("m", drawn(), INFO)
    assert set(method.prompt) == {"1", "2", "3", "4", "5", "6", "7"}
    assert method.prompt["7"] == {**method.prompt["7"], "class_type": "PreviewImage",
                                  "inputs": {"images": ["6", 0]}}  # fmt: skip


def marked():
    """A workflow of the host's own nodes."""
    return {
        "1": node("LoadImage", "input:image", image="mine.png"),
        "2": node("CLIPTextEncode", "what to do input:instruction", text="make it a dog"),
        "3": node("VAEDecode", samples=["4", 0]),
        "4": node("KSampler", positive=["2", 0], latent_image=["1", 0], mask=["1", 1]),
        "5": node("PreviewImage", "output:edited", images=["3", 0]),
        "6": node("PreviewImage", "something else", images=["1", 0]),
    }


def test_titles_say_where_a_case_goes():
    method = read_method("m", marked(), INFO)
    assert method.inputs == {"image": (("1", "image"),), "instruction": (("2", "text"),)}
    assert method.output == "5" and "6" not in method.prompt


def test_a_title_may_hold_several_marks_each_for_the_field_of_its_name():
    prompt = drawn()
    prompt["3"] = node("RetracePromptPair", "input:source input:target", source="a", target="b")
    method = read_method("m", prompt, INFO)
    assert method.inputs["source"] == (("3", "source"),)
    assert method.inputs["target"] == (("3", "target"),)


def test_a_demo_scene_becomes_a_picture_of_the_data():
    prompt = drawn()
    prompt["1"] = node("RetraceDemoScene", scene="colour")
    prompt["5"]["inputs"]["mask"] = ["1", 4]
    method = read_method("m", prompt, INFO)
    assert method.prompt["1"]["class_type"] == "LoadImage"
    assert method.prompt["5"]["inputs"]["mask"] == ["1", 1]


def without(prompt, key, **changes):
    return {k: ({**v, **changes} if k == key else v) for k, v in prompt.items()}


def title(text):
    return {"_meta": {"title": text}}


REFUSED = [
    (without(marked(), "5", **title("the edit")), "output:edited"),
    (without(marked(), "2", **title("prompt")), "input:target"),
    (without(marked(), "2", **title("input:imagine")), "input:imagine is no input"),
    (without(marked(), "2", **title("input:image")), "must be a Load Image"),
    (without(marked(), "2", class_type="Two", inputs={"one": "a", "other": "b"}), "text fields"),
    (without(marked(), "2", inputs={"text": ["9", 0]}), "no text field of its own"),
    (without(marked(), "1", class_type="EmptyImage", **title("x")), "input:image"),
    (
        without(drawn(), "1", class_type="RetraceDemoScene")
        | {"5": node("RetraceEditSampler", trajectory=["1", 3])},
        "no exact target",
    ),
]


@pytest.mark.parametrize(("prompt", "words"), REFUSED)
def test_a_workflow_that_cannot_be_filled_is_refused_with_what_to_mark(prompt, words):
    with pytest.raises(MarkError, match=words):
        read_method("mine", prompt, INFO)
