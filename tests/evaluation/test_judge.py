"""The judge against a local server that speaks OpenAI's chat completions over HTTP."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from retrace.evaluation.judge import Judge, JudgeError, overall, read_scores

GOOD = [
    {"accuracy": 8, "preservation": 9, "quality": 9, "realism": 8},
    {"accuracy": 1, "preservation": 2, "quality": 1, "realism": 1},
]


class Endpoint(ThreadingHTTPServer):
    """Answers as a model would; keeps what it was asked. `plan`: statuses to refuse with first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.headers = [], []
        self.plan: list[int] = []
        self.last = f"Here they are:\n```json\n{json.dumps(GOOD)}\n```"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        server.headers.append(dict(self.headers))
        if server.plan:
            self.send(server.plan.pop(0), {"error": {"message": "slow down"}})
            return
        if self.path != "/v1/chat/completions" or not isinstance(body.get("model"), str):
            self.send(404, {"error": {"message": "no such path"}})
            return
        final = "JSON alone" in str(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": server.last if final else "I see."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send(200, {"id": "x", "object": "chat.completion", "choices": [choice]})

    def send(self, status, answer):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


EDITS = {"p2p": png("red"), "ddim": png("blue")}


def test_one_conversation_shows_source_and_edits_and_gives_weighted_scores(endpoint):
    verdict = Judge(endpoint.url, "some-model", "secret").score(
        "background change", "make it a beach", png("green"), EDITS
    )
    assert verdict.scores["p2p"]["overall"] == pytest.approx(0.4 * 8 + 0.3 * 9 + 0.2 * 9 + 0.8)
    assert verdict.scores["ddim"] == GOOD[1] | {"overall": pytest.approx(1.3)}
    assert [len(asked["messages"]) for asked in endpoint.asked] == [1, 3, 5, 7, 9]
    last = endpoint.asked[-1]
    assert [message["role"] for message in last["messages"]] == ["user", "assistant"] * 4 + ["user"]
    shown = [part["image_url"]["url"] for message in last["messages"]
             if isinstance(message["content"], list) for part in message["content"]
             if part["type"] == "image_url"]  # fmt: skip
    pictures = [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in shown]
    assert pictures == [png("green"), *EDITS.values()]
    assert last["model"] == "some-model"
    assert all(headers["Authorization"] == "Bearer secret" for headers in endpoint.headers)


def test_prompts_and_raw_answers_are_kept_but_neither_pictures_nor_the_key(endpoint):
    judge = Judge(endpoint.url, "some-model", "secret")
    verdict = judge.score("style", "make it a painting", png("green"), EDITS)
    kept = json.dumps(list(verdict.messages))
    assert verdict.model == "some-model" and "secret" not in kept + repr(judge)
    assert "make it a painting" in kept and "I see." in kept and "Here they are" in kept
    assert [m["picture"] for m in verdict.messages if "picture" in m] == ["source", "p2p", "ddim"]
    assert "base64" not in kept


def test_a_busy_endpoint_is_asked_again(endpoint):
    endpoint.plan = [429, 503]
    verdict = Judge(endpoint.url, "m", pause=0.01).score("t", "i", png("green"), EDITS)
    assert len(verdict.scores) == 2 and len(endpoint.asked) == 7


def test_an_endpoint_that_refuses_is_told_at_once(endpoint):
    endpoint.plan = [401, 401]
    with pytest.raises(JudgeError, match=r"401.*slow down"):
        Judge(endpoint.url, "m", pause=0.01).score("t", "i", png("green"), EDITS)
    assert len(endpoint.asked) == 1


def test_an_endpoint_that_is_not_there_is_told():
    with pytest.raises(JudgeError, match="does not answer"):
        Judge("http://127.0.0.1:9", "m", tries=1).score("t", "i", png("green"), EDITS)


@pytest.mark.parametrize(("answer", "words"), [
    ("I cannot score pictures.", "no scores"),
    (json.dumps(GOOD[:1]), "scored 1 pictures of 2"),
    (json.dumps([GOOD[0], GOOD[1] | {"quality": 11}]), "from 1 to 10"),
    (json.dumps([GOOD[0], {"accuracy": 3}]), "no scores"),
])  # fmt: skip
def test_an_answer_without_usable_scores_is_an_error_not_a_score(answer, words):
    with pytest.raises(JudgeError, match=words):
        read_scores(answer, 2)


def test_weights_are_the_papers():
    sevens = dict.fromkeys(("accuracy", "preservation", "quality", "realism"), 7)
    assert overall(sevens) == pytest.approx(7)
    mixed = {"accuracy": 6, "preservation": 10, "quality": 7, "realism": 6}
    assert overall(mixed) == pytest.approx(7.4)
