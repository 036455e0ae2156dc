"""What a new user does in the real page: find a workflow, run it, change it, read help."""

import base64
import json

import pytest
from hosting.layout import REPOSITORY
from workflow_api import to_api

FILES = sorted((REPOSITORY / "workflows").glob("*.json"))
NODE = "window.app.graph._nodes.find(node => node.type === '{}')"
OPENED = f"Boolean({NODE.format('RetraceEditSampler')}) && window.app.graph._groups.length === 5"
SHOWN = """() => window.app.graph._nodes
    .filter(node => ['SaveImage', 'PreviewImage'].includes(node.type))
    .every(node => node.imgs && node.imgs.length)"""


def command(page, name: str) -> None:
    page.evaluate(f"window.app.extensionManager.command.execute('{name}')")


def set_widget(page, node: str, widget: str, value) -> None:
    page.evaluate(
        f"([name, value]) => {{ const node = {NODE.format(node)};"
        "const widget = node.widgets.find(widget => widget.name === name);"
        "widget.value = value; widget.callback?.(value); }",
        [widget, value],
    )


def run(page, client) -> dict:
    """Press Run and wait; return the run as the server's history tells it."""
    before = set(client.get("/history"))
    command(page, "Comfy.QueuePrompt")
    for _ in range(600):
        history = client.get("/history")
        if new := [key for key in history if key not in before]:
            return history[new[0]]
        page.wait_for_timeout(500)
    raise AssertionError("the run did not end")


def load_word_swap(page) -> None:
    """Load the first workflow where no earlier test has."""
    if not page.evaluate(f"Boolean({NODE.format('RetraceEditSampler')})"):
        text = (REPOSITORY / "workflows" / "edit_word_swap.json").read_text(encoding="utf-8")
        page.evaluate("text => window.app.loadGraphData(JSON.parse(text))", text)
    set_widget(page, "RetraceInvertDDIM", "steps", 6)


def test_workflow_is_found_in_the_template_browser_and_opens(page, keep):
    command(page, "Comfy.BrowseTemplates")
    page.get_by_text("retrace", exact=True).first.click()
    keep("templates")
    page.get_by_placeholder("Search...").last.fill("edit_word_swap")
    page.get_by_text("edit_word_swap", exact=True).first.click()
    page.wait_for_function(OPENED)
    assert page.evaluate("window.app.graph._nodes.every(node => !node.has_errors)")


def test_run_shows_pictures_and_report(page, client, keep):
    load_word_swap(page)
    ended = run(page, client)
    assert ended["status"]["status_str"] == "success"
    page.wait_for_function(SHOWN)
    command(page, "Comfy.Canvas.FitView")
    keep("word_swap")
    page.wait_for_function(
        f"{NODE.format('PreviewAny')}.widgets.map(widget => String(widget.value)).join()"
        ".includes('row-forwards')"
    )


def test_changed_target_leaves_the_inversion_cached(page, client):
    load_word_swap(page)
    run(page, client)
    changed = "a purple circle and a yellow star on a striped blue background"
    set_widget(page, "RetracePromptPair", "target", changed)
    messages = dict(run(page, client)["status"]["messages"])
    cached = messages["execution_cached"]["nodes"]
    inversion, sampler = (
        str(page.evaluate(f"{NODE.format(name)}.id"))
        for name in ("RetraceInvertDDIM", "RetraceEditSampler")
    )
    assert inversion in cached
    assert sampler not in cached


def test_help_page_opens(page, keep):
    load_word_swap(page)
    page.evaluate(f"window.app.canvas.selectNode({NODE.format('RetraceEditSampler')})")
    page.get_by_test_id("info-button").click()
    page.get_by_text("When to use it").wait_for()
    keep("help")
    assert page.get_by_text("Pitfalls").is_visible()


def test_dropped_result_gives_the_graph_back(page, client):
    load_word_swap(page)
    outputs = run(page, client)["outputs"]
    image = next(image for shown in outputs.values() for image in shown.get("images", [])
                 if image["type"] == "output")  # fmt: skip
    data = base64.b64encode(client.download(image)).decode()
    page.evaluate("window.app.graph.clear()")
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'result.png', {type: 'image/png'}));
            const options = {bubbles: true, cancelable: true, dataTransfer: transfer};
            window.app.canvasEl.dispatchEvent(new DragEvent('drop', options));
        }""",
        data,
    )
    page.wait_for_function(OPENED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_page_makes_of_a_workflow_what_our_converter_makes(file, page, object_info):
    text = file.read_text(encoding="utf-8")
    prompt = page.evaluate(
        """async text => {
            await window.app.loadGraphData(JSON.parse(text));
            return (await window.app.graphToPrompt()).output;
        }""",
        text,
    )
    ours = to_api(json.loads(text), object_info)
    assert prompt.keys() == ours.keys()
    for key, node in prompt.items():
        assert node["class_type"] == ours[key]["class_type"]
        declared = object_info[node["class_type"]]["input"]  # the page adds widgets of its own
        names = {name for group in ("required", "optional") for name in declared.get(group, {})}
        given = {name: value for name, value in node["inputs"].items() if name in names}
        assert given == ours[key]["inputs"], node["class_type"]


def test_blueprint_edits_behind_six_inputs(page, client):
    file = REPOSITORY / "subgraphs" / "Edit a photo by prompt.json"
    listed = client.get("/global_subgraphs").values()
    assert file.stem in [entry["name"] for entry in listed]
    widgets = page.evaluate(
        """async text => {
            await window.app.loadGraphData(JSON.parse(text));
            const graph = window.app.graph, [edit] = graph._nodes;
            const add = type => {
                const node = window.LiteGraph.createNode(type);
                graph.add(node);
                return node;
            };
            const model = add('RetraceDemoModel'), scene = add('RetraceDemoScene');
            for (const slot of [0, 1, 2]) model.connect(slot, edit, slot);
            scene.connect(0, edit, 3);
            for (const slot of [0, 1]) edit.connect(slot, add('PreviewImage'), 0);
            const inner = edit.subgraph.nodes.find(node => node.type === 'RetraceInvertDDIM');
            inner.widgets.find(widget => widget.name === 'steps').value = 6;
            return edit.widgets.map(widget => widget.name);
        }""",
        file.read_text(encoding="utf-8"),
    )
    assert widgets == ["source", "target"]
    assert run(page, client)["status"]["status_str"] == "success"
    page.wait_for_function(SHOWN)


def test_page_met_no_error_of_ours(page):
    assert not [failure for failure in page.failures if "retrace" in failure.lower()]
