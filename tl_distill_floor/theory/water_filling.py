"""Water-filling: what training reaches on features that fire independently (capacity allocation, Scherlis et al. 2022).

Feature i with C_i of a dimension costs cost_i · r(C_i; p_i). The summed cost is least, under Σ C_i ≤ d, when every
feature is filled until its marginal gain cost_i · |r′| falls to one water level. r is convex and piecewise linear
(`loss_capacity`), so the level is the gain of one segment, and this is exact.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.loss_capacity import SEGMENTS, loss_curve

SAMPLED = 1024
"""Gains that say where the answer cannot lie."""
FEW = 4096
"""Gains that are sorted rather than narrowed down."""
RATES, COSTS = 12, 20
"""Cells that features are grouped in, of an e-fold of the firing rate's odds and of the cost."""
MANY = 2**16
"""More features than these are grouped where only their summed loss is asked for."""


class Filled(NamedTuple):
    """Capacity spent, feature by feature."""

    capacity: Float64[np.ndarray, " feature"]
    kept: Bool[np.ndarray, " feature"]
    """Features that lose at most half of what they lose without any capacity."""
    lost_cost: Float64[np.ndarray, " feature"]
    """cost_i · r(C_i; p_i)."""


class Cells(NamedTuple):
    """Features, of which each stands for `n` of its cost and rate."""

    cost: Float64[np.ndarray, " cell"]
    rate: Float64[np.ndarray, " cell"]
    n: Int64[np.ndarray, " cell"]


def fill(cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"], width: Number) -> Filled:
    """Spend `width` dimensions on features of these costs and firing rates, the latter inside (0, 1)."""
    return _fill(Cells(cost, rate, np.ones(len(cost), dtype=np.int64)), width)


def fill_all(
    cost: Float64[np.ndarray, " feature"],
    rate: Float64[np.ndarray, " feature"],
    widths: Float64[np.ndarray, " width"],
) -> Float64[np.ndarray, " width"]:
    """What the features lose together at every width; see `grouped` of many features."""
    cells = grouped(cost, rate) if len(cost) > MANY else Cells(cost, rate, np.ones(len(cost), dtype=np.int64))
    return np.array([_fill(cells, width).lost_cost @ cells.n for width in widths])


def grouped(cost: Float64[np.ndarray, " feature"], rate: Float64[np.ndarray, " feature"]) -> Cells:
    """Features of nearly one cost and rate as one: their mean cost, and the geometric mean of their odds.

    Floors move by the square of a cell's size: by less than 1e-3 of the floor and 1e-5 of all costs together.
    """
    log_odds, log_cost = np.log(rate / (1.0 - rate)), np.log(np.where(cost > 0, cost, 1.0))
    column = np.where(cost > 0, np.floor(log_cost * COSTS), MANY)  # those that cost nothing by themselves
    row = np.floor(log_odds * RATES)
    _, place, n = np.unique(row * 2.0 * MANY + column, return_inverse=True, return_counts=True)
    mean_cost, mean_log_odds = (np.bincount(place, values) / n for values in (cost, log_odds))
    return Cells(mean_cost, 1.0 / (1.0 + np.exp(-mean_log_odds)), n)


def _fill(cells: Cells, width: Number) -> Filled:
    if width >= cells.n.sum():
        return Filled(np.ones(len(cells.n)), np.ones(len(cells.n), dtype=bool), np.zeros(len(cells.n)))
    gains = loss_curve(width).gains(cells.rate)
    gains *= cells.cost
    level = _level(gains, cells.n, float(width))
    above, tied = gains > level, gains == level
    spent, tie = (float(SEGMENTS @ (taken @ cells.n)) for taken in (above, tied))
    share = min(max((float(width) - spent) / tie, 0.0), 1.0) if tie else 0.0
    filled = (above + share * tied) * SEGMENTS[:, None]
    lost_cost = (gains * (SEGMENTS[:, None] - filled)).sum(0)
    return Filled(filled.sum(0), lost_cost <= SEGMENTS @ gains / 2.0, lost_cost)


def _level(gains: Float64[np.ndarray, "segment cell"], n: Int64[np.ndarray, " cell"], width: float) -> float:
    """The highest gain at which filling every segment of at least that gain takes `width` dimensions or more."""
    values, taken = gains.ravel(), (SEGMENTS[:, None] * n).ravel()
    while len(values) > FEW:
        # Sorting all takes longer than counting: what the answer cannot be is left out, by where it lies in a sample.
        sample = values[:: len(values) // SAMPLED]
        order = np.argsort(-sample)
        of_sample = np.cumsum(taken[:: len(values) // SAMPLED][order])
        place = int(np.searchsorted(of_sample, width * len(sample) / len(values)))
        high, low = (sample[order[min(max(place + step, 0), len(order) - 1)]] for step in (-100, 100))
        dearer, cheaper = values > high, values < low
        of_dearer = float(taken[dearer].sum())
        if of_dearer >= width:
            left = dearer
        elif float(taken.sum() - taken[cheaper].sum()) < width:
            left, width = cheaper, width - float(taken[~cheaper].sum())
        else:
            left, width = ~(dearer | cheaper), width - of_dearer
        if left.all():
            break
        values, taken = values[left], taken[left]
    order = np.argsort(-values)
    return float(values[order[min(int(np.searchsorted(np.cumsum(taken[order]), width)), len(order) - 1)]])
