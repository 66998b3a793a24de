"""Theorem 1's floor and the floor of independent features, from costs and firing rates."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.theory.allocation import check_features, check_widths, rank_by_cost, remaining_costs
from tl_distill_floor.theory.capacity import capacity, n_features_held
from tl_distill_floor.theory.water_filling import fill_all


def theorem_floor(cost: Any, firing_rate: Any, widths: Any) -> Float64[np.ndarray, " width"]:
    """Theorem 1's floor of every width: L*(d) = Σ of the costs beyond the ⌊d · g(α)⌋ largest.

    Args:
        cost: [feature], at least 0, in any one unit.
        firing_rate: [feature] or one number; α is one less the mean over the features that fire.
        widths: [width], dimensions above 0.

    Returns:
        [width], in the unit of `cost`.

    Raises:
        ValueError: a shape or a value that does not fit.
    """
    costs, rates = check_features(cost, firing_rate)
    return _theorem(costs, rates, rates > 0, check_widths(widths))


def _theorem(
    cost: Float64[np.ndarray, " feature"],
    rate: Float64[np.ndarray, " feature"],
    alive: Bool[np.ndarray, " feature"],
    widths: Int64[np.ndarray, " width"] | Float64[np.ndarray, " width"],
) -> Float64[np.ndarray, " width"]:
    order = rank_by_cost(cost, alive)
    floors: np.ndarray = remaining_costs(cost[order])[_held(rate[order], widths)]
    return floors


def _held(
    rate: Float64[np.ndarray, " alive"], widths: Int64[np.ndarray, " width"] | Float64[np.ndarray, " width"]
) -> list[int]:
    """F_S of every width: how many features its students hold by Theorem 1."""
    per_dimension = capacity(1.0 - float(rate.mean()))
    return [n_features_held(width, per_dimension, len(rate)) for width in widths]


def independent_floor(cost: Any, firing_rate: Any, widths: Any) -> Float64[np.ndarray, " width"]:
    """The floor of `allocate` by water-filling at every width, in the unit of `cost`.

    Of more than 65,536 features those of nearly one cost and rate are taken as one, which moves a floor by less than
    1e-3 of it and 1e-5 of all costs together; `allocate` takes each by itself.

    Args:
        cost, firing_rate: see `allocate`.
        widths: [width], dimensions above 0.

    Raises:
        ValueError: a shape or a value that does not fit.
    """
    costs, rates = check_features(cost, firing_rate)
    alive = rates > 0
    return fill_all(costs[alive], rates[alive], check_widths(widths))
