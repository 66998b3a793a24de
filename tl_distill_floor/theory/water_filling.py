"""Water-filling: the best allocation of a student's dimensions to features that fire independently.

A feature i with C_i dimensions loses cost_i · r(C_i; p_i). The summed loss under Σ C_i ≤ d is minimal if every feature
is filled until its marginal gain, cost_i · |dr/dC|, falls to one common level. r is convex and piecewise linear (see
`loss_capacity`), so the level is the gain of one segment, and the solution is exact.

Source: Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", section 2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.loss_capacity import SEGMENTS, loss_curve

N_SAMPLED = 1024
"""Number of gains in the sample that brackets the level."""
SORT_BELOW = 4096
"""Up to this number of gains, all of them are sorted; above, the range of the level is narrowed down first."""
LOG_ODDS_BINS, LOG_COST_BINS = 12, 20
"""Bins per unit of the log odds of the firing rate, and of the log cost, in which features are grouped."""
MAX_UNGROUPED = 2**16
"""Above this number of features, similar features are grouped if only the summed loss is needed."""
MAX_CELLS = 2**22
"""Above this number of pairs of a cost bin and a rate bin, the pairs that occur are found by sorting."""


class FilledCapacity(NamedTuple):
    """The capacity of each feature and what the feature loses with it."""

    capacity: Float64[np.ndarray, " feature"]
    """Dimensions."""
    kept: Bool[np.ndarray, " feature"]
    """Whether a feature loses at most half of what it loses without capacity; half a dimension for one of cost 0."""
    lost_cost: Float64[np.ndarray, " feature"]
    """cost_i · r(C_i; p_i)."""


class FeatureGroups(NamedTuple):
    """Groups of features with the same cost and firing rate."""

    cost: Float64[np.ndarray, " group"]
    """Cost of each feature of the group."""
    rate: Float64[np.ndarray, " group"]
    """Firing rate of each feature of the group."""
    n: Int64[np.ndarray, " group"]
    """Number of features in the group."""

    @classmethod
    def from_features(
        cls, cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"]
    ) -> "FeatureGroups":
        """Return groups of one feature each."""
        return cls(cost, rate, np.ones(len(cost), dtype=np.int64))


def water_fill(
    cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"], width: Number
) -> FilledCapacity:
    """Allocate `width` dimensions to features.

    Args:
        cost: [feature] costs, at least 0.
        rate: [feature] firing rates, inside (0, 1).
        width: dimensions, above 0.

    Example:
        >>> water_fill(np.ones(4), np.full(4, 0.1), 2.0).capacity.tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    return _fill_groups(FeatureGroups.from_features(cost, rate), width)


def water_filling_floors(
    cost: Float64[np.ndarray, " feature"],
    rate: Float64[np.ndarray, " feature"],
    widths: Float64[np.ndarray, " width"],
) -> Float64[np.ndarray, " width"]:
    """Compute the summed loss of all features at every width; many features are grouped, see `group_similar`."""
    groups = group_similar(cost, rate) if len(cost) > MAX_UNGROUPED else FeatureGroups.from_features(cost, rate)
    return np.array([_fill_groups(groups, width).lost_cost @ groups.n for width in widths])


def group_similar(cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"]) -> FeatureGroups:
    """Group features of nearly equal cost and rate.

    A group has the mean cost and the geometric mean of the odds of its features. The error of a floor is quadratic in
    the size of a bin: less than 1e-3 of the floor or 1e-5 of the summed cost.
    """
    log_odds, has_cost = np.log(rate / (1.0 - rate)), cost > 0
    odds_bin, n_odds_bins = _bins(log_odds * LOG_ODDS_BINS)
    cost_bin, n_cost_bins = _bins(np.log(np.where(has_cost, cost, 1.0)) * LOG_COST_BINS)
    cost_bin[~has_cost] = n_cost_bins  # features of cost 0 have a bin of their own
    cell = odds_bin * (n_cost_bins + 1) + cost_bin
    if n_odds_bins * (n_cost_bins + 1) > MAX_CELLS:
        cell = np.unique(cell, return_inverse=True)[1]
    n = np.bincount(cell)
    occurs = n > 0
    n = n[occurs]
    mean_cost, mean_log_odds = (np.bincount(cell, values)[occurs] / n for values in (cost, log_odds))
    return FeatureGroups(mean_cost, 1.0 / (1.0 + np.exp(-mean_log_odds)), n)


def _bins(values: Float64[np.ndarray, " feature"]) -> tuple[Int64[np.ndarray, " feature"], int]:
    """Return the bin of each value, counted from 0, and the number of bins; a bin is one wide."""
    rounded = np.floor(values, out=values)
    bins = (rounded - rounded.min()).astype(np.int64)
    return bins, int(bins.max()) + 1


def _fill_groups(groups: FeatureGroups, width: Number) -> FilledCapacity:
    """Allocate `width` dimensions to the features of the groups, equally within a group."""
    n_groups = len(groups.n)
    if width >= groups.n.sum():
        return FilledCapacity(np.ones(n_groups), np.ones(n_groups, dtype=bool), np.zeros(n_groups))
    gains = loss_curve(width).gains(groups.rate)
    gains *= groups.cost
    level = _water_level(gains, groups.n, float(width))
    above, tied = gains > level, gains == level
    used, tied_size = (float(SEGMENTS @ [row @ groups.n for row in segments]) for segments in (above, tied))
    # Segments at the level share the dimensions that are left.
    tied_share = min(max((float(width) - used) / tied_size, 0.0), 1.0) if tied_size else 0.0
    capacity, lost_cost = np.zeros(n_groups), np.zeros(n_groups)
    for length, gain, is_above, is_tied in zip(SEGMENTS, gains, above, tied, strict=True):
        filled = (is_above + tied_share * is_tied) * length
        capacity += filled
        lost_cost += gain * (length - filled)
    kept = np.where(groups.cost > 0, lost_cost <= SEGMENTS @ gains / 2.0, capacity >= 0.5)
    return FilledCapacity(capacity, kept, lost_cost)


def _water_level(gains: Float64[np.ndarray, "segment group"], n: Int64[np.ndarray, " group"], width: float) -> float:
    """Return the highest gain such that all segments of at least this gain take `width` dimensions or more."""
    values, lengths = gains, SEGMENTS[:, None]
    # The sizes of single features are a view, since an array of all segments is large.
    sizes = np.broadcast_to(lengths, gains.shape) if (n == 1).all() else lengths * n
    while values.size > SORT_BELOW:
        # Sorting all gains is slower than counting: a sorted sample brackets the level first.
        step = values.size // N_SAMPLED
        sample = values.flat[::step]
        order = np.argsort(-sample)
        sample_sizes = np.cumsum(sizes.flat[::step][order])
        position = int(np.searchsorted(sample_sizes, width * len(sample) / values.size))
        high, low = (sample[order[min(max(position + margin, 0), len(order) - 1)]] for margin in (-100, 100))
        above, below = values > high, values < low
        size_above, size_not_below = float(sizes[above].sum()), float(sizes[~below].sum())
        if size_above >= width:
            remaining = above
        elif size_not_below < width:
            remaining, width = below, width - size_not_below
        else:
            remaining, width = ~(above | below), width - size_above
        if remaining.all():
            break
        values, sizes = values[remaining], sizes[remaining]
    values, sizes = values.ravel(), sizes.ravel()
    order = np.argsort(-values)
    return float(values[order[min(int(np.searchsorted(np.cumsum(sizes[order]), width)), len(order) - 1)]])
