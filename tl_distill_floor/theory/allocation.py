"""Who gets the student's capacity: `allocate`, by Theorem 1 or by water-filling."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.theory.capacity import Number, capacity, n_features_held
from tl_distill_floor.theory.water_filling import Filled, fill

METHODS = ("top_k", "water_fill")


@dataclass(frozen=True, eq=False)
class Allocation:
    """Which features a student of one width holds."""

    capacity: Float64[np.ndarray, " feature"]
    """Dimensions given to each feature; they sum to at most the width."""
    kept: Bool[np.ndarray, " feature"]
    lost_cost: Float64[np.ndarray, " feature"]
    """What is lost of each feature's cost, in the unit of the costs."""

    @property
    def floor(self) -> float:
        """Summed cost of what is lost."""
        return float(self.lost_cost.sum())


def allocate(cost: Any, firing_rate: Any, width: Number, method: str = "water_fill") -> Allocation:
    """Spend `width` dimensions on features.

    `water_fill` is what training reaches on features that fire independently: feature i gets C_i ∈ [0, 1] of a
    dimension and loses cost_i · r(C_i; p_i), r the measured loss-capacity curve (Scherlis et al. 2022, section 2); the
    sum is least under Σ C_i ≤ width. A feature is kept when it loses at most half of what it loses at C = 0.

    `top_k` is Theorem 1 and assumption A2 of Sarkar and Deka 2026: with α = 1 − the mean firing rate, the student keeps
    the F_S = min(⌊width · g(α)⌋, F) most costly features, 1/g(α) of a dimension each, and loses the rest whole.

    Args:
        cost: [feature], at least 0: what the loss gains when the feature is dropped, in any one unit.
        firing_rate: [feature] or one number, inside (0, 1). A feature that costs nothing may have rate 0: it is not
            alive and gets no capacity.
        width: dimensions of the student, above 0.
        method: "water_fill" or "top_k".

    Returns:
        Allocation: `.capacity` [feature] in dimensions, `.kept` [feature], `.lost_cost` [feature] and their sum
        `.floor` in the unit of `cost`.

    Raises:
        ValueError: a shape, a sign, a rate or a method that does not fit, or no feature is alive.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"width must be a number of dimensions above 0, got {width}")
    costs, rates = check_features(cost, firing_rate)
    alive = np.flatnonzero(rates > 0)
    found = fill(costs[alive], rates[alive], width) if method == "water_fill" else _top_k(costs, rates, alive, width)
    return Allocation(*(_of_all(values, alive, len(costs)) for values in found))


def check_widths(widths: Any) -> Float64[np.ndarray, " width"]:
    """`widths` as a float64 array, or a ValueError that says what is wrong."""
    sizes = np.asarray(widths, dtype=np.float64)
    if sizes.ndim != 1 or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError("widths must be a vector of numbers of dimensions above 0")
    return sizes


def _top_k(
    cost: Float64[np.ndarray, " feature"],
    rate: Float64[np.ndarray, " feature"],
    alive: Int64[np.ndarray, " alive"],
    width: Number,
) -> Filled:
    per_dimension = capacity(1.0 - float(rate[alive].mean()))
    kept = np.zeros(len(alive), dtype=bool)
    kept[rank_by_cost(cost[alive], ~kept)[: n_features_held(width, per_dimension, len(alive))]] = True
    return Filled(np.where(kept, 1.0 / per_dimension, 0.0), kept, np.where(kept, 0.0, cost[alive]))


def _of_all(values: np.ndarray, alive: Int64[np.ndarray, " alive"], n_features: int) -> np.ndarray:
    found = np.zeros(n_features, dtype=values.dtype)
    found[alive] = values
    return found


def rank_by_cost(
    cost: Float64[np.ndarray, " feature"], alive: Bool[np.ndarray, " feature"]
) -> Int64[np.ndarray, " alive"]:
    """Indices of the alive features, the most costly first, ties by index."""
    order = np.argsort(-cost, kind="stable")
    found: np.ndarray = order[alive[order]]
    return found


def remaining_costs(sorted_cost: Float64[np.ndarray, " rank"]) -> Float64[np.ndarray, " ranks"]:
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
    _refuse("cost", costs, ~(np.isfinite(costs) & (costs >= 0)), "must be a finite number of at least 0")
    _refuse("firing_rate", rates, ~((rates >= 0) & (rates < 1)), "must lie inside (0, 1)")
    if not (rates > 0).any():
        raise ValueError("firing_rate is 0 for every feature: none is alive")
    _refuse(
        "firing_rate", rates, (rates == 0) & (costs > 0), "must lie inside (0, 1) for a feature that costs anything"
    )
    return costs, rates


def _refuse(name: str, values: Float64[np.ndarray, " feature"], wrong: Bool[np.ndarray, " feature"], why: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"{name}[{first}] is {values[first]}; it {why}")
