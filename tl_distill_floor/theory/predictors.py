"""The predictors of a floor from costs and firing rates alone, side by side, to be judged on what training reached."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from tl_distill_floor.theory.allocation import allocate, remaining_costs
from tl_distill_floor.theory.capacity import Number, capacity

Predictor = Callable[[Any, Any, Number], float]


def one_per_dimension(cost: Any, firing_rate: Any, width: Number) -> float:  # noqa: ARG001
    """The naive floor, without superposition: a student keeps its ⌊d⌋ most costly features."""
    return _beyond(cost, math.floor(float(width)))


def theorem(cost: Any, firing_rate: Any, width: Number) -> float:
    """Theorem 1 (Sarkar and Deka 2026): the ⌊d · g(α)⌋ most costly features are kept."""
    return allocate(cost, firing_rate, width, method="top_k").floor


def packing_law(cost: Any, firing_rate: Any, width: Number) -> float:
    """⌊d · 1.03 g(α)^0.53⌋ features are kept: a fit to trained toy models with importances 1/i."""
    alpha = 1.0 - float(np.mean(firing_rate))
    return _beyond(cost, math.floor(float(width) * 1.03 * capacity(alpha) ** 0.53))


def independent(cost: Any, firing_rate: Any, width: Number) -> float:
    """Water-filling over the measured loss-capacity curve."""
    return allocate(cost, firing_rate, width).floor


PREDICTORS: dict[str, Predictor] = {
    "one per dimension": one_per_dimension,
    "theorem": theorem,
    "packing law": packing_law,
    "independent": independent,
}


def _beyond(cost: Any, kept: int) -> float:
    ordered: Float64[np.ndarray, " rank"] = np.sort(np.asarray(cost, dtype=np.float64))[::-1]
    return float(remaining_costs(ordered)[min(kept, len(ordered))])
