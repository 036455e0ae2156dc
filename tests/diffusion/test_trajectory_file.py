"""Files of trajectories: what comes back, and that damage is refused with a sentence."""

import json
import random
import struct

import pytest
import safetensors.torch
import torch
from helpers_closed_form import latent
from retrace.diffusion.errors import TrajectoryError
from retrace.diffusion.trajectory import ModelFacts, SourceRule, Trajectory
from retrace.diffusion.trajectory_file import digest, from_bytes, read_metadata, to_bytes

FACTS = ModelFacts("SD15:UNetModel", "eps", "SD15", 4)


def make_trajectory(**fields) -> Trajectory:
    states = torch.stack([latent(seed=i, dtype=torch.float32) for i in range(4)])
    given = {
        "latents": states, "sigmas": torch.tensor([0.0, 1.0, 2.0, 4.0]), "clean": states[0],
        "model": FACTS, "labels": "current",
        "source": [[torch.randn(1, 7, 5), {"pooled_output": torch.randn(1, 3), "strength": 0.5,
                                           "guidance": None}]],
        "negative": [[torch.randn(1, 7, 5).bfloat16(), {}]],
        "guidance_scale": 1.5, "source_rule": SourceRule(True, 0.5, 2),
        "null_embeddings": torch.randn(3, 1, 7, 5), "noises": torch.randn(3, 1, 4, 4, 4),
        "extras": (("second", torch.randn(4, 1, 4, 4, 4, dtype=torch.float64)),),
        "report": (("seconds", 1.5), ("inversion", "DDIM")),
    }
    return Trajectory(**{**given, **fields})


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def header_of(data: bytes) -> dict:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def with_header(data: bytes, header: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def forge(data: bytes, *, tensors=None, facts=None, **metadata) -> bytes:
    """Return a file with changed content and a checksum that fits it."""
    known = read_metadata(data)
    held = {**safetensors.torch.load(data), **(tensors or {})}
    written = json.dumps({**json.loads(known["facts"]), **(facts or {})})
    checksum = digest(written, held)
    return safetensors.torch.save(
        held, {**known, "facts": written, "checksum": checksum, **metadata}
    )


def test_what_was_saved_comes_back_bit_for_bit():
    trajectory = make_trajectory()
    assert same(tuple(trajectory), tuple(from_bytes(to_bytes(trajectory))))


def test_a_bare_trajectory_comes_back_too():
    trajectory = make_trajectory(source=None, negative=None, null_embeddings=None, noises=None,
                                 extras=(), report=())
    assert same(tuple(trajectory), tuple(from_bytes(to_bytes(trajectory))))


def test_saving_twice_gives_the_same_checksum():
    trajectory = make_trajectory()
    first, second = (read_metadata(to_bytes(trajectory)) for _ in range(2))
    assert first["checksum"] == second["checksum"]


def test_the_file_is_readable_without_the_pack():
    data = to_bytes(make_trajectory(), package="1.2.3")
    metadata = header_of(data)["__metadata__"]
    facts = json.loads(metadata["facts"])
    assert metadata["format"] == "retrace-trajectory" and metadata["version"] == "1"
    assert facts["model"]["family"] == "SD15:UNetModel" and facts["package"] == "1.2.3"
    assert facts["sigmas"] == [0.0, 1.0, 2.0, 4.0] and facts["solver"] == "euler"
    assert len(facts["prompt_hash"]) == 64
    assert safetensors.torch.load(data)["latents"].shape == (4, 1, 4, 4, 4)


def test_the_prompts_hash_knows_the_prompt():
    def prompt_hash(source):
        data = to_bytes(make_trajectory(source=source))
        return json.loads(read_metadata(data)["facts"])["prompt_hash"]

    one, other = [[torch.zeros(1, 7, 5), {}]], [[torch.ones(1, 7, 5), {}]]
    assert prompt_hash(one) == prompt_hash(one) != prompt_hash(other)


def test_a_conditioning_with_a_live_object_is_not_written():
    with pytest.raises(TrajectoryError, match="'control'"):
        to_bytes(make_trajectory(source=[[torch.zeros(1, 7, 5), {"control": object()}]]))


def test_a_file_cut_anywhere_is_refused():
    data, rng = to_bytes(make_trajectory()), random.Random(0)
    for end in [0, 1, 7, 8, 9, len(data) - 1, *(rng.randrange(len(data)) for _ in range(100))]:
        with pytest.raises(TrajectoryError):
            from_bytes(data[:end])


def test_fuzzed_headers_are_refused():
    data, rng = to_bytes(make_trajectory()), random.Random(1)
    (length,) = struct.unpack("<Q", data[:8])
    trajectory = tuple(from_bytes(data))
    for _ in range(200):
        header = bytearray(data[: 8 + length])
        for _ in range(rng.randint(1, 8)):
            header[rng.randrange(len(header))] = rng.randrange(256)
        try:
            read = from_bytes(bytes(header) + data[8 + length :])
        except TrajectoryError:
            continue
        assert same(tuple(read), trajectory)  # only where nothing that means anything changed


@pytest.mark.parametrize(
    "header",
    [b"", b"{}", b"[]", b"null", b"[" * 100000, b'{"__metadata__":1}',
     b'{"__metadata__":{"format":"pt"}}', b"\xff\xfe"],
)
def test_a_header_of_another_kind_is_refused(header):
    with pytest.raises(TrajectoryError):
        from_bytes(with_header(to_bytes(make_trajectory()), header))


def test_a_huge_header_length_is_refused_before_it_is_read():
    data = to_bytes(make_trajectory())
    with pytest.raises(TrajectoryError, match="cut short"):
        from_bytes(struct.pack("<Q", 2**63) + data[8:])


def test_flipped_bytes_in_the_tensors_are_noticed():
    data, rng = to_bytes(make_trajectory()), random.Random(2)
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(50):
        place = rng.randrange(8 + length, len(data))
        altered = bytearray(data)
        altered[place] ^= 1 << rng.randrange(8)
        with pytest.raises(TrajectoryError):
            from_bytes(bytes(altered))


def test_another_model_forged_into_the_header_is_noticed():
    data = to_bytes(make_trajectory())
    with pytest.raises(TrajectoryError, match="altered"):
        from_bytes(data.replace(b"SD15:UNetModel", b"SDXL:UNetModel"))


def test_another_version_is_refused_by_its_name():
    with pytest.raises(TrajectoryError, match="version '2'"):
        from_bytes(forge(to_bytes(make_trajectory()), version="2"))


def test_another_safetensors_file_is_refused():
    with pytest.raises(TrajectoryError, match="not a trajectory"):
        from_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.float64])
