"""What each workflow of the pack does: one function a promise of the README."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .graph import Graph
from .parts import DEMO, NOTE, SD15, Kit, Start, Words, begin, invert, sample, show

GIRL = "a drawing of a girl in a pink dress on a green hill"


@dataclass(frozen=True)
class Recipe:
    """One workflow in the versions of several kits."""

    name: str
    title: str
    build: Callable[[Graph, Start], None]
    words: tuple[tuple[Kit, Words], ...]
    what: str
    change: tuple[str, ...]
    expect: str

    def draw(
        self, kit: Kit, words: Words, info: dict[str, Any], pack: str, version: str
    ) -> dict[str, Any]:
        """Return one version as the page saves it."""
        graph = Graph(self.name + kit.suffix, info, pack, version)
        change = "\n".join(f"- {line}" for line in self.change)
        text = NOTE.format(
            title=self.title, what=self.what, run=kit.run, change=change, expect=self.expect
        )
        graph.note("Read me", text)
        self.build(graph, begin(graph, kit, words))
        return graph.to_json()


def edit_word_swap(graph: Graph, start: Start) -> None:
    """Swap a word: Prompt-to-Prompt replacement over a pinned source."""
    trajectory = invert(graph, start)
    with graph.group("4  Edit"):
        model = graph.add(
            "RetraceP2PController", model=start.model, prompts=start.pair.prompts, mode="replace"
        ).model
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="word swap")


def edit_refine(graph: Graph, start: Start) -> None:
    """Add words: Prompt-to-Prompt refinement over a pinned source."""
    trajectory = invert(graph, start)
    with graph.group("4  Edit"):
        model = graph.add(
            "RetraceP2PController", model=start.model, prompts=start.pair.prompts, mode="refine",
            cross_replace=0.4, self_replace=0.4,
        ).model  # fmt: skip
        edit = sample(graph, start, model, trajectory)
    show(graph, start, edit, prefix="refine")


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "edit_word_swap",
        "Swap a word",
        edit_word_swap,
        (
            (DEMO, Words(
                "a red circle and a yellow star on a striped blue background",
                "a green circle and a yellow star on a striped blue background", "colour",
            )),
            (SD15, Words(GIRL, GIRL.replace("pink", "blue"))),
        ),
        "The picture is retraced to noise under the source prompt, then walked back under the "
        "target prompt. Direct Inversion pins the source to what was retraced, Prompt-to-Prompt "
        "lends its attention to the edit: so only the swapped word changes.",
        (
            "a word of *target* in Prompt-Pair: the inversion is not run again",
            "**cross_replace** in P2P-Controller: lower gives the new word more freedom",
            "**self_replace**: higher keeps shapes and outlines, lower lets them change",
            "**cfg** in Edit-Sampler: higher makes the new word stronger",
        ),
        "the swapped word shows, the rest stays; the report counts the model's work.",
    ),
    Recipe(
        "edit_refine",
        "Add words",
        edit_refine,
        (
            (DEMO, Words(
                "a white ring on a plain green background",
                "a white ring and a red star on a plain green background", "more words",
            )),
            (SD15, Words(GIRL, GIRL + " full of flowers at night")),
        ),
        "Words that are in both prompts keep the source's attention, words that were added get "
        "their own (Prompt-to-Prompt refinement). Direct Inversion pins the source.",
        (
            "the words added to *target* in Prompt-Pair",
            "**self_replace** in P2P-Controller: lower it if the new thing does not appear",
            "**cross_replace**: raise it if what was there moves or changes",
        ),
        "what was there stays, what was added appears where there is room.",
    ),
)
