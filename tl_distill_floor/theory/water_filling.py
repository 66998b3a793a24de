"""Water-filling: what training reaches on features that fire independently (capacity allocation, Scherlis et al. 2022).

Feature i with C_i of a dimension costs cost_i · r(C_i; p_i). The summed cost is least, under Σ C_i ≤ d, when every
feature is filled until its marginal gain cost_i · |r′| falls to one water level. r is convex and piecewise linear
(`loss_capacity`), so the level is the gain of one segment, and this is exact.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.loss_capacity import SEGMENTS, loss_curve


class Filled(NamedTuple):
    """Capacity spent, feature by feature."""

    capacity: Float64[np.ndarray, " feature"]
    kept: Bool[np.ndarray, " feature"]
    """Features that lose at most half of what they lose without any capacity."""
    lost_cost: Float64[np.ndarray, " feature"]
    """cost_i · r(C_i; p_i)."""


def fill(cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"], width: Number) -> Filled:
    """Spend `width` dimensions on features of these costs and firing rates, the latter inside (0, 1)."""
    if width >= len(cost):
        return Filled(np.ones(len(cost)), np.ones(len(cost), dtype=bool), np.zeros(len(cost)))
    gains = loss_curve(width).gains(rate)
    gains *= cost
    level = _level(gains, float(width))
    above = gains > level
    spent = float((above.sum(1) * SEGMENTS).sum())
    tied = gains == level
    tie = float((tied.sum(1) * SEGMENTS).sum())
    share = min(max((float(width) - spent) / tie, 0.0), 1.0) if tie else 0.0
    filled = (above + share * tied) * SEGMENTS[:, None]
    lost_cost = (gains * (SEGMENTS[:, None] - filled)).sum(0)
    return Filled(filled.sum(0), lost_cost <= SEGMENTS @ gains / 2.0, lost_cost)


def _level(gains: Float64[np.ndarray, "segment feature"], width: float) -> float:
    """The highest gain at which filling every segment of at least that gain takes `width` dimensions or more."""
    rows = np.sort(gains, axis=1)

    def taken(level: float) -> float:
        """Dimensions of the segments whose gain is at least `level`."""
        return float(sum(s * (len(row) - np.searchsorted(row, level)) for s, row in zip(SEGMENTS, rows, strict=True)))

    low, high = 0.0, float(rows[:, -1].max())
    if taken(high) >= width:
        return high
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if taken(middle) >= width else (low, middle)
    return low
