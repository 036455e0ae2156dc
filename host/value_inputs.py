"""Learned values of cross-attention, put into one run's own options of the host's UNet."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..attention.rows import Role
from ..attention.value_inputs import modulate_rows
from .guider import ACTIVE


def with_values(
    model_options: dict,
    modulations: Mapping[Role, Tensor],
    reached: Callable[[tuple], None] = lambda address: None,
) -> dict:
    """Return model options under which some roles' rows have changed values in cross-attention.

    modulations: by role, "images-or-1 2 tokens dim", on the model's device. The patch acts before
    the values are projected, so controllers and other packs' replacements get the changed ones.
    reached: is told the address of each layer that the patch acted on.
    """
    if not modulations:
        return model_options

    def patch(query: Tensor, key: Tensor, value: Tensor, extra: dict) -> tuple:
        if ACTIVE in extra:
            value = modulate_rows(value, extra[ACTIVE], modulations)
            reached((*extra["block"], extra["block_index"]))
        return query, key, value

    transformer = {**model_options.get("transformer_options", {})}
    patches = {**transformer.get("patches", {})}
    patches["attn2_patch"] = [*patches.get("attn2_patch", []), patch]
    transformer["patches"] = patches
    return {**model_options, "transformer_options": transformer}
