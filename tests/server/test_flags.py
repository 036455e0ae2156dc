"""A host started with other caches gives the same pictures.

The flags for memory have no meaning beside --cpu: see tests/host/test_low_memory.py.
"""

import io
import json

import numpy as np
import pytest
from fixtures_server import running_server
from hosting.client import Client
from hosting.layout import REPOSITORY
from PIL import Image
from workflow_api import to_api

FLAGS = {"--cache-none": (), "--cache-lru": ("1",)}
FILES = ("edit_word_swap", "invert_once_edit_many")
FEW = {"steps": 3}


def pictures(client: Client, info: dict) -> list[np.ndarray]:
    """Run two workflows of few steps, the first one twice; return all that they show."""
    shown = []
    for name in (*FILES, FILES[0]):
        file = REPOSITORY / "workflows" / f"{name}.json"
        prompt = to_api(json.loads(file.read_text("utf-8")), info)
        for node in prompt.values():
            node["inputs"].update({k: v for k, v in FEW.items() if k in node["inputs"]})
        outputs = client.run(prompt).outputs
        for node in sorted(outputs):
            for image in outputs[node].get("images", []):
                shown.append(np.asarray(Image.open(io.BytesIO(client.download(image)))))
    return shown


@pytest.fixture(scope="module")
def expected(client, object_info):
    return pictures(client, object_info)


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_same_pictures_under_another_flag(flag, expected, object_info, tmp_path):
    with running_server(tmp_path, flag, *FLAGS[flag]) as server:
        found = pictures(server.client, object_info)
    assert len(found) == len(expected) > 5
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
