"""A worker: edits one case by one method and measures what comes out. It writes nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from .jobs import Edit, EditError, Job, Result
from .measures import PICTURE_GROUP, fit, measure_pictures
from .networks import Networks

Method = Callable[[Job], Edit]


def no_edit(job: Job) -> Edit:
    """Return the source: the most that can be kept, and no edit at all."""
    return Edit(job.source)


def exact_target(job: Job) -> Edit:
    """Return the perfect result, where the data has it."""
    if job.exact is None:
        raise EditError("this data has no exact target")
    return Edit(job.exact)


BUILT_IN: Mapping[str, Method] = {"no-edit": no_edit, "exact-target": exact_target}


class Worker:
    """Does jobs with some methods, by name, and the networks of the metrics."""

    def __init__(self, methods: Mapping[str, Method], networks: Networks) -> None:
        self.methods, self.networks = methods, networks

    def do(self, job: Job) -> Result:
        """Edit, unless a picture of an earlier run came with the job, and measure."""
        result = Result(job.method, job.key, job.type_name)
        try:
            if job.edited is None:
                edit = self.methods[job.method](job)
                picture = edit.picture
                result = replace(
                    result, seconds=edit.seconds, rows=edit.rows, picture=encode(picture)
                )
            else:
                picture = decode(job.edited)
        except EditError as error:
            return replace(result, error=str(error))
        return self.measure(job, fit(picture, job.source), result)

    def measure(self, job: Job, picture: np.ndarray, result: Result) -> Result:
        """Add the metrics of the groups that the job asks for."""
        found = dict(result.metrics)
        for group in job.groups:
            if group == PICTURE_GROUP:
                found |= measure_pictures(job, picture)
            else:
                found |= self.networks.measure(group, job, picture)
        return replace(result, metrics=found, groups=(*result.groups, *job.groups))


def encode(picture: np.ndarray) -> bytes:
    """Return a uint8 picture as PNG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Return a picture file as uint8 "height width 3"."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))
