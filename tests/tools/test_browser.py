"""Chromium for the tests of the page: found if it runs, installed if it may be, else told."""

import subprocess
import sys
from pathlib import Path

import pytest
from hosting import browser
from hosting.layout import Host
from hosting.progress import Progress

HOST = Host(Path(sys.executable), Path("ComfyUI"), Path("host"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="programs here are shell scripts")


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A search path of the test's own, with nothing on it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def playwright(path, monkeypatch):
    """Stand in for a playwright that has no browser of its own."""
    monkeypatch.setattr(browser, "OWN", "print('/no/such/browser')")


@posix
def test_stub_that_says_no_version_is_passed_over(path):
    program(path, "chromium", "exit 1")
    program(path, "chromium-browser", "true")
    real = program(path, "google-chrome", "echo Chrome 1.0")
    assert browser.find_chromium() == real


def test_empty_machine_has_no_chromium(path):
    assert browser.find_chromium() is None


def test_missing_playwright_is_told_in_one_line(path, monkeypatch, capsys):
    monkeypatch.setattr(browser, "OWN", "import no_such_playwright")
    assert not browser.ensure_chromium(HOST, Progress())
    said = capsys.readouterr().out.strip()
    assert "pip install playwright" in said
    assert "\n" not in said


def test_missing_chromium_is_told_where_it_may_not_be_installed(
    playwright, monkeypatch, capsys
):
    monkeypatch.setattr(browser, "may_install", lambda: False)
    assert not browser.ensure_chromium(HOST, Progress())
    said = capsys.readouterr().out.strip()
    assert "apt install chromium" in said
    assert "\n" not in said


@posix
def test_root_with_apt_gets_chromium_installed(playwright, path, monkeypatch):
    script = f'[ "$1" = update ] && exit 0; cp {path}/made {path}/chromium'
    program(path, "made", "echo Chromium 1.0")
    program(path, "apt-get", f"PATH=/bin:/usr/bin\n{script}")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert browser.ensure_chromium(HOST, Progress())


@posix
def test_failed_installation_is_told_and_the_rest_goes_on(playwright, path, monkeypatch, capsys):
    program(path, "apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert not browser.ensure_chromium(HOST, Progress())
    said = capsys.readouterr().out
    assert "apt-get update: E: no network" in said
    assert "install Chromium" in said


def test_playwrights_own_browser_is_enough(path, monkeypatch):
    monkeypatch.setattr(browser, "OWN", f"print({str(sys.executable)!r})")
    assert browser.ensure_chromium(HOST, Progress())


def test_command_that_never_ends_is_given_up():
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 900)

    assert not browser.install(Progress(), run=hang)
