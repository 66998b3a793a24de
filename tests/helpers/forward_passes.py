"""Plain forward passes with PyTorch hooks, independent of the package."""

from typing import Any

import torch
from torch import Tensor

from tests.helpers.models import HOOK
from tl_distill_floor.measuring.hooks import hook_point


def logits_with(model: Any, ids: Tensor, activation: Tensor) -> Tensor:
    """A whole forward pass with another activation, by a plain hook."""
    handle = hook_point(model, HOOK).register_forward_hook(lambda *_: activation)
    try:
        with torch.no_grad():
            return model(ids)
    finally:
        handle.remove()


def activation_of(model: Any, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = hook_point(model, HOOK).register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return kept[0]
