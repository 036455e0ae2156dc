"""The Edit-Metrics node gives numbers that a graph can use."""

import math

import pytest
import torch

pytestmark = pytest.mark.host


@pytest.fixture
def node(comfy):
    from retrace.nodes.metrics import EditMetrics

    return EditMetrics


def test_outputs_are_numbers_in_the_schema_s_order(node):
    schema = node.define_schema()
    image = torch.full((1, 16, 16, 3), 0.5)
    mask = torch.zeros(1, 16, 16)
    mask[:, 8:] = 1
    report, *values = node.execute(image, image + 0.1 * mask[..., None], mask).args
    named = dict(zip([output.id for output in schema.outputs[1:]], values, strict=True))
    assert named["psnr_outside"] == math.inf and named["mse_outside"] == 0
    assert named["psnr_inside"] == pytest.approx(20, abs=1e-4)
    assert all(type(value) is float for value in values)
    assert report.count("\n") == 4


def test_without_a_mask_nothing_is_inside(node):
    image = torch.full((1, 16, 16, 3), 0.5)
    _, *values = node.execute(image, image).args
    assert values[0] == math.inf and all(math.isnan(value) for value in values[3:])
