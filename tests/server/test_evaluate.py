"""The runner's methods on a real server: our workflows and a user's, filled with drawn cases."""

import json

import numpy as np
import pytest
from evaluating.command import OURS
from evaluating.servers import Served
from graphing.graph import write
from graphing.methods import METHODS, draw_methods
from hosting.errors import HostError
from hosting.layout import REPOSITORY
from retrace.evaluation.jobs import EditError, load_data
from retrace.evaluation.networks import Networks
from retrace.evaluation.scenes_bench import bench_cases
from retrace.evaluation.scenes_bench import write as write_scenes
from retrace.evaluation.worker import Worker

import workflows as tool

FEWER = {
    "null_text_p2p": {"inner_steps": 1},
    "style_diffusion_p2p": {"inner_steps": 1},
    "dpm_solver_p2p": {"sweeps": 0, "iterations": 1},
    "edit_friendly_p2p": {"start_step": 1},
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, bench_cases(1))
    return load_data(folder)


@pytest.fixture
def serve(client, tmp_path):
    """Make methods of workflows on the shared server."""

    def make(settings=None, **workflows):
        return Served(workflows, None, tmp_path, True, client=client, settings=settings)

    return make


def job_of(data, method, number=4, **changes):
    case = list(data.cases.values())[number]
    return data.job(case, method, ("pictures",), None)


def with_fewer_steps(workflow):
    """Make a saved workflow quick: steps are the first numbers of 25 or more among widgets."""
    for node in workflow["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node.update(type="RetraceDemoModel", widgets_values=[])
        values = node.get("widgets_values")
        if isinstance(values, list) and node["type"] != "RandomNoise":
            node["widgets_values"] = [4 if value in (25, 50, 100) else value for value in values]
    return workflow


def ours(name):
    return json.loads((OURS / f"{name}.json").read_text(encoding="utf-8"))


def test_method_files_are_what_the_descriptions_draw(object_info):
    drawn = draw_methods(object_info, *tool.project())
    assert sorted(drawn) == sorted(file.name for file in OURS.glob("*.json"))
    stale = [name for name, flow in drawn.items() if (OURS / name).read_text() != write(flow)]
    assert not stale, "run python3 tools/workflows.py"


@pytest.mark.parametrize("name", METHODS)
def test_each_of_our_methods_edits_a_case(serve, data, name):
    settings = {name: {"steps": 4, **FEWER.get(name, {})}}
    served = serve(settings, **{name: with_fewer_steps(ours(name))})
    edit = served.edit(job_of(data, name))
    side = 512 if name == "instruct_pix2pix" else 128
    assert edit.picture.shape == (side, side, 3) and edit.seconds > 0
    assert (edit.rows is None) == (name in ("sdedit", "instruct_pix2pix"))


def test_a_users_workflow_is_filled_with_picture_prompts_words_and_mask(serve, data):
    flow = with_fewer_steps(read("edit_inside_mask"))
    job = job_of(data, "mine")
    result = Worker({"mine": serve(mine=flow).edit}, Networks(None)).do(job)
    assert not result.error
    outside = ~job.mask
    assert outside.any() and result.metrics["corrected_psnr"] > 20
    again = serve(mine=flow).edit(job).picture
    assert np.array_equal(again, serve(mine=flow).edit(job).picture)


def read(name):
    return json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def test_a_case_that_a_workflow_refuses_is_a_failure_of_that_case(serve, data):
    job = job_of(data, "swap", number=1)  # an object is added: the prompts differ in length
    with pytest.raises(EditError, match="number of words"):
        serve(swap=with_fewer_steps(read("edit_word_swap"))).edit(job)


def test_a_workflow_that_the_server_refuses_ends_the_run(serve, data):
    flow = ours("sdedit")
    for node in flow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][-1] = 7.0  # denoise
    with pytest.raises(HostError, match=r"sdedit.*denoise"):
        serve(sdedit=flow).edit(job_of(data, "sdedit"))
