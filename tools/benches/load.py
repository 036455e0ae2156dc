"""How long the pack takes to load in a host that has started, and what it imports for that.

    python3 tools/host.py bench load [--n 3]

A process of its own each time: the host's own modules are imported first and do not count; then the
pack, its entry point and every node's schema, as the host's loader does. Nothing is warmed up but
the files on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from pack import ROOT

CHILD = """
import asyncio, json, sys, time, warnings
comfyui, tools, root = sys.argv[1:4]
sys.argv = sys.argv[:1]
sys.path[:0] = [comfyui, tools]
started = time.perf_counter()
import comfy.options
comfy.options.enable_args_parsing(False)
from comfy.cli_args import args
args.cpu = True
import utils.extra_config, nodes, execution, server, comfy_api.latest  # in the order of main.py
host = time.perf_counter() - started
there = set(sys.modules)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    started, busy = time.perf_counter(), time.process_time()
    from pack import load_pack
    async def load():
        extension = await load_pack().comfy_entrypoint()
        return [node.GET_SCHEMA() for node in await extension.get_node_list()]
    found = asyncio.run(load())
    pack, busy = time.perf_counter() - started, time.process_time() - busy
print(json.dumps({"host": host, "pack": pack, "busy": busy, "nodes": len(found),
                  "warnings": [str(one.message) for one in said],
                  "modules": sorted(set(sys.modules) - there)}))
"""


def measure(comfyui: Path) -> dict:
    """Load the host and then the pack in a new process; return seconds, modules, warnings."""
    command = [sys.executable, "-c", CHILD, str(comfyui), str(ROOT / "tools"), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(made.stdout.strip().splitlines()[-1])


def foreign(modules: list[str]) -> list[str]:
    """Return the top-level packages among modules that are not the pack's."""
    names = {name.partition(".")[0] for name in modules} - {"retrace", "pack"}
    return sorted(names - set(sys.stdlib_module_names))


def main(arguments: list[str]) -> int:
    """Print seconds of the host and of the pack, and what the pack brought in."""
    parser = argparse.ArgumentParser(prog="bench load", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=3, help="processes (3)")
    options = parser.parse_args(arguments)
    comfyui = Path(os.environ["RETRACE_COMFYUI"])
    runs = [measure(comfyui) for _ in range(options.n)]
    median = {key: statistics.median(run[key] for run in runs) for key in ("host", "pack", "busy")}
    host, pack, busy = median.values()
    print(f"host {host:.2f} s; pack {pack:.3f} s more ({pack / host:.1%}), of these {busy:.3f} s "
          f"computing; {runs[0]['nodes']} nodes")
    modules = runs[0]["modules"]
    own = sum(name.startswith("retrace") for name in modules)
    print(f"{own} modules of the pack, and of others: {', '.join(foreign(modules)) or 'none'}")
    print(f"warnings: {runs[0]['warnings'] or 'none'}")
    return 0
