"""Predictors of a floor from costs and firing rates alone, to compare with the floors that training reaches."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from tl_distill_floor.theory.allocation import check_features, check_widths, remaining_costs
from tl_distill_floor.theory.capacity import Number, capacity
from tl_distill_floor.theory.floors import independent_floor, theorem_floor

FloorFunction = Callable[[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], Float64[np.ndarray, " width"]]
"""Compute the floor at each width from (costs [feature], firing rates [feature], widths [width])."""


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
