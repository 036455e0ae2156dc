"""What the host's cache spares a user: an inversion is not run again for another target."""

import json

import pytest
from hosting.layout import REPOSITORY
from workflow_api import to_api

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timeout(600)]


def test_changed_target_edits_again_without_inverting_again(object_info, run_workflow):
    file = REPOSITORY / "workflows" / "edit_word_swap.json"
    prompt = to_api(json.loads(file.read_text(encoding="utf-8")), object_info)
    nodes = {node["class_type"]: name for name, node in prompt.items()}
    prompt[nodes["RetraceInvertDDIM"]]["inputs"]["steps"] = 4
    run_workflow(prompt)
    pair = prompt[nodes["RetracePromptPair"]]["inputs"]
    pair["target"] = pair["target"].replace("green", "purple")
    cached = set(run_workflow(prompt).cached)
    assert {nodes["RetraceInvertDDIM"], nodes["RetraceInvertDirectInversion"]} <= cached
    assert nodes["RetraceEditSampler"] not in cached
