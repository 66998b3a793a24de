"""Allocate the dimensions of a student to features, by Theorem 1 or by water-filling."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.theory.capacity import Number, capacity, n_features_held
from tl_distill_floor.theory.water_filling import FilledCapacity, water_fill

AllocationMethod: TypeAlias = Literal["top_k", "water_fill"]
Values = TypeVar("Values", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Allocation:
    """The dimensions that a student of one width gives to each feature."""

    capacity: Float64[np.ndarray, " feature"]
    """Dimensions given to each feature; they sum to at most the width."""
    kept: Bool[np.ndarray, " feature"]
    """Whether each feature is kept."""
    lost_cost: Float64[np.ndarray, " feature"]
    """The part of each feature's cost that is lost, in the unit of the costs."""

    @property
    def floor(self) -> float:
        """Sum of the lost costs."""
        return float(self.lost_cost.sum())


def allocate(
    cost: npt.ArrayLike,
    firing_rate: npt.ArrayLike | Number,
    width: Number,
    method: AllocationMethod = "water_fill",
) -> Allocation:
    """Allocate the `width` dimensions of a student to features.

    With "water_fill", feature i gets a capacity C_i ∈ [0, 1] and loses cost_i · r(C_i; p_i), where r is the measured
    loss-capacity curve. The allocation minimises the summed loss under Σ C_i ≤ width. This is what training reaches on
    features that fire independently. A feature is kept if it loses at most half of what it loses at C = 0; one of cost
    0, if it gets half a dimension of what the others leave.
    Source: Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", section 2.

    With "top_k", the student keeps the F_S = min(⌊width · g(α)⌋, F) features with the largest costs, at 1/g(α)
    dimensions each, and loses all others. α is 1 minus the mean firing rate.
    Source: Sarkar and Deka 2026 (arXiv 2604.04037), Theorem 1 and assumption A2.

    Args:
        cost: [feature] increase of the loss when the feature is removed, at least 0, in any unit.
        firing_rate: [feature], or one number for all features, inside (0, 1). A feature of cost 0 may have the rate 0:
            it is not alive and gets no capacity.
        width: width of the student in dimensions, above 0.
        method: "water_fill" or "top_k".

    Returns:
        Allocation: `.capacity` [feature] in dimensions, `.kept` [feature], `.lost_cost` [feature] and its sum `.floor`
        in the unit of `cost`.

    Raises:
        InputError: `method` is not known.
        ValueError: the shape or the value of another argument is not valid, or no feature is alive.

    Example:
        >>> allocation = allocate([1.0, 9.0, 2.0, 5.0, 0.5], firing_rate=0.1, width=0.5, method="top_k")
        >>> allocation.kept.tolist(), allocation.floor
        ([False, True, False, True, False], 3.5)
    """
    check_choice("method", method, AllocationMethod)
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"width must be a number of dimensions above 0, got {width}")
    costs, rates = check_features(cost, firing_rate)
    alive = np.flatnonzero(rates > 0)
    if method == "water_fill":
        filled = water_fill(costs[alive], rates[alive], width)
    else:
        filled = _keep_largest_costs(costs[alive], rates[alive], width)
    return Allocation(*(_scatter(values, alive, len(costs)) for values in filled))


def check_widths(widths: npt.ArrayLike) -> Float64[np.ndarray, " width"]:
    """Return `widths` as a float64 array.

    Raises:
        InputError: `widths` is not a vector of finite numbers above 0.
    """
    sizes = np.asarray(widths, dtype=np.float64)
    if sizes.ndim != 1 or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError("widths must be a vector of numbers of dimensions above 0")
    return sizes


def rank_by_cost(
    cost: Float64[np.ndarray, " feature"], alive: Bool[np.ndarray, " feature"]
) -> Int64[np.ndarray, " alive"]:
    """Return the indices of the alive features by falling cost; features of equal cost are sorted by index.

    Example:
        >>> rank_by_cost(np.array([1.0, 9.0, 2.0]), np.array([True, True, False])).tolist()
        [1, 0]
    """
    order = np.argsort(-cost, kind="stable")
    ranked: np.ndarray = order[alive[order]]
    return ranked


def remaining_costs(sorted_cost: Float64[np.ndarray, " rank"]) -> Float64[np.ndarray, " ranks"]:
    """Return the summed cost beyond the first k features, for every k from 0 to the number of features.

    Args:
        sorted_cost: [rank] costs in the order in which features are kept.

    Returns:
        [rank + 1] summed costs; the last is exactly 0.

    Example:
        >>> remaining_costs(np.array([9.0, 2.0, 1.0])).tolist()
        [12.0, 3.0, 1.0, 0.0]
    """
    return np.concatenate([np.cumsum(sorted_cost[::-1])[::-1], [0.0]])


def check_features(
    cost: npt.ArrayLike, firing_rate: npt.ArrayLike | Number
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Return `cost` and `firing_rate` as float64 arrays of the same length.

    Raises:
        ValueError: a shape or a value is not valid, or no feature is alive; see `allocate`.
    """
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 1 or not len(costs):
        raise ValueError(f"cost must be a vector of at least one feature, got shape {costs.shape}")
    rates = np.asarray(firing_rate, dtype=np.float64)
    if rates.ndim == 0:
        rates = np.full(len(costs), float(rates))
    if rates.shape != costs.shape:
        raise ValueError(f"firing_rate must be one number or as long as cost ({len(costs)}), got shape {rates.shape}")
    _reject("cost", costs, ~(np.isfinite(costs) & (costs >= 0)), "must be a finite number of at least 0")
    _reject("firing_rate", rates, ~((rates >= 0) & (rates < 1)), "must be inside (0, 1)")
    if not (rates > 0).any():
        raise ValueError("firing_rate is 0 for every feature; at least one feature must be alive")
    costly = (rates == 0) & (costs > 0)
    _reject("firing_rate", rates, costly, "must be inside (0, 1) for a feature of cost above 0")
    return costs, rates


def _keep_largest_costs(
    cost: Float64[np.ndarray, " alive"], rate: Float64[np.ndarray, " alive"], width: Number
) -> FilledCapacity:
    """Keep the features with the largest costs, at 1/g(α) dimensions each, and lose all others."""
    features_per_dimension = capacity(1.0 - float(rate.mean()))
    n_kept = n_features_held(width, features_per_dimension, len(cost))
    kept = np.zeros(len(cost), dtype=bool)
    kept[np.argsort(-cost, kind="stable")[:n_kept]] = True
    return FilledCapacity(np.where(kept, 1.0 / features_per_dimension, 0.0), kept, np.where(kept, 0.0, cost))


def _scatter(values: npt.NDArray[Values], alive: Int64[np.ndarray, " alive"], n_features: int) -> npt.NDArray[Values]:
    """Return the alive features' values in an array of all features, with 0 for the others."""
    scattered = np.zeros(n_features, dtype=values.dtype)
    scattered[alive] = values
    return scattered


def _reject(
    name: str, values: Float64[np.ndarray, " feature"], invalid: Bool[np.ndarray, " feature"], condition: str
) -> None:
    """Raise a ValueError that names the first invalid value, if there is one."""
    if invalid.any():
        first = int(invalid.argmax())
        raise ValueError(f"{name}[{first}] is {values[first]}; it {condition}")
