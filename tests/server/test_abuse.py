"""Every node and every input, given what no user means to give, on a live server.

Never a bare Python error, never a dead server, never a changed model; abuse_table.py has the cases.
"""

import time

import pytest
from abuse_table import (
    ABSENT,
    CASES,
    FILES,
    NODES,
    REPRESENTATIVE,
    SENTENCES,
    WORLD,
    check_message,
    graph,
)
from hosting.errors import RunError

TABLE = [
    pytest.param(case, id=str(case), marks=() if place in REPRESENTATIVE else pytest.mark.slow)
    for place, case in enumerate(CASES)
]


@pytest.fixture(scope="module")
def files(client, server, run_workflow) -> dict[str, str]:
    """Files for the nodes that load one: node -> file."""
    (server.base / "input" / SENTENCES).write_text("a circle\na star\n", encoding="utf-8")
    named = {"RetraceLoadSentences": SENTENCES}
    for loader, saver in FILES.items():
        run_workflow({**WORLD, **graph(saver, {}, {})})
        choices = client.get(f"/object_info/{loader}")[loader]["input"]["required"]["file"]
        options = choices[0] if isinstance(choices[0], list) else choices[1]["options"]
        named[loader] = options[0]
    return named


@pytest.fixture(scope="module")
def digest(run_workflow):
    """Return a function that hashes the demo model as it is now and says which object it is."""

    def take() -> list[str]:
        shown = {"class_type": "ProbeDigest",
                 "inputs": {"model": ["model", 0], "time": time.time_ns()}}  # fmt: skip
        return run_workflow({**WORLD, "show": shown}).outputs["show"]["text"]

    return take


@pytest.fixture(scope="module", autouse=True)
def untouched(digest):
    """The model is the same, bit for bit, before and after all cases."""
    before = digest()
    yield
    assert digest() == before


@pytest.mark.parametrize("node", NODES)
def test_node_works_when_it_is_given_what_it_wants(node, run_workflow, files):
    run_workflow({**WORLD, **graph(node, {}, files)})


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_told_and_nothing_breaks(case, run_workflow, server, files):
    given = ABSENT if case.absent else case.value
    prompt = {**WORLD, **case.more, **graph(case.node, {case.input: given}, files)}
    try:
        run_workflow(prompt)
    except RunError as error:
        check_message(error)
    else:
        assert not case.fails, "this was taken without a word"
    server.check()


def test_table_is_as_large_as_promised():
    assert len(CASES) >= 2000
    assert len(REPRESENTATIVE) >= 400
