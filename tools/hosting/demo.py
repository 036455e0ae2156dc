"""The demo: one edit of one image through a real server, its pictures and its figures."""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_api import Prompt, to_api

from .client import Client, Run
from .errors import HostError
from .layout import REPOSITORY, Host
from .pictures import add_missing_pictures, picture_nodes
from .progress import Progress
from .server import Server
from .setup import find_host

RESULTS = ("source", "reconstruction", "edit", "mask", "exact", "keep", "sheet")
SCENE = "RetraceDemoScene"
# what refines an inversion repeats its report, and adds a line of its own
ROW_FORWARDS = re.compile(r"^(?:\w+-)?row-forwards: (\d+)$", re.MULTILINE)
STAGES = {  # what the report calls the time spent in a node, by the beginning of its type
    "RetraceInvert": "inversion",
    "RetraceEditSampler": "edit",
    "VAEDecode": "decode",
    "VAEEncode": "encode",
}


@dataclass(frozen=True)
class Parameter:
    """An option of the demo that sets one input of one node type."""

    flag: str
    node: str
    input: str
    type: type
    help: str

    @property
    def name(self) -> str:
        """The option's name in the parsed arguments."""
        return self.flag.lstrip("-").replace("-", "_")


PARAMETERS = (
    Parameter("--source", "RetracePromptPair", "source", str, "what the image shows"),
    Parameter("--target", "RetracePromptPair", "target", str, "what it should show"),
    Parameter("--steps", "RetraceInvertDDIM", "steps", int, "steps of the inversion"),
    Parameter("--cfg", "RetraceEditSampler", "cfg", float, "guidance scale of the edit"),
    Parameter(
        "--start-step", "RetraceEditSampler", "start_step", int, "begin below the full noise"
    ),
    Parameter("--mode", "RetraceP2PController", "mode", str, "auto, replace or refine"),
    Parameter(
        "--cross-replace",
        "RetraceP2PController",
        "cross_replace",
        float,
        "part of the steps, 0 to 1",
    ),
    Parameter(
        "--self-replace", "RetraceP2PController", "self_replace", float, "part of the steps, 0 to 1"
    ),
    Parameter("--word-windows", "RetraceP2PController", "word_windows", str, "windows by word"),
    Parameter("--reweight", "RetraceP2PController", "reweight", str, "weights by word"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options."""
    parser.add_argument(
        "--image", type=Path, help="the image to edit (needs --source and --target)"
    )
    for parameter in PARAMETERS:
        where = f" ({parameter.node}.{parameter.input})"
        parser.add_argument(parameter.flag, type=parameter.type, help=parameter.help + where)
    parser.add_argument(
        "--workflow",
        type=Path,
        default=REPOSITORY / "workflows" / "edit_word_swap.json",
        help="the workflow to run, as the page saves it",
    )
    parser.add_argument("--size", type=int, help="side in pixels that --image is brought to")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "output", help="where results go")
    parser.add_argument("--port", type=int, default=0, help="the server's port (a free one)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")


def run_demo(options: argparse.Namespace, progress: Progress) -> int:
    """Run the workflow once, write pictures and report; return the exit status."""
    began = time.monotonic()
    if options.image and not (options.source and options.target):
        raise HostError(
            "--image needs --source (what it shows) and --target (what it should show)."
        )
    if options.image and not options.image.is_file():
        raise HostError(f"there is no image {options.image}: name a picture file with --image.")
    workflow = read_workflow(options.workflow)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:  # results of an earlier run must not pass for this one's
        (out / f"{name}.png").unlink(missing_ok=True)
    host = find_host(progress)
    progress.seconds["set-up"] = time.monotonic() - began
    scene = prepare_source(host, options, workflow, out, progress)
    with ExitStack() as stack:
        with progress.stage("server start"):
            server = stack.enter_context(
                Server(
                    host,
                    host.base,
                    out / "server.log",
                    port=options.port,
                    cpu=options.cpu or None,
                    arguments=("--disable-api-nodes",),  # they need the network and 2 s
                )
            )
        server.check_pack()
        prompt = build_prompt(server.client, workflow, options, out / "source.png")
        texts = {
            name: get_input(prompt, "RetracePromptPair", name) for name in ("source", "target")
        }
        progress.say(f'editing on the {"CPU" if server.cpu else "GPU"}: "{texts["source"]}"')
        progress.say(f'  to "{texts["target"]}"')
        if scene and scene["prompts"] != list(texts.values()):
            scene = {}  # the exact target belongs to the scene's own edit
            (out / "exact.png").unlink()
            (out / "keep.png").unlink()
        run = server.client.run(prompt, Show(prompt, progress), timeout=3600)
        pictures = download(server.client, prompt, run, out)
    report = finish(host, out, pictures, texts, scene)
    before = {name: progress.seconds[name] for name in ("set-up", "server start")}
    report["seconds"] = {**before, **seconds_by_stage(prompt, run)}
    report["seconds"]["in all"] = time.monotonic() - began
    report["notes"] = notes(prompt, run)
    report["row-forwards"] = row_forwards(report["notes"])
    (out / "report.json").write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    print_report(report, progress)
    return 0


def build_prompt(
    client: Client, workflow: dict[str, Any], options: argparse.Namespace, image: Path
) -> Prompt:
    """Return the workflow in the API form with the options and the uploaded image in it."""
    prompt = to_api(workflow, client.object_info())
    for parameter in PARAMETERS:
        value = getattr(options, parameter.name)
        if value is not None:
            set_input(prompt, parameter.node, parameter.input, value)
    if options.image:
        for node in prompt.values():  # the user's image takes the scene's place
            if node["class_type"] == SCENE:
                node.update(class_type="LoadImage", inputs={"image": ""})
        set_input(prompt, "LoadImage", "image", client.upload_image(image))
    add_missing_pictures(prompt)
    return prompt


def download(client: Client, prompt: Prompt, run: Run, out: Path) -> dict[str, str]:
    """Write the pictures of a run into a folder; return name -> file, the source among them."""
    pictures = {"source": str(out / "source.png")}
    for name, node in picture_nodes(prompt).items():
        file = out / f"{name}.png"
        file.write_bytes(client.download(run.outputs[node]["images"][0]))
        pictures[name] = str(file)
    return pictures


def read_workflow(file: Path) -> dict[str, Any]:
    """Read a workflow file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HostError(f"the workflow {file} cannot be read ({error}).") from error


def prepare_source(
    host: Host, options: argparse.Namespace, workflow: dict, out: Path, progress: Progress
) -> dict[str, Any]:
    """Write out/source.png from the user's image or the bundled scene; return the scene's facts."""
    nodes = workflow.get("nodes") or [dict(n, type=n["class_type"]) for n in workflow.values()]
    scenes = [node for node in nodes if node["type"] == SCENE]
    if options.image:
        demo_model = any(node["type"] == "RetraceDemoModel" for node in nodes)
        size = options.size or (128 if demo_model else 512)
        request = {"image": str(options.image), "file": str(out / "source.png"), "size": size}
        fitted = imaging(host, "prepare", request)
        if fitted["was"] != fitted["size"]:
            sizes = [" x ".join(map(str, fitted[key])) for key in ("was", "size")]
            progress.say(f"the image was cropped and resized from {sizes[0]} to {sizes[1]} pixels")
        return {}
    if not scenes:
        raise HostError("this workflow has no picture of its own: name one with --image.")
    named = scenes[0].get("widgets_values") or [scenes[0]["inputs"]["scene"]]
    return imaging(host, "scene", {"scene": named[0], "folder": str(out)})


def imaging(host: Host, action: str, request: dict[str, Any]) -> dict[str, Any]:
    """Have the host's Python do what needs Pillow and numpy."""
    script = Path(__file__).with_name("imaging.py")
    asked = subprocess.run(
        [str(host.python), str(script), action],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        last = asked.stderr.strip().splitlines()[-1:] or ["no message"]
        raise HostError(f"the pictures could not be made: {last[0]}")
    return json.loads(asked.stdout.strip().splitlines()[-1])


def set_input(prompt: Prompt, node_type: str, name: str, value: Any) -> None:
    """Give an input of every node of a type a value."""
    nodes = [node for node in prompt.values() if node["class_type"] == node_type]
    if not any(name in node["inputs"] for node in nodes):
        raise HostError(f"no {node_type} of the workflow has an input {name}: leave it out.")
    for node in nodes:
        holder, key = follow(prompt, node, name)
        holder["inputs"][key] = value


def follow(prompt: Prompt, node: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the node and input in which a value is typed, behind primitive nodes."""
    value = node["inputs"].get(name)
    if isinstance(value, list):
        origin = prompt[value[0]]
        if origin["class_type"].startswith("Primitive"):
            return origin, "value"
    return node, name


def get_input(prompt: Prompt, node_type: str, name: str) -> str:
    """Return a text that a node of a type was given, "" if there is none."""
    for node in prompt.values():
        if node["class_type"] == node_type:
            holder, key = follow(prompt, node, name)
            if isinstance(text := holder["inputs"].get(key), str):
                return text
    return ""


class Show:
    """Shows what the server does: the running node and its step, a finished node's seconds."""

    def __init__(self, prompt: Prompt, progress: Progress) -> None:
        self.prompt, self.progress = prompt, progress
        self.node, self.since = "", 0.0

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """Take in one event of the run."""
        if kind == "executing":
            now = time.monotonic()
            if self.node:
                self.progress.say(f"  {self._title(self.node)}: {now - self.since:.1f} s")
            self.node, self.since = data.get("display_node") or data.get("node") or "", now
            if self.node:
                self.progress.live(f"  {self._title(self.node)} ...")
        elif kind == "progress" and data.get("max"):
            title = self._title(data.get("node") or self.node)
            self.progress.live(f"  {title}: step {data['value']:g} of {data['max']:g}")

    def _title(self, node: str) -> str:
        known = self.prompt.get(node)
        return known["_meta"]["title"] if known and "_meta" in known else f"node {node}"


def finish(
    host: Host, out: Path, pictures: dict[str, str], texts: dict[str, str], scene: dict[str, Any]
) -> dict[str, Any]:
    """Measure the pictures and make the sheet."""
    captions = {"source": texts["source"], "edit": texts["target"]}
    if scene.get("exact"):
        pictures = {**pictures, "exact": scene["exact"]}
        captions["exact"] = "what a perfect edit would be"
    order = [name for name in RESULTS if name in pictures]
    request = {"folder": str(out), "captions": captions}
    request.update({name: scene.get(name) for name in ("keep", "exact")})
    request["pictures"] = {name: pictures[name] for name in order}
    return imaging(host, "finish", request)


def seconds_by_stage(prompt: Prompt, run: Run) -> dict[str, float]:
    """Sum the seconds in nodes by what they are for."""
    stages: dict[str, float] = {}
    for node, seconds in run.seconds.items():
        kind = prompt[node]["class_type"] if node in prompt else ""
        stage = next((name for start, name in STAGES.items() if kind.startswith(start)), "the rest")
        stages[stage] = stages.get(stage, 0.0) + seconds
    return stages


def notes(prompt: Prompt, run: Run) -> dict[str, list[str]]:
    """Return title -> the lines that a node of this pack reports, such as its row-forwards."""
    said = {}
    for node, shown in run.outputs.items():
        lines = "\n".join(map(str, shown.get("text", []))).splitlines()
        if lines and prompt.get(node, {}).get("class_type", "").startswith("Retrace"):
            said[prompt[node].get("_meta", {}).get("title") or prompt[node]["class_type"]] = lines
    return said


def row_forwards(said: dict[str, list[str]]) -> dict[str, int]:
    """Return node title -> row-forwards, for the nodes that report them."""
    found = {title: ROW_FORWARDS.findall("\n".join(lines)) for title, lines in said.items()}
    return {title: int(counts[-1]) for title, counts in found.items() if counts}


def print_report(report: dict[str, Any], progress: Progress) -> None:
    """Print the figures."""
    progress.say("")
    progress.say("report")
    for name, seconds in report["seconds"].items():
        progress.say(f"  {name:<28}{seconds:8.1f} s")
    progress.say(f"  {'PSNR of the reconstruction':<28}{decibels(report.get('reconstruction'))}")
    meaning = f"   (over {report['outside means']})" if "outside" in report else ""
    progress.say(f"  {'PSNR outside the edit':<28}{decibels(report.get('outside'))}{meaning}")
    if "exact" in report:
        progress.say(f"  {'PSNR to the perfect edit':<28}{decibels(report['exact'])}")
    rows = report["row-forwards"]
    if rows:
        parts = ", ".join(f"{title} {count}" for title, count in rows.items())
        progress.say(f"  {'row-forwards':<28}{sum(rows.values()):8d}      ({parts})")
    progress.say(f"look at {report['sheet']}")


def decibels(value: float | None) -> str:
    """Write a PSNR, or that there is none."""
    if value is None:
        return "not applicable (no exact target and no blend mask)"
    return "    exact" if math.isinf(value) else f"{value:8.1f} dB"
