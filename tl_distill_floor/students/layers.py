"""Which layer of a student stands for which of its teacher."""

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import resid_post


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
        raise InputError(f"{hook_name} belongs to no layer, so no student's layer matches it; give --match-layer")
    return max(1, round((layer + 1) * depth / layers)) - 1


def student_hook(hook_name: str, layers: int, depth: int) -> str:
    """The residual stream after that layer."""
    return resid_post(student_layer(hook_name, layers, depth))
