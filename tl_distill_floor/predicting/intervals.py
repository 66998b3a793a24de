"""Intervals of a prediction, from a bootstrap over blocks of the text."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.block_sums import NUMBERS_PER_PART, BlockSums
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs
from tl_distill_floor.theory.bootstrap import Z_95, Interval, block_bootstrap, margin_95
from tl_distill_floor.theory.capacity import Number, capacity, critical_width
from tl_distill_floor.theory.floors import held_ranks

MAX_ORDERS = 16
"""Resampled texts at most whose costs order the features for Theorem 1's floor: each takes a sort of all features."""


class Resamples(NamedTuple):
    """Resampled texts, and the alive features of each."""

    times: Int64[np.ndarray, "resample block"]
    """How often each block is in each resample."""
    n_features: Float64[np.ndarray, " resample"]
    alpha: Float64[np.ndarray, " resample"]
    """Inside (0, 1): a resample may have no alive features, or only features that always fire."""

    def margin(self, values: Float64[np.ndarray, "resample *value"]) -> Float64[np.ndarray, "*value"]:
        """Return half the width of the 95 % interval of a value, from the values of the resamples."""
        return margin_95(values, self.times.shape[1])


def add_intervals(prediction: FeatureFloorPrediction, n_bootstrap: int, seed: int) -> FeatureFloorPrediction:
    """Return the prediction with 95 % intervals, from the spread of the predictions over resampled blocks of text.

    Blocks whose neighbours are alike are joined first: several are of one document, and other documents differ more.

    The quantiles of the resamples would be biased. A resample leaves out about a third of the blocks, and with them the
    features that fire in no other block. So F is below the measured one in every resample, but its spread is right.
    The shares of lost cost are not changed in a resample. They are optimal, so to first order the floor does not change
    if they adapt.

    Args:
        prediction: a prediction without intervals.
        n_bootstrap: number of resamples.
        seed: seed of the resampling.

    Returns:
        The prediction, unchanged if the text has only one block.
    """
    blocks = prediction.stats.independent_blocks
    n_blocks = len(blocks.n_tokens)
    if n_blocks < 2:
        return prediction
    resamples = _resample(blocks, prediction.min_count, block_bootstrap(n_blocks, n_bootstrap, seed))
    critical_widths = list(map(critical_width, resamples.n_features, resamples.alpha))
    of_costs = prediction.feature_floor * _cost_margins(prediction, resamples, prediction.lost_share)
    floor_margins = np.hypot(of_costs, Z_95 * prediction.measured_error())
    # Without simulated students, the feature floor is the independent one.
    independent = floor_margins if prediction.simulation is None else _independent_margins(prediction, resamples)
    return dataclasses.replace(
        prediction,
        n_features_interval=_interval(
            prediction.n_features, resamples.margin(resamples.n_features), blocks.firing_count.shape[1]
        ),
        alpha_interval=_interval(prediction.alpha, resamples.margin(resamples.alpha), 1.0),
        critical_width_interval=_interval(prediction.critical_width, resamples.margin(np.array(critical_widths))),
        sampling_interval=_intervals(prediction.feature_floor, floor_margins),
        theorem_interval=_theorem_interval(prediction, resamples),
        independent_interval=_intervals(prediction.independent, independent),
    )


def _theorem_interval(prediction: FeatureFloorPrediction, resamples: Resamples) -> Float64[np.ndarray, "width 2"]:
    """Return the interval of Theorem 1's floor: errors of the costs, of the number of held features, of the tail loss.

    The features are in the order of their measured costs. With a tail loss, the loss of this order is measured on other
    tokens. By an order from more text a student loses less; the lower end allows for what the orders of resampled texts
    lose more than the measured one. Without a tail loss, the loss is the sum of the costs that are measured as the
    smallest. It is too small, by about as much, for which the upper end allows.
    """
    curve, widths, cost = prediction.feature_curve, prediction.widths, prediction.additive
    n_held = np.minimum(np.outer([capacity(alpha) for alpha in resamples.alpha], widths), prediction.n_features)
    last_held = np.minimum(n_held.mean(0).astype(np.int64), prediction.n_features - 1)
    of_rank = resamples.margin(n_held) * prediction.stats.cost[curve.ranked_features[last_held]]
    relative = [
        _cost_margins(prediction, resamples, curve.theorem_lost_share),
        np.divide(of_rank, cost, out=np.zeros(len(widths)), where=cost > 0),
        Z_95 * curve.conversion_errors(cost),
    ]
    margins = prediction.theorem * np.sqrt(np.square(relative).sum(0))
    excess = np.maximum(_cost_of_other_orders(prediction, resamples) - cost, 0.0)
    if prediction.tail is None:
        low, high = prediction.theorem, prediction.theorem + excess
    else:
        low, high = curve.loss_of_cost(np.maximum(cost - excess, 0.0)), prediction.theorem
    return np.stack([_intervals(low, margins)[:, 0], _intervals(high, margins)[:, 1]], axis=1)


