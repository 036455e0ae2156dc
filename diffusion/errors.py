"""The errors Retrace raises on purpose; a message says what was expected, what came, what to do.

RetraceError (a ValueError)
├── ScheduleError        noise levels that do not make a schedule
├── LatentError          a latent of the wrong shape, size or content (NaN, Inf)
├── TrajectoryError      a trajectory that is malformed or belongs to another model
├── TokenMapError        prompts, words or windows that cannot be aligned
├── BlockSelectionError  attention layers that this model does not have
├── PlanError            controllers that contradict each other, or an edit that would do nothing
├── HostError            something in the host or model that Retrace cannot work with
└── DivergenceError      a run whose numbers left the finite world, with the step and likely cause
"""


class RetraceError(ValueError):
    """Base of all errors that carry advice for the user."""


class ScheduleError(RetraceError):
    """Noise levels that do not make a schedule."""


class LatentError(RetraceError):
    """A latent of the wrong shape, size or content."""


class TrajectoryError(RetraceError):
    """A trajectory that is malformed or belongs to another model."""


class TokenMapError(RetraceError):
    """Prompts, words or windows that cannot be aligned."""


class BlockSelectionError(RetraceError):
    """Attention layers that this model does not have."""


class PlanError(RetraceError):
    """Controllers that contradict each other, or an edit that would do nothing."""


class HostError(RetraceError):
    """Something in the host or the model that Retrace cannot work with."""


class DivergenceError(RetraceError):
    """A run whose numbers left the finite world."""
