"""What Retrace leaves in a MODEL's options: the frozen EditPlan of the controller nodes."""

from typing import Any

from ..attention.plan import EditPlan
from ..attention.store import AttentionStore

PLAN = "retrace_plan"
"""Key in transformer_options under which controller nodes leave the frozen EditPlan."""

ACTIVE = "retrace_rows"
"""Key in transformer_options that marks the diffusion model's own call (not a ControlNet's)."""


def get_plan(model: Any) -> EditPlan:
    """Return the plan that controller nodes left on a MODEL (an empty one if there is none)."""
    return model.model_options.get("transformer_options", {}).get(PLAN, EditPlan())


def with_controller(model: Any, controller: Any, store: AttentionStore | None = None) -> Any:
    """Return a clone of a MODEL that carries one controller more, and recorded attention."""
    clone = model.clone()
    plan = get_plan(model).with_controller(controller)
    if store is not None:
        plan = plan.with_store(store)
    clone.model_options["transformer_options"][PLAN] = plan
    return clone
