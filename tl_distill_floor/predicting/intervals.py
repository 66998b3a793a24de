"""Intervals of a prediction, from a bootstrap over blocks of the text."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.theory.bootstrap import Z_95, Interval, block_bootstrap
from tl_distill_floor.theory.capacity import Number, critical_width

NUMBERS_PER_PART = 2**22
"""Numbers that are in memory at once in addition to the blocks."""


class ResampledPredictions(NamedTuple):
    """The predictions from resampled texts."""

    n_features: Float64[np.ndarray, " resample"]
    alpha: Float64[np.ndarray, " resample"]
    critical_width: Float64[np.ndarray, " resample"]
    floor: Float64[np.ndarray, "resample width"]
    """Summed lost cost."""


def add_intervals(prediction: FeatureFloorPrediction, n_bootstrap: int, seed: int) -> FeatureFloorPrediction:
    """Return the prediction with 95 % intervals: the value ± 1.96 standard errors over resampled blocks of text.

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
    stats = prediction.stats
    n_blocks = len(stats.blocks.n_tokens)
    if n_blocks < 2:
        return prediction
    times = block_bootstrap(n_blocks, n_bootstrap, seed)
    shares = np.stack([prediction.lost_share(int(width)) for width in prediction.widths], axis=1)
    # One block after the other, since NumPy converts what it multiplies to 64 bits.
    lost = np.stack([cost @ shares for cost in stats.blocks.cost])
    resampled = _resample(stats, lost, prediction.min_count, times)
    floor, summed = prediction.feature_floor, np.maximum(lost.sum(0) / max(stats.n_cost_tokens, 1), 1e-300)
    floor_error = np.hypot(resampled.floor.std(0) * floor / summed, prediction.measured_error())
    return dataclasses.replace(
        prediction,
        n_features_interval=_interval(prediction.n_features, resampled.n_features.std()),
        alpha_interval=_interval(prediction.alpha, resampled.alpha.std()),
        critical_width_interval=_interval(prediction.critical_width, resampled.critical_width.std()),
        sampling_interval=np.stack([np.maximum(floor - Z_95 * floor_error, 0.0), floor + Z_95 * floor_error], axis=1),
    )


def _resample(
    stats: FeatureStats,
    lost: Float64[np.ndarray, "block width"],
    min_count: int,
    times: Int64[np.ndarray, "resample block"],
) -> ResampledPredictions:
    """Predict from resampled texts.

    Args:
        stats: measured statistics.
        lost: summed lost cost of each block.
        min_count: a feature is alive if it fired on at least this many tokens.
        times: how often each block is in each resample.
    """
    n_blocks, n = stats.blocks.firing_count.shape
    n_tokens, n_cost_tokens = times @ stats.blocks.n_tokens, times @ stats.blocks.n_cost_tokens
    n_alive, n_fired = np.zeros(len(times)), np.zeros(len(times))
    features_per_part = max(1, NUMBERS_PER_PART // max(len(times), n_blocks))
    for first in range(0, n, features_per_part):
        count = times.astype(np.float64) @ stats.blocks.firing_count[:, first : first + features_per_part]
        alive = count >= min_count
        n_alive += alive.sum(1)
        n_fired += count.sum(1, where=alive)
    alpha = 1.0 - n_fired / np.maximum(n_alive, 1.0) / n_tokens
    # A resample may have no alive features, or only features that always fire; g(α) is not defined there.
    inside = np.clip(alpha, 1e-12, 1.0 - 1e-12)
    critical_widths = [critical_width(*pair) for pair in zip(n_alive, inside, strict=True)]
    floor = times @ lost / np.maximum(n_cost_tokens, 1)[:, None]
    return ResampledPredictions(n_alive, alpha, np.array(critical_widths), floor)


def _interval(value: Number, standard_error: Number) -> Interval:
    """Return the 95 % interval around a value of at least 0."""
    margin = Z_95 * float(standard_error)
    return max(float(value) - margin, 0.0), float(value) + margin
