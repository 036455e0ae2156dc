"""Which nodes of a workflow take a case, and which gives the edited picture.

A node's title says so: `input:image`, `input:mask`, `input:source`, `input:target`,
`input:instruction`, `input:blend_source`, `input:blend_target`, `input:source_sentences` and
`input:target_sentences` (the prompts again, for Edit-Direction); several may stand in one title.
And `output:edited`. Where nothing is marked, Load Image or Demo-Scene, Prompt-Pair, P2P-Controller
and the picture of the Edit-Sampler's first output are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from hosting.demo import follow
from hosting.errors import HostError
from hosting.pictures import SHOWING, picture_nodes
from workflow_api import Prompt

TEXTS = (
    "source", "target", "instruction", "blend_source", "blend_target", "source_sentences",
    "target_sentences",
)  # fmt: skip
PICTURES = ("image", "mask")
SCENE, LOADERS = "RetraceDemoScene", ("LoadImage", "LoadImageMask")
SCENE_OUTPUTS = {0: 0, 4: 1}  # Demo-Scene's image and mask are Load Image's
WIDGETS = ("value", "text", "prompt", "string")


class MarkError(HostError):
    """A workflow does not say where a case goes in, or where the edit comes out."""


@dataclass(frozen=True)
class Method:
    """A workflow that is ready to take cases.

    prompt: the API form, only what the edited picture needs. inputs: name of an input to (node,
    widget) pairs. output: id of the node that shows the edited picture.
    """

    name: str
    prompt: Prompt
    inputs: dict[str, tuple[tuple[str, str], ...]]
    output: str

    def fill(self, values: dict[str, str]) -> Prompt:
        """Return the workflow with a case's texts and file names in it."""
        prompt = deepcopy(self.prompt)
        for name, places in self.inputs.items():
            for node, widget in places:
                prompt[node]["inputs"][widget] = values[name]
        return prompt


def read_method(name: str, prompt: Prompt, object_info: dict[str, Any]) -> Method:
    """Find inputs and output of a workflow in the API form.

    Raises: MarkError saying what is not to be found.
    """
    prompt = deepcopy(prompt)
    marks = list(find_marks(prompt))
    output = find_output(name, prompt, [node for mark, node in marks if mark == "output:edited"])
    prompt = {node: prompt[node] for node in ancestors(prompt, output)}
    replace_scenes(name, prompt)
    inputs: dict[str, list[tuple[str, str]]] = {}
    for mark, node in marks:
        kind, _, what = mark.partition(":")
        if kind != "input" or node not in prompt:
            continue
        if what not in TEXTS + PICTURES:
            raise MarkError(f"{name}: {mark} is no input; inputs are {', '.join(PICTURES + TEXTS)}")
        widget = picture_widget if what in PICTURES else text_widget
        inputs.setdefault(what, []).append((node, widget(name, prompt, node, what, object_info)))
    for what, places in unmarked(prompt).items():
        inputs.setdefault(what, places)
    check(name, inputs)
    return Method(name, prompt, {what: tuple(places) for what, places in inputs.items()}, output)


def set_widgets(name: str, prompt: Prompt, settings: Mapping[str, Any]) -> Prompt:
    """Return a workflow with some widgets of that name set, on every node that has one.

    Raises: MarkError if no node has one.
    """
    prompt = deepcopy(prompt)
    for widget, value in settings.items():
        having = [node["inputs"] for node in prompt.values()
                  if not isinstance(node["inputs"].get(widget, []), list)]  # fmt: skip
        if not having:
            raise MarkError(
                f"{name}: no node has a widget {widget}: name the method that has, as in "
                f"--set METHOD.{widget}={value}"
            )
        for inputs in having:
            inputs[widget] = value
    return prompt


def find_marks(prompt: Prompt) -> Iterator[tuple[str, str]]:
    """Yield every mark in a title with its node."""
    for key, node in prompt.items():
        for word in node.get("_meta", {}).get("title", "").split():
            if word.startswith(("input:", "output:")):
                yield word, key


