"""The value that travels from an inversion to an edit: every state between image and noise."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import TrajectoryError
from .schedule import check_grid


class SourceRule(NamedTuple):
    """How the source branch walks down.

    free: it samples by itself and may drift. pinned: after each step it is pulled back to the
    trajectory; `scale` 1 with `interval` 1 is Direct Inversion, whose source row is exact.
    Source: Ju et al. 2023 (arXiv:2310.01506), Alg. 1; scale and interval are its ablations.
    """

    pinned: bool = False
    scale: float = 1.0
    interval: int = 1

    @property
    def exact(self) -> bool:
        """Whether the source branch stands on the trajectory at every step."""
        return self.pinned and self.scale == 1.0 and self.interval == 1

    def correction(self, step: int) -> float:
        """Return the fraction of the offset added after step `step` (0 is the noisiest step)."""
        return self.scale if self.pinned and step % self.interval == 0 else 0.0


class NullRule(NamedTuple):
    """How an edit uses a trajectory's null embeddings.

    target: whether the target branch uses them too (the published way) or keeps the negative
    prompt ("single branch", an ablation of Ju et al. 2023). entry: whose pooled vector and other
    conditions go with them, "negative" or "source" (negative-prompt inversion).
    """

    target: bool = True
    entry: str = "negative"


class ModelFacts(NamedTuple):
    """What a trajectory has to know of the model that made it, to refuse another.

    family: the host's architecture name; prediction: eps, v or flow; latent_format: the host's
    name of the latent space; channels: of a latent.
    """

    family: str
    prediction: str
    latent_format: str
    channels: int

    @property
    def flow(self) -> bool:
        return self.prediction == "flow"


class _Fields(NamedTuple):
    latents: Tensor
    sigmas: Tensor
    clean: Tensor
    model: ModelFacts
    labels: str
    solver: str
    source: Any
    negative: Any
    guidance_scale: float
    source_rule: SourceRule
    null_embeddings: Tensor | None
    noises: Tensor | None
    extras: tuple[tuple[str, Tensor], ...]
    report: tuple[tuple[str, Any], ...]
    null_rule: NullRule


class Trajectory(_Fields):
    """States of an inversion from clean (index 0) to noisy (index T); frozen, fp32 on the CPU.

    latents: "steps+1 batch channels height width", the host's internal latent scale, at `sigmas`.
    sigmas: "steps+1", increasing. clean: "batch channels height width", the LATENT as it came in.
    labels: "next" or "current", the level under which the network was asked (see `steps`).
    solver: name in `solvers.SOLVERS`; the Edit-Sampler walks down with it.
    source, negative: the host's CONDITIONING of the source prompt (and of the inversion's
      negative prompt, if it used one); opaque here.
    guidance_scale: used by the inversion; 1 means conditional only.
    null_embeddings: "steps batch tokens dim" or None; unconditional embedding per step, step 0
      the noisiest (null-text and negative-prompt inversion).
    noises: "steps batch channels height width" or None (stochastic inversions), same order.
    extras: named tensors that one solver needs (for example EDICT's second latent); float64 ones
      stay float64.
    report: pairs for people: seconds, row-forwards, residuals.
    null_rule: how the null embeddings are used.
    A tuple, so that the host's cache can weigh its tensors.
    Raises: TrajectoryError when shapes or levels do not fit together.
    """

    __slots__ = ()

    def __new__(
        cls,
        latents: Tensor,
        sigmas: Tensor,
        clean: Tensor,
        model: ModelFacts,
        labels: str = "next",
        solver: str = "euler",
        source: Any = None,
        negative: Any = None,
        guidance_scale: float = 1.0,
        source_rule: SourceRule = SourceRule(),  # noqa: B008  frozen
        null_embeddings: Tensor | None = None,
        noises: Tensor | None = None,
        extras: tuple[tuple[str, Tensor], ...] = (),
        report: tuple[tuple[str, Any], ...] = (),
        null_rule: NullRule = NullRule(),  # noqa: B008  frozen
    ) -> "Trajectory":
        sigmas = check_grid(sigmas)
        if latents.ndim != 5 or len(latents) != len(sigmas):
            raise TrajectoryError(
                f"a trajectory of {len(sigmas)} levels needs latents [{len(sigmas)} batch channels "
                f"height width], got {list(latents.shape)}"
            )
        if latents.shape[1:] != clean.shape:
            raise TrajectoryError(
                f"clean latent {list(clean.shape)} does not fit states {list(latents.shape[1:])}"
            )
        if not bool(torch.isfinite(latents).all()):
            raise TrajectoryError("the trajectory contains NaN or Inf; repeat the inversion")
        steps = len(sigmas) - 1
        for name, tensor in (("null_embeddings", null_embeddings), ("noises", noises)):
            if tensor is not None and len(tensor) != steps:
                raise TrajectoryError(f"{name} must have {steps} entries, got {len(tensor)}")
        frozen = [_freeze(t) for t in (latents, sigmas, clean)]
        return super().__new__(
            cls,
            *frozen,
            model,
            labels,
            solver,
            source,
            negative,
            float(guidance_scale),
            source_rule,
            None if null_embeddings is None else _freeze(null_embeddings),
            None if noises is None else _freeze(noises),
            tuple((name, _freeze(t, keep_double=True)) for name, t in extras),
            tuple(report),
            null_rule,
        )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def batch(self) -> int:
        return self.latents.shape[1]

    def extra(self, name: str) -> Tensor | None:
        """Return the extra tensor of that name, or None."""
        return dict(self.extras).get(name)

    def replace(self, **changes: Any) -> "Trajectory":
        """Return a trajectory with some fields changed, validated again."""
        return type(self)(**{**self._asdict(), **changes})

    def noted(self, **entries: Any) -> "Trajectory":
        """Return a trajectory whose report has these entries too."""
        return self.replace(report=tuple({**dict(self.report), **entries}.items()))


def _freeze(tensor: Tensor, keep_double: bool = False) -> Tensor:
    double = keep_double and tensor.dtype == torch.float64
    return tensor.detach().to("cpu", torch.float64 if double else torch.float32).contiguous()
