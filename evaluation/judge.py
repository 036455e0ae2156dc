"""EditEval's LMM score: a vision language model judges all edits of a picture in one conversation.

Source: Huang et al. 2025 (arXiv:2402.17525), the three steps of its GPT-4V template in our words;
scores are asked for as JSON. Any endpoint that speaks OpenAI's chat completions will do. A score is
relative to the edits shown with it and to the judge; prompts and answers are kept.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..diffusion.errors import RetraceError

WEIGHTS = {"accuracy": 0.4, "preservation": 0.3, "quality": 0.2, "realism": 0.1}
OVERALL = "overall"
LOW, HIGH = 1, 10
START = (
    "You judge how well pictures were edited by different methods. First look at the source "
    "picture below. Task: {task}. Editing instruction: {instruction}. Describe the source picture, "
    "then say what a perfect edit of it would look like."
)
CRITERIA = (
    "{count} methods edited this picture by that instruction. I shall show their results one at a "
    "time. In the end you will score each from 1 to 10, higher is better, on four factors: "
    "accuracy (does it do what the instruction says, precisely), preservation (is what should not "
    "change as it was), quality (how good the picture looks), realism (does it agree with logic "
    "and the laws of nature). Say first what to look at under each factor in this case."
)
SHOW = "Edited picture {number} of {count}. Analyse it by the four factors; do not score it yet."
SCORE = (
    "Now score all {count} pictures. Look closely, compare them, and avoid equal scores. Answer "
    "with JSON alone: a list of {count} objects in the order of the pictures, each "
    '{{"accuracy": n, "preservation": n, "quality": n, "realism": n}}.'
)


class JudgeError(RetraceError):
    """The judge does not answer, or not with scores."""


@dataclass(frozen=True)
class Verdict:
    """The judge's scores by method, each with `overall`, and the conversation behind them.

    messages: what was said on both sides; pictures by name instead of their data.
    """

    model: str
    scores: Mapping[str, Mapping[str, float]]
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Judge:
    """A model behind an OpenAI-compatible endpoint.

    url: the base that `/chat/completions` is added to, such as http://localhost:8000/v1. key: sent
    as a bearer token, "" for none; never stored. tries: of a request that fails for the moment.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 300.0
    tries: int = 4
    pause: float = 2.0
    temperature: float = 0.0

    def score(
        self, task: str, instruction: str, source: bytes, edits: Mapping[str, bytes]
    ) -> Verdict:
        """Have the edits of one source judged; pictures are PNG files' bytes.

        Raises: JudgeError if there is no answer, or none with scores for all.
        """
        talk = Talk(self)
        talk.say(START.format(task=task, instruction=instruction), source, "source")
        talk.say(CRITERIA.format(count=len(edits)))
        for number, (name, picture) in enumerate(edits.items(), 1):
            talk.say(SHOW.format(number=number, count=len(edits)), picture, name)
        answer = talk.say(SCORE.format(count=len(edits)))
        scores = dict(zip(edits, read_scores(answer, len(edits)), strict=True))
        return Verdict(self.model, scores, talk.kept)

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Send a conversation; return the answer."""
        body = {"model": self.model, "messages": messages, "temperature": self.temperature}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        for attempt in range(1, self.tries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return read_answer(response.read())
            except urllib.error.HTTPError as error:
                reason = f"{error.code}: {error.read()[:300].decode(errors='replace')}"
                passing = error.code == 429 or error.code >= 500
            except (OSError, ValueError) as error:
                reason, passing = str(error), True
            if not passing or attempt == self.tries:
                raise JudgeError(f"{address} does not answer ({reason})")
            time.sleep(self.pause * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


class Talk:
    """A conversation so far: as it is sent, and as it is kept."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.sent: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []

    def say(self, text: str, picture: bytes | None = None, name: str = "") -> str:
        """Say something, with a picture or without; return the answer."""
        content: Any = text
        if picture is not None:
            data = "data:image/png;base64," + base64.b64encode(picture).decode()
            content = [
                {"type": "image_url", "image_url": {"url": data}},
                {"type": "text", "text": text},
            ]
        self.sent.append({"role": "user", "content": content})
        answer = self.judge.ask(self.sent)
        self.sent.append({"role": "assistant", "content": answer})
        said = {"role": "user", "content": text}
        self.kept += [said | ({"picture": name} if name else {}), self.sent[-1]]
        return answer


def read_answer(data: bytes) -> str:
    """Return the text of a chat completion. Raises: ValueError if it is none."""
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the answer is no chat completion: {data[:200]!r}") from error
    if not isinstance(text, str):
        raise ValueError("the answer has no text")
    return text


def read_scores(answer: str, count: int) -> list[dict[str, float]]:
    """Return the scores in an answer, with the weighted sum of each.

    Raises: JudgeError unless it holds a list of as many scores, all from 1 to 10.
    """
    found = re.search(r"\[.*\]", answer, re.DOTALL)
    try:
        listed = json.loads(found[0]) if found else None
        scores = [{name: float(one[name]) for name in WEIGHTS} for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise JudgeError(f"the judge's answer has no scores in it: {answer[:200]!r}") from error
    if len(scores) != count:
        raise JudgeError(f"the judge scored {len(scores)} pictures of {count}")
    for one in scores:
        if not all(LOW <= value <= HIGH for value in one.values()):
            raise JudgeError(f"the judge's scores {one} are not all from {LOW} to {HIGH}")
        one[OVERALL] = overall(one)
    return scores


def overall(score: Mapping[str, float]) -> float:
    """Return EditEval's weighted sum of the four sub-scores."""
    return sum(weight * score[name] for name, weight in WEIGHTS.items())
