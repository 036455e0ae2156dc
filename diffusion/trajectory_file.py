"""Trajectories as bytes: a safetensors file whose JSON header says what it is. Executes nothing.

The file opens in any safetensors reader: `__metadata__` holds "format", "version", "facts" (JSON)
and "checksum"; the tensors are named after the trajectory's fields.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import RetraceError, TrajectoryError
from .trajectory import ModelFacts, NullRule, SourceRule, Trajectory

FORMAT, VERSION = "retrace-trajectory", "1"
MAX_HEADER = 16 * 2**20
FIELDS = ("latents", "sigmas", "clean")
OPTIONAL = ("null_embeddings", "noises")
EXTRA = "extras."
SAFE = (str, int, float, bool, type(None))


def to_bytes(trajectory: Trajectory, package: str = "") -> bytes:
    """Return a trajectory as the bytes of a safetensors file.

    package: the version of the pack that writes, kept for people.
    Raises: TrajectoryError if its conditioning holds what a file cannot (a ControlNet, hooks).
    """
    tensors = {name: getattr(trajectory, name) for name in FIELDS}
    tensors |= {name: t for name in OPTIONAL if (t := getattr(trajectory, name)) is not None}
    tensors |= {EXTRA + name: tensor for name, tensor in trajectory.extras}
    facts = {
        "package": package,
        "model": trajectory.model._asdict(),
        "sigmas": [round(float(sigma), 6) for sigma in trajectory.sigmas],
        "labels": trajectory.labels,
        "solver": trajectory.solver,
        "guidance_scale": trajectory.guidance_scale,
        "source_rule": trajectory.source_rule._asdict(),
        "null_rule": trajectory.null_rule._asdict(),
        "report": [[name, v] for name, v in trajectory.report if isinstance(v, SAFE)],
        "source": pack_value(trajectory.source, "source", tensors),
        "negative": pack_value(trajectory.negative, "negative", tensors),
    }
    prompt = {name: t for name, t in tensors.items() if name.startswith("source")}
    facts["prompt_hash"] = digest("", prompt)
    # the format refuses tensors that share memory, which states and clean latent may
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    written = json.dumps(facts, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "facts": written}
    metadata["checksum"] = digest(written, tensors)
    return safetensors.torch.save(tensors, metadata)


def from_bytes(data: bytes) -> Trajectory:
    """Read a trajectory back.

    Raises: TrajectoryError saying whether the bytes are cut, altered, of another version, or no
    trajectory at all.
    """
    metadata = read_metadata(data)
    try:
        tensors = safetensors.torch.load(data)
        if metadata["checksum"] != digest(metadata["facts"], tensors):
            raise TrajectoryError(
                "the trajectory file was altered: its checksum does not fit its content; save the "
                "trajectory again"
            )
        return build(json.loads(metadata["facts"]), tensors)
    except RetraceError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            OverflowError, RecursionError, RuntimeError, IndexError) as error:
        raise TrajectoryError(
            "the trajectory file is damaged or cut short; save the trajectory again or copy the "
            f"file anew ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the `__metadata__` of a trajectory file, checked to be ours and of this version.

    Raises: TrajectoryError.
    """
    if len(data) < 8:
        raise TrajectoryError(f"the trajectory file is cut short: it has only {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, MAX_HEADER):
        raise TrajectoryError(
            f"the trajectory file is cut short or no safetensors file: its header claims {length} "
            f"bytes of {len(data)}"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        known = {name: metadata[name] for name in ("format", "version", "facts", "checksum")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrajectoryError(
            "this is not a trajectory file, or its header is damaged; choose a file written by "
            "Save-Trajectory"
        ) from error
    if known["format"] != FORMAT or not all(isinstance(v, str) for v in known.values()):
        raise TrajectoryError(
            f"this safetensors file holds {str(known['format'])[:40]!r}, not a trajectory; choose "
            "a file written by Save-Trajectory"
        )
    if known["version"] != VERSION:
        raise TrajectoryError(
            f"this trajectory file is of version {known['version'][:20]!r}, this pack reads "
            f"version {VERSION!r}; update Retrace or repeat the inversion"
        )
    return known


def build(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trajectory:
    """Return the trajectory that checked facts and tensors describe, or raise TrajectoryError."""
    for name, tensor in tensors.items():
        if name in (*FIELDS, *OPTIONAL) and tensor.dtype != torch.float32:
            raise TrajectoryError(f"{name} must be float32 in a file, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise TrajectoryError(f"{name} contains NaN or Inf; repeat the inversion")
    return Trajectory(
        **{name: tensors[name] for name in FIELDS},
        **{name: tensors.get(name) for name in OPTIONAL},
        model=ModelFacts(**facts["model"]),
        labels=facts["labels"],
        solver=facts["solver"],
        source=unpack_value(facts["source"], tensors),
        negative=unpack_value(facts["negative"], tensors),
        guidance_scale=facts["guidance_scale"],
        source_rule=SourceRule(**facts["source_rule"]),
        null_rule=NullRule(**facts.get("null_rule", {})),
        extras=tuple((n[len(EXTRA) :], t) for n, t in tensors.items() if n.startswith(EXTRA)),
        report=tuple((name, value) for name, value in facts["report"]),
    )


def pack_value(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a conditioning as JSON, its tensors moved into `tensors` under dotted names.

    Raises: TrajectoryError for anything that is neither tensor nor plain value.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, SAFE):
        return {"value": value}
    if isinstance(value, list | tuple):
        return {"list": [pack_value(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {k: pack_value(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    raise TrajectoryError(
        f"the conditioning carries {name.rpartition('.')[2]!r} ({type(value).__name__}), which a "
        "file cannot hold; remove ControlNets and hooks from the source prompt before saving"
    )


def unpack_value(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Undo `pack_value`."""
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "list":
        return [unpack_value(entry, tensors) for entry in value]
    if kind == "dict":
        return {key: unpack_value(entry, tensors) for key, entry in value.items()}
    if kind != "value":
        raise TrajectoryError(f"the trajectory file holds an unknown kind of value, {kind[:20]!r}")
    return value


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and named tensors, independent of their order."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        total.update(f"|{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        # bytes of any dtype (bfloat16 included); an empty tensor has no view as bytes
        if tensor.numel():
            total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()
