"""Predictors of a floor from costs and firing rates alone, to compare with the floors that training reaches.

- `one_per_dimension`: no superposition.
- `theorem`: Theorem 1.
- `packing_law`: a packing law that was fitted to trained toy models.
- `independent`: water-filling.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from tl_distill_floor.theory.allocation import allocate, remaining_costs
from tl_distill_floor.theory.capacity import Number, capacity

FloorFunction = Callable[[npt.ArrayLike, npt.ArrayLike, Number], float]
"""Compute a floor from (costs [feature], firing rates [feature], width)."""


def one_per_dimension(cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, width: Number) -> float:  # noqa: ARG001
    """Compute the floor without superposition: the student keeps the ⌊d⌋ features with the largest costs.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: not used.
        width: d, dimensions.

    Example:
        >>> one_per_dimension([9.0, 5.0, 2.0], 0.1, 1)
        7.0
    """
    return _cost_beyond(cost, math.floor(float(width)))


def theorem(cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, width: Number) -> float:
    """Compute Theorem 1's floor: the student keeps the ⌊d · g(α)⌋ features with the largest costs.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), Theorem 1.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number.
        width: d, dimensions.

    Example:
        >>> theorem([9.0, 5.0, 2.0], 0.1, 0.5)
        2.0
    """
    return allocate(cost, firing_rate, width, method="top_k").floor


def packing_law(cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, width: Number) -> float:
    """Compute the floor if the student keeps ⌊d · 1.03 g(α)^0.53⌋ features.

    The law was fitted to trained toy models with importances 1/i.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number.
        width: d, dimensions.

    Example:
        >>> packing_law([9.0, 5.0, 2.0], 0.1, 1)
        2.0
    """
    alpha = 1.0 - float(np.mean(np.asarray(firing_rate)))
    return _cost_beyond(cost, math.floor(float(width) * 1.03 * capacity(alpha) ** 0.53))


def independent(cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number, width: Number) -> float:
    """Compute the floor of features that fire independently, by water-filling.

    Source: Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", section 2.

    Args:
        cost: [feature] see `allocate`.
        firing_rate: [feature] or one number.
        width: d, dimensions.

    Example:
        >>> independent([9.0, 5.0, 2.0], 0.1, 3)
        0.0
    """
    return allocate(cost, firing_rate, width).floor


PREDICTORS: dict[str, FloorFunction] = {
    "one per dimension": one_per_dimension,
    "theorem": theorem,
    "packing law": packing_law,
    "independent": independent,
}
"""The predictors by name."""


def _cost_beyond(cost: npt.ArrayLike, n_kept: int) -> float:
    """Return the summed cost of all but the `n_kept` features with the largest costs."""
    sorted_cost: Float64[np.ndarray, " rank"] = np.sort(np.asarray(cost, dtype=np.float64))[::-1]
    return float(remaining_costs(sorted_cost)[min(n_kept, len(sorted_cost))])
