"""Forward passes with plain PyTorch hooks, independent of the package."""

import torch
from torch import Tensor, nn

from tests.helpers.models import HOOK
from tl_distill_floor.measuring.hooks import get_hook_point


def logits_with(model: nn.Module, ids: Tensor, activation: Tensor) -> Tensor:
    """Return the logits of a forward pass in which another activation replaces that at the hook point."""
    handle = get_hook_point(model, HOOK).register_forward_hook(lambda *_: activation)
    try:
        with torch.no_grad():
            logits: Tensor = model(ids)
            return logits
    finally:
        handle.remove()


def activation_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the activation at the hook point in a forward pass."""
    captured: list[Tensor] = []
    handle = get_hook_point(model, HOOK).register_forward_hook(lambda _m, _i, output: captured.append(output))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return captured[0]
