"""Compute floors from costs and firing rates: Theorem 1's, that of independent features, and two simple ones."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

from tl_distill_floor.theory.allocation import check_features, check_widths, rank_by_cost, remaining_costs
from tl_distill_floor.theory.capacity import Number, capacity, n_features_held
from tl_distill_floor.theory.water_filling import water_filling_floors

FloorFunction = Callable[[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], Float64[np.ndarray, " width"]]
"""Compute the floor at each width from (costs [feature], firing rates [feature], widths [width])."""


def theorem_floor(
    cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, widths: npt.ArrayLike
) -> Float64[np.ndarray, " width"]:
    """Compute Theorem 1's floor at every width: L*(d) = Σ of the costs beyond the ⌊d · g(α)⌋ largest.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), Theorem 1.

    Args:
        cost: [feature] increase of the loss when the feature is removed, at least 0, in any unit.
        firing_rate: [feature], or one number for all features. α is 1 minus the mean over the features whose rate is
            above 0.
        widths: [width] student widths in dimensions, above 0.

    Returns:
        [width] floors in the unit of `cost`.

    Raises:
        ValueError: a shape or a value is not valid; see `allocate`.

    Example:
        >>> theorem_floor([9.0, 5.0, 2.0, 1.0, 0.5], firing_rate=0.1, widths=[0.5, 1, 2]).tolist()
        [3.5, 0.5, 0.0]
    """
    costs, rates = check_features(cost, firing_rate)
    ranked = rank_by_cost(costs, rates > 0)
    return ranked_theorem_floor(costs[ranked], rates[ranked], check_widths(widths))


def ranked_theorem_floor(
    sorted_cost: Float64[np.ndarray, " alive"],
    firing_rate: Float64[np.ndarray, " alive"],
    widths: Int64[np.ndarray, " width"] | Float64[np.ndarray, " width"],
) -> Float64[np.ndarray, " width"]:
    """Compute Theorem 1's floor of alive features that are sorted by falling cost; see `theorem_floor`."""
    floors: np.ndarray = remaining_costs(sorted_cost)[held_ranks(firing_rate, widths)]
    return floors


def held_ranks(
    firing_rate: Float64[np.ndarray, " alive"],
    widths: Int64[np.ndarray, " width"] | Float64[np.ndarray, " width"],
) -> list[int]:
    """Return the number of features F_S that a student of each width holds by Theorem 1.

    Args:
        firing_rate: [alive] firing rates of the alive features.
        widths: [width] student widths in dimensions.
    """
    features_per_dimension = capacity(1.0 - float(firing_rate.mean()))
    return [n_features_held(width, features_per_dimension, len(firing_rate)) for width in widths]


def independent_floor(
    cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, widths: npt.ArrayLike
) -> Float64[np.ndarray, " width"]:
    """Compute the floor of features that fire independently, by water-filling, at every width.

    This is `allocate(cost, firing_rate, width).floor` at each width. If there are more than 65,536 features, those of
    nearly equal cost and rate are grouped. This changes a floor by less than 1e-3 of itself or 1e-5 of the summed
    cost.

    Source: Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", section 2.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number, see `allocate`.
        widths: [width] student widths in dimensions, above 0.

    Returns:
        [width] floors in the unit of `cost`.

    Raises:
        ValueError: a shape or a value is not valid; see `allocate`.

    Example:
        >>> independent_floor([9.0, 5.0, 2.0], firing_rate=0.1, widths=[3]).tolist()
        [0.0]
    """
    costs, rates = check_features(cost, firing_rate)
    alive = rates > 0
    return water_filling_floors(costs[alive], rates[alive], check_widths(widths))


def floor_without_superposition(
    cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, widths: npt.ArrayLike
) -> Float64[np.ndarray, " width"]:
    """Compute the floor if a student keeps one feature per dimension, those with the largest costs.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number; it does not change the floor.
        widths: [width] dimensions.

    Example:
        >>> floor_without_superposition([9.0, 5.0, 2.0], 0.1, [1, 2]).tolist()
        [7.0, 2.0]
    """
    costs, _ = check_features(cost, firing_rate)
    return _costs_beyond(costs, check_widths(widths))


def packing_law_floor(
    cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, widths: npt.ArrayLike
) -> Float64[np.ndarray, " width"]:
    """Compute the floor if a student keeps 1.03 g(α)^0.53 features per dimension, those with the largest costs.

    The law was fitted to trained toy models with importances 1/i.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number. α is 1 minus the mean over the features whose rate is above 0.
        widths: [width] dimensions.

    Example:
        >>> packing_law_floor([9.0, 5.0, 2.0], 0.1, [1]).tolist()
        [2.0]
    """
    costs, rates = check_features(cost, firing_rate)
    features_per_dimension = 1.03 * capacity(1.0 - float(rates[rates > 0].mean())) ** 0.53
    return _costs_beyond(costs, check_widths(widths) * features_per_dimension)


PREDICTORS: dict[str, FloorFunction] = {
    "one per dimension": floor_without_superposition,
    "theorem": theorem_floor,
    "packing law": packing_law_floor,
    "independent": independent_floor,
}
"""The predictors by name."""


def _costs_beyond(
    cost: Float64[np.ndarray, " feature"], n_kept: Float64[np.ndarray, " width"]
) -> Float64[np.ndarray, " width"]:
    """Return the summed cost of all but the ⌊n_kept⌋ features with the largest costs, for each width."""
    ranks = np.minimum(n_kept, len(cost)).astype(np.int64)
    remaining: np.ndarray = remaining_costs(np.sort(cost)[::-1])[ranks]
    return remaining
