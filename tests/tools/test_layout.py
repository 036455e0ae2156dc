"""Which host is used, its base directory, its ports, and one set-up at a time."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hosting.errors import ServerError, SetupError
from hosting.layout import REPOSITORY, Host, host_home, prepare_base, users_host
from hosting.lock import exclusive
from hosting.server import ADDRESS, check_port, free_port

HOST_COMMAND = [sys.executable, str(REPOSITORY / "tools" / "host.py")]


@pytest.fixture
def taken_port():
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_users_comfyui_is_used_with_the_running_python(tmp_path, monkeypatch):
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    host = users_host()
    assert (host.comfyui, host.owned) == (tmp_path, False)
    assert host.python == Path(sys.executable)


def test_users_comfyui_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"no main\.py"):
        users_host()


def test_host_dir_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRACE_HOST_DIR", str(tmp_path))
    assert host_home() == tmp_path
    monkeypatch.delenv("RETRACE_HOST_DIR")
    assert host_home() == REPOSITORY / ".host"


def test_base_links_the_pack_and_follows_it_when_it_moves(tmp_path):
    host = Host(Path(sys.executable), tmp_path / "ComfyUI", tmp_path)
    for pack in (tmp_path / "one", tmp_path / "two"):
        pack.mkdir()
        base = prepare_base(tmp_path / "base", host, pack)
        assert (base / "custom_nodes" / "retrace").resolve() == pack
    assert not (base / "extra_model_paths.yaml").exists()


def test_base_of_a_users_comfyui_sees_its_models(tmp_path):
    host = Host(Path(sys.executable), tmp_path / "ComfyUI", tmp_path, owned=False)
    base = prepare_base(tmp_path / "base", host)
    listed = (base / "extra_model_paths.yaml").read_text()
    assert str(tmp_path / "ComfyUI" / "models") in listed
    assert "  checkpoints: checkpoints" in listed


def test_port_in_use_is_told(taken_port):
    with pytest.raises(ServerError, match=f"port {taken_port} cannot be used.*--port"):
        check_port(taken_port)


def test_free_port_can_be_used():
    check_port(free_port())


def test_second_setup_waits_for_the_first(tmp_path):
    waiting = threading.Event()
    entered = []

    def second() -> None:
        with exclusive(tmp_path / "lock", waiting.set):
            entered.append(True)

    with exclusive(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        assert not entered
    thread.join(10)
    assert entered


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run tools/host.py."""
    return subprocess.run(
        [*HOST_COMMAND, *arguments], capture_output=True, text=True, env={**os.environ, **env}
    )


def test_command_fails_with_one_sentence(taken_port, tmp_path):
    failed = command("serve", "--port", str(taken_port))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"host.py: port {taken_port} cannot be used")
    assert len(failed.stderr.splitlines()) == 1
    failed = command("test", COMFYUI_PATH=str(tmp_path))
    assert failed.returncode == 1
    assert "no main.py" in failed.stderr


def test_tests_are_run_with_the_host_and_their_status_passed_on(tmp_path):
    (tmp_path / "main.py").touch()
    shown = command("test", "--version", COMFYUI_PATH=str(tmp_path))
    assert shown.returncode == 0
    assert shown.stdout.startswith("pytest ")
    missing = command("test", str(tmp_path / "missing.py"), COMFYUI_PATH=str(tmp_path))
    assert missing.returncode == 4  # pytest's own status for wrong usage


def test_demo_asks_for_both_texts(tmp_path):
    failed = command("demo", "--image", str(tmp_path / "a.png"), COMFYUI_PATH=str(tmp_path))
    assert failed.returncode == 1
    assert "--source" in failed.stderr