def _cost_of_other_orders(prediction: FeatureFloorPrediction, resamples: Resamples) -> Float64[np.ndarray, " width"]:
    """Return Theorem 1's floor, as a summed cost, with features in the order of their costs in resampled texts."""
    stats, alive = prediction.stats, prediction.feature_curve.alive
    held = held_ranks(stats.firing_rate[alive], prediction.widths)
    floors = []
    for times in resamples.times[:MAX_ORDERS]:
        resampled = (times.astype(np.float32) @ stats.independent_blocks.cost).astype(np.float64)
        order = rank_by_cost(resampled, alive)
        floors.append(remaining_costs(stats.cost[order])[held])
    mean: np.ndarray = np.mean(floors, axis=0)
    return mean


def _independent_margins(prediction: FeatureFloorPrediction, resamples: Resamples) -> Float64[np.ndarray, " width"]:
    """Return half the widths of the intervals of the water-filling floor: errors of the costs and of the tail loss."""
    curve = prediction.feature_curve
    of_costs = _cost_margins(prediction, resamples, curve.independent_lost_share)
    of_tail = Z_95 * curve.conversion_errors(curve.independent_costs(prediction.widths))
    margins: np.ndarray = prediction.independent * np.hypot(of_costs, of_tail)
    return margins


def _cost_margins(
    prediction: FeatureFloorPrediction,
    resamples: Resamples,
    lost_share: Callable[[int], Float64[np.ndarray, " feature"]],
) -> Float64[np.ndarray, " width"]:
    """Return half the widths of the intervals of the summed lost cost at each width, as shares of it.

    Args:
        prediction: a prediction.
        resamples: resampled texts.
        lost_share: the share of each feature's cost that is lost at a width.
    """
    blocks = prediction.stats.independent_blocks
    shares = np.stack([lost_share(int(width)) for width in prediction.widths], axis=1)
    # One block after the other, since NumPy converts what it multiplies to 64 bits.
    lost = np.stack([cost @ shares for cost in blocks.cost])
    resampled = resamples.times @ lost / np.maximum(resamples.times @ blocks.n_cost_tokens, 1)[:, None]
    measured = lost.sum(0) / max(prediction.stats.n_cost_tokens, 1)
    margins: np.ndarray = resamples.margin(resampled) / np.maximum(measured, 1e-300)
    return margins


def _resample(blocks: BlockSums, min_count: int, times: Int64[np.ndarray, "resample block"]) -> Resamples:
    """Return F and α of resampled texts.

    Args:
        blocks: sums over blocks of the text.
        min_count: a feature is alive if it fired on at least this many tokens.
        times: how often each block is in each resample.
    """
    n_blocks, n = blocks.firing_count.shape
    n_alive, n_fired = np.zeros(len(times)), np.zeros(len(times))
    features_per_part = max(1, NUMBERS_PER_PART // max(len(times), n_blocks))
    for first in range(0, n, features_per_part):
        count = times.astype(np.float64) @ blocks.firing_count[:, first : first + features_per_part]
        alive = count >= min_count
        n_alive += alive.sum(1)
        n_fired += count.sum(1, where=alive)
    alpha = 1.0 - n_fired / np.maximum(n_alive, 1.0) / (times @ blocks.n_tokens)
    return Resamples(times, n_alive, np.clip(alpha, 1e-12, 1.0 - 1e-12))


def _interval(value: Number, margin: Float64[np.ndarray, ""] | float, most: Number = math.inf) -> Interval:
    """Return the interval around a value that is from 0 to `most`."""
    return max(float(value - margin), 0.0), min(float(value + margin), float(most))


def _intervals(
    values: Float64[np.ndarray, " width"], margins: Float64[np.ndarray, " width"]
) -> Float64[np.ndarray, "width 2"]:
    """Return the intervals around values of at least 0."""
    return np.stack([np.maximum(values - margins, 0.0), values + margins], axis=1)
