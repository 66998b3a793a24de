"""Which layer of a student stands for which of its teacher."""

import math

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import resid_post

BEFORE = ("hook_resid_pre", "hook_in")
"""Names of the residual stream before a layer, which is that after the one below it."""
RESIDUAL = (*BEFORE, "hook_resid_post", "hook_out")


def is_residual(hook_name: str) -> bool:
    """Whether a hook point is of the residual stream between layers."""
    return hook_name.count(".") == 2 and hook_name.endswith(RESIDUAL)


def layer_of(hook_name: str) -> int | None:
    """The layer of a hook point; None outside the layers."""
    from sae_lens.util import extract_layer_from_tlens_hook_name

    layer: int | None = extract_layer_from_tlens_hook_name(hook_name)
    return layer


def student_layer(hook_name: str, layers: int, depth: int) -> int:
    """The layer of a student that lies as deep, in its own layers, as a hook point of the teacher does in its.

    Raises:
        InputError: the hook point belongs to no layer.
    """
    layer = layer_of(hook_name)
    if layer is None:
        raise InputError(f"{hook_name} belongs to no layer, so no layer of a student stands for it; name one that does")
    passed = layer if hook_name.endswith(BEFORE) else layer + 1
    return max(1, math.floor(passed * depth / layers + 0.5)) - 1


def student_hook(hook_name: str, layers: int, depth: int) -> str:
    """The residual stream after that layer."""
    return resid_post(student_layer(hook_name, layers, depth))
