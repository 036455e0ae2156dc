"""pix2pix-zero on a live server: gradients under inference mode, other work between, cancelling."""

import io
import json

import numpy as np
import pytest
from hosting.errors import RunError
from hosting.layout import REPOSITORY
from PIL import Image
from workflow_api import to_api

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]
SAMPLER = "RetraceEditSampler"


@pytest.fixture
def prompts(object_info):
    """Return workflows by name, with few steps, and the name of a workflow's sampler."""

    def read(name):
        file = REPOSITORY / "workflows" / f"{name}.json"
        prompt = to_api(json.loads(file.read_text(encoding="utf-8")), object_info)
        for node in prompt.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = 4
        return prompt, next(n for n, node in prompt.items() if node["class_type"] == SAMPLER)

    return read


def pixels(client, run):
    shown = [image for out in run.outputs.values() for image in out.get("images", [])]
    return [np.asarray(Image.open(io.BytesIO(client.download(image)))) for image in shown]


def equal(first, second):
    return len(first) == len(second) > 0 and all(map(np.array_equal, first, second))


def test_guided_edits_repeat_bit_by_bit_after_other_work_and_a_cancelled_run(
    client, run_workflow, prompts
):
    guided, sampler = prompts("edit_pix2pix_zero")
    other, other_sampler = prompts("edit_word_swap")
    first, swapped = pixels(client, run_workflow(guided)), pixels(client, run_workflow(other))
    again = run_workflow(guided)
    assert sampler not in again.cached  # the host keeps the last workflow's results only
    assert equal(pixels(client, again), first)
    after = run_workflow(other)
    assert other_sampler not in after.cached
    assert equal(pixels(client, after), swapped)

    seen = []

    def cancel(kind, data):
        if kind == "progress" and data.get("node") == sampler and data["value"] == 2:
            seen.append(data["max"])
            client.interrupt()

    with pytest.raises(RunError, match="interrupted"):
        client.run(guided, cancel)
    assert seen == [4]
    resumed = run_workflow(guided)
    assert sampler not in resumed.cached
    assert equal(pixels(client, resumed), first)
