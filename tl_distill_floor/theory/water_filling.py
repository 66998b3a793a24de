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
ZERO_COST_BIN = 2**16
"""Bin of the features of cost 0; larger than the bin of every other cost."""


class FilledCapacity(NamedTuple):
    """The capacity of each feature and what the feature loses with it."""

    capacity: Float64[np.ndarray, " feature"]
    """Dimensions."""
    kept: Bool[np.ndarray, " feature"]
    """Whether a feature loses at most half of what it loses without capacity."""
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
    log_odds, log_cost = np.log(rate / (1.0 - rate)), np.log(np.where(cost > 0, cost, 1.0))
    cost_bin = np.where(cost > 0, np.floor(log_cost * LOG_COST_BINS), ZERO_COST_BIN)
    odds_bin = np.floor(log_odds * LOG_ODDS_BINS)
    _, group, n = np.unique(odds_bin * 2.0 * ZERO_COST_BIN + cost_bin, return_inverse=True, return_counts=True)
    mean_cost, mean_log_odds = (np.bincount(group, values) / n for values in (cost, log_odds))
    return FeatureGroups(mean_cost, 1.0 / (1.0 + np.exp(-mean_log_odds)), n)


def _fill_groups(groups: FeatureGroups, width: Number) -> FilledCapacity:
    """Allocate `width` dimensions to the features of the groups, equally within a group."""
    n_groups = len(groups.n)
    if width >= groups.n.sum():
        return FilledCapacity(np.ones(n_groups), np.ones(n_groups, dtype=bool), np.zeros(n_groups))
    gains = loss_curve(width).gains(groups.rate)
    gains *= groups.cost
    level = _water_level(gains, groups.n, float(width))
    above, tied = gains > level, gains == level
    used, tied_size = (float(SEGMENTS @ (segments @ groups.n)) for segments in (above, tied))
    # Segments at the level share the dimensions that are left.
    tied_share = min(max((float(width) - used) / tied_size, 0.0), 1.0) if tied_size else 0.0
    filled = (above + tied_share * tied) * SEGMENTS[:, None]
    lost_cost = (gains * (SEGMENTS[:, None] - filled)).sum(0)
    return FilledCapacity(filled.sum(0), lost_cost <= SEGMENTS @ gains / 2.0, lost_cost)


def _water_level(gains: Float64[np.ndarray, "segment group"], n: Int64[np.ndarray, " group"], width: float) -> float:
    """Return the highest gain such that all segments of at least this gain take `width` dimensions or more."""
    values, sizes = gains.ravel(), (SEGMENTS[:, None] * n).ravel()
    while len(values) > SORT_BELOW:
        # Sorting all gains is slower than counting: a sorted sample brackets the level first.
        sample = values[:: len(values) // N_SAMPLED]
        order = np.argsort(-sample)
        sample_sizes = np.cumsum(sizes[:: len(values) // N_SAMPLED][order])
        position = int(np.searchsorted(sample_sizes, width * len(sample) / len(values)))
        high, low = (sample[order[min(max(position + step, 0), len(order) - 1)]] for step in (-100, 100))
        above, below = values > high, values < low
        size_above = float(sizes[above].sum())
        if size_above >= width:
            remaining = above
        elif float(sizes.sum() - sizes[below].sum()) < width:
            remaining, width = below, width - float(sizes[~below].sum())
        else:
            remaining, width = ~(above | below), width - size_above
        if remaining.all():
            break
        values, sizes = values[remaining], sizes[remaining]
    order = np.argsort(-values)
    return float(values[order[min(int(np.searchsorted(np.cumsum(sizes[order]), width)), len(order) - 1)]])
