"""What a failed pip is said to mean."""

from pathlib import Path

import pytest
from hosting.pip import environment, explain

LOG = Path("host") / "setup.log"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "WARNING: NewConnectionError(...)\nERROR: No matching distribution found for x",
            "network",
        ),
        ("ERROR: HTTPSConnectionPool: Read timed out.", "network"),
        (
            "ERROR: Could not find a version of x (from versions: none)\n"
            "ERROR: No matching distribution found for x",
            "network",
        ),
        ("ERROR: No matching distribution found for x==2.0", "no x==2.0 for this Python"),
        ("WARNING: a\nERROR: something odd\n", "ERROR: something odd"),
        ("", "no output"),
    ],
)
def test_failure_is_one_sentence(output, said):
    explained = explain(output, LOG)
    assert said in explained
    assert "\n" not in explained


def test_environment_keeps_settings_and_drops_redirections(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_TARGET", "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    env = environment(tmp_path / "scratch")
    assert env["PIP_INDEX_URL"] == "http://127.0.0.1:9"
    assert not {"PIP_TARGET", "PYTHONPATH"} & set(env)
    assert env["TMPDIR"] == str(tmp_path / "scratch")
