"""Who gets the student's capacity: `allocate` (Sarkar and Deka 2026, Theorem 1 and assumption A2)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.records import Allocation
from tl_distill_floor.theory.capacity import Number, capacity, n_held

METHODS = ("top_k",)


def allocate(cost: Any, firing_rate: Any, width: Number, method: str = "top_k") -> Allocation:
    """Spend `width` dimensions on features, the most costly first.

    `top_k` is Theorem 1: with α = 1 − the mean firing rate of the features that fire, the student keeps the
    F_S = min(⌊width · g(α)⌋, F) most costly of them, 1/g(α) of a dimension each, and loses the rest whole.

    Args:
        cost: [feature], at least 0: what the loss gains when the feature is dropped, in any one unit.
        firing_rate: [feature] or one number, in [0, 1]. A feature of rate 0 never fires: it needs no capacity.
        width: dimensions of the student, above 0.
        method: "top_k".

    Returns:
        Allocation: `.capacity` [feature] in dimensions, `.kept` [feature], `.floor` in the unit of `cost`.

    Raises:
        ValueError: a shape, a sign or a method that does not fit, or a mean rate of 0 or 1, where g has no value.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"width must be a number of dimensions above 0, got {width}")
    costs, rates = check_features(cost, firing_rate)
    alive = rates > 0
    if not alive.any():
        raise ValueError("no feature fires, so there is nothing to allocate")
    per_dimension = capacity(1.0 - float(rates[alive].mean()))
    order = by_cost(costs, alive)
    held = order[: n_held(width, per_dimension, len(order))]
    kept = np.zeros(len(costs), dtype=bool)
    kept[held] = True
    return Allocation(
        capacity=np.where(kept, 1.0 / per_dimension, 0.0), kept=kept, floor=float(costs[alive & ~kept].sum())
    )


def by_cost(cost: Float64[np.ndarray, " feature"], alive: Bool[np.ndarray, " feature"]) -> Int64[np.ndarray, " alive"]:
    """Indices of the alive features, the most costly first, ties by index."""
    order = np.argsort(-cost, kind="stable")
    found: np.ndarray = order[alive[order]]
    return found


def tail_costs(sorted_cost: Float64[np.ndarray, " rank"]) -> Float64[np.ndarray, " ranks"]:
    """[rank + 1] what remains beyond the first k costs, for k from 0 to all of them; exactly 0 at the end."""
    return np.concatenate([np.cumsum(sorted_cost[::-1])[::-1], [0.0]])


def check_features(
    cost: Any, firing_rate: Any
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """`cost` and `firing_rate` as float64 arrays of one length, or a ValueError that says what is wrong."""
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 1 or not len(costs):
        raise ValueError(f"cost must be a vector of at least one feature, got shape {costs.shape}")
    rates = np.asarray(firing_rate, dtype=np.float64)
    if rates.ndim == 0:
        rates = np.full(len(costs), float(rates))
    if rates.shape != costs.shape:
        raise ValueError(f"firing_rate must be one number or as long as cost ({len(costs)}), got shape {rates.shape}")
    if not (np.isfinite(costs).all() and (costs >= 0).all()):
        raise ValueError("every cost must be a finite number of at least 0")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("every firing rate must lie in [0, 1]")
    return costs, rates