def find_output(name: str, prompt: Prompt, marked: list[str]) -> str:
    """Return the node that shows the edited picture; one that saves it becomes a preview."""
    showing = [key for key, node in prompt.items() if node["class_type"] in SHOWING]
    edit = picture_nodes(prompt).get("edit")
    found = marked or ([edit] if edit else showing)
    if len(found) != 1 or found[0] not in showing:
        raise MarkError(
            f"{name}: one node must show the edited picture: give a Preview Image or Save Image "
            "the title output:edited"
        )
    node = prompt[found[0]]
    node.update(class_type="PreviewImage", inputs={"images": node["inputs"]["images"]})
    return found[0]


def ancestors(prompt: Prompt, output: str) -> list[str]:
    """Return the nodes that an output needs, itself among them, in the workflow's order."""
    needed, open_ = set(), [output]
    while open_:
        key = open_.pop()
        if key in needed or key not in prompt:
            continue
        needed.add(key)
        values = prompt[key]["inputs"].values()
        open_ += [value[0] for value in values if isinstance(value, list) and len(value) == 2]
    return [key for key in prompt if key in needed]


def replace_scenes(name: str, prompt: Prompt) -> None:
    """Make every Demo-Scene a Load Image."""
    scenes = [key for key, node in prompt.items() if node["class_type"] == SCENE]
    for node in prompt.values():
        for value in node["inputs"].values():
            if isinstance(value, list) and len(value) == 2 and value[0] in scenes:
                if value[1] not in SCENE_OUTPUTS:
                    raise MarkError(f"{name}: a case has no exact target to put into the workflow")
                value[1] = SCENE_OUTPUTS[value[1]]
    for key in scenes:
        prompt[key].update(class_type="LoadImage", inputs={"image": ""})


def picture_widget(name: str, prompt: Prompt, node: str, what: str, info: dict) -> str:
    """Return the widget of a marked node that names a picture file."""
    if prompt[node]["class_type"] not in LOADERS:
        raise MarkError(f"{name}: input:{what} must be a Load Image, not {label(prompt, node)}")
    return "image"


def text_widget(name: str, prompt: Prompt, node: str, what: str, info: dict[str, Any]) -> str:
    """Return the widget of a marked node that takes a text: the one of that name, or its only."""
    kind = prompt[node]["class_type"]
    specs = {k: v for group in ("required", "optional")
             for k, v in (info[kind]["input"].get(group) or {}).items()}  # fmt: skip
    texts = [key for key, value in prompt[node]["inputs"].items()
             if isinstance(value, str) and specs.get(key, [""])[0] == "STRING"]  # fmt: skip
    for widget in (what, *WIDGETS):
        if widget in texts:
            return widget
    if len(texts) != 1:
        raise MarkError(
            f"{name}: input:{what} stands on {label(prompt, node)}, which has "
            f"{f'the text fields {texts}' if texts else 'no text field of its own'}: mark a "
            "text node instead"
        )
    return texts[0]


def unmarked(prompt: Prompt) -> dict[str, list[tuple[str, str]]]:
    """Find inputs by the nodes' types."""
    found: dict[str, list[tuple[str, str]]] = {}
    loaders = [key for key, node in prompt.items() if node["class_type"] == "LoadImage"]
    if len(loaders) == 1:
        found["image"] = [(loaders[0], "image")]
    for key, node in prompt.items():
        if node["class_type"] == "RetracePromptPair":
            for what in ("source", "target"):
                holder, widget = follow(prompt, node, what)
                place = next(k for k, other in prompt.items() if other is holder)
                found.setdefault(what, []).append((place, widget))
        elif node["class_type"] == "RetraceP2PController":
            for what in ("blend_source", "blend_target"):
                if node["inputs"].get(what):
                    found.setdefault(what, []).append((key, what))
    return found


def check(name: str, inputs: dict[str, list]) -> None:
    """Raise MarkError unless a workflow takes a picture and learns what to change."""
    if "image" not in inputs:
        raise MarkError(f"{name}: give the Load Image of the source the title input:image")
    if not {"target", "target_sentences", "instruction"} & set(inputs):
        raise MarkError(
            f"{name}: nothing takes the edit: give the text of the target prompt the title "
            "input:target, or that of an instruction input:instruction"
        )


def label(prompt: Prompt, node: str) -> str:
    """Name a node."""
    return f"{prompt[node]['class_type']} (node {node})"
