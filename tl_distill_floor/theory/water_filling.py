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

SAMPLED = 16_384


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
    every = max(1, gains.shape[1] // SAMPLED)
    if every > 1:
        # Sorting a million features takes a second, counting them does not: look near the level of a sample.
        near = _search(list(np.sort(gains[:, ::every], axis=1)), width / every)
        low, high = near * 0.8, near * 1.25
        above = float(((gains >= high).sum(1) * SEGMENTS).sum())
        if above < width <= float(((gains >= low).sum(1) * SEGMENTS).sum()):
            return _search([np.sort(row[(row >= low) & (row < high)]) for row in gains], width - above)
    return _search(list(np.sort(gains, axis=1)), width)


def _search(rows: list[np.ndarray], width: float) -> float:
    """The highest of the gains, each segment's in rising order, at which segments of at least that take `width`."""

    def taken(level: float) -> float:
        return float(sum(s * (len(row) - np.searchsorted(row, level)) for s, row in zip(SEGMENTS, rows, strict=True)))

    low, high = 0.0, max((float(row[-1]) for row in rows if len(row)), default=0.0)
    if taken(high) >= width:
        return high
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if taken(middle) >= width else (low, middle)
    return low
