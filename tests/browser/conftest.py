"""A headless Chromium on the real page of the shared server; skipped where there is none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting.browser import find_chromium

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader"
).split()
READY = "window.app?.graph?._nodes?.length && window.app.extensionManager"  # the default graph


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and give it the time that a browser may take."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.server)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium, started once."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with api.sync_playwright() as playwright:
        path = find_chromium() or Path(playwright.chromium.executable_path)
        if not path.is_file():
            pytest.skip("no Chromium: 'python3 tools/host.py test' says how to get it")
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(browser, client) -> Iterator:
    """The page as a new user meets it; what it logs as errors is in `page.failures`."""
    tab = browser.new_page(viewport={"width": 1600, "height": 900})
    tab.set_default_timeout(120_000)
    tab.failures = []
    tab.on("pageerror", lambda error: tab.failures.append(str(error)))
    client.post("/settings", {"Comfy.TutorialCompleted": True})  # else a dialog opens, at some time
    tab.goto(client.url)
    tab.wait_for_function(READY)
    yield tab
    tab.close()


@pytest.fixture
def keep(page):
    """Keep a screenshot in the folder RETRACE_SCREENSHOTS, if that is set."""

    def take(name: str) -> None:
        if folder := os.environ.get("RETRACE_SCREENSHOTS"):
            page.wait_for_timeout(2000)  # pictures and transitions
            page.screenshot(path=str(Path(folder) / f"page_{name}.jpg"), quality=85)

    return take