def test_states_of_another_dtype_are_refused(dtype):
    data = to_bytes(make_trajectory())
    with pytest.raises(TrajectoryError, match="float32"):
        from_bytes(forge(data, tensors={"latents": torch.zeros(4, 1, 4, 4, 4, dtype=dtype)}))


@pytest.mark.parametrize("name", ["latents", "sigmas", "clean", "noises", "source.0.0",
                                  "extras.second"])
def test_nan_is_refused_wherever_it_stands(name):
    data = to_bytes(make_trajectory())
    held = safetensors.torch.load(data)[name].clone()
    held.view(-1)[0] = float("nan")
    with pytest.raises(TrajectoryError, match="NaN"):
        from_bytes(forge(data, tensors={name: held}))


@pytest.mark.parametrize(
    "facts",
    [{"model": {}}, {"model": {"path": "x"}}, {"source": {"pickle": "x"}}, {"source": {}},
     {"source": {"tensor": "nowhere"}}, {"source_rule": 3}, {"report": 5}, {"guidance_scale": "a"}],
)
def test_facts_that_do_not_fit_are_refused(facts):
    with pytest.raises(TrajectoryError):
        from_bytes(forge(to_bytes(make_trajectory()), facts=facts))


def test_shapes_that_do_not_fit_are_refused():
    data = to_bytes(make_trajectory())
    with pytest.raises(TrajectoryError):
        from_bytes(forge(data, tensors={"clean": torch.zeros(2, 4, 4, 4)}))
