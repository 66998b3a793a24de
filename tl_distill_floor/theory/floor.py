"""From measured features to the floor of every student width (Sarkar and Deka 2026, Theorem 1), with intervals."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.prediction import FloorPrediction, Interval
from tl_distill_floor.records import FeatureStats
from tl_distill_floor.theory.allocation import by_cost, check_features, tail_costs
from tl_distill_floor.theory.capacity import capacity, n_held

SHARES_OF_TEACHER = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
Z95 = 1.96
DENSE = 1 - 1 / np.e
"""Below this sparsity g(α) rises again and Theorem 1 says nothing."""


class Geometry(NamedTuple):
    """What Theorem 1 needs to know of a set of features, and the floors that follow."""

    n_features: float
    alpha: float
    critical_width: float
    floor: Float64[np.ndarray, " width"]


def theorem_floor(cost: Any, firing_rate: Any, widths: Any) -> Float64[np.ndarray, " width"]:
    """Theorem 1's floor of every width: L*(d) = Σ of the costs beyond the ⌊d · g(α)⌋ largest.

    Args:
        cost: [feature], at least 0, in any one unit.
        firing_rate: [feature] or one number; α is one less the mean over the features that fire.
        widths: [width], dimensions above 0.

    Returns:
        [width], in the unit of `cost`.

    Raises:
        ValueError: a shape or a value that does not fit.
    """
    costs, rates = check_features(cost, firing_rate)
    sizes = np.asarray(widths, dtype=np.float64)
    if sizes.ndim != 1 or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError("widths must be a vector of numbers of dimensions above 0")
    alive = rates > 0
    if not alive.any():
        raise ValueError("no feature fires, so there is no floor")
    return _geometry(costs, rates, alive, sizes).floor


def floor_from_stats(
    stats: FeatureStats,
    widths: Any = None,
    *,
    min_count: int = 1,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> FloorPrediction:
    """Predict the floor of every student width from measured features.

    Args:
        stats: what `measure` returned.
        widths: [width] student widths in dimensions, whole numbers; shares of the teacher's width when left out.
        min_count: a feature is alive when it fired on at least this many tokens.
        n_bootstrap: resamplings of the blocks of text behind the 95 % intervals.
        seed: of the resampling.

    Raises:
        InputError: no feature is alive, every feature fires on every token, or a width is no whole number above 0.
    """
    sizes = _widths(widths, stats.d_model)
    alive = stats.alive(min_count)
    if not alive.any():
        raise InputError(
            f"none of the {len(alive):,} features fired {min_count} times on {stats.n_tokens:,} tokens;"
            " measure more tokens or name another SAE with --sae"
        )
    if stats.firing_count[alive].min() == stats.n_tokens:
        raise InputError("every feature fires on every token, so they are not sparse; name another SAE with --sae")
    point = _geometry(stats.cost, stats.firing_rate, alive, sizes)
    low, high = _intervals(stats, sizes, point, min_count, n_bootstrap, seed)
    n_features = int(point.n_features)
    return FloorPrediction(
        stats=stats,
        min_count=min_count,
        n_features=n_features,
        alpha=point.alpha,
        capacity=capacity(point.alpha),
        critical_width=point.critical_width,
        n_features_interval=_pair(low.n_features, high.n_features),
        alpha_interval=_pair(low.alpha, high.alpha),
        critical_width_interval=_pair(low.critical_width, high.critical_width),
        widths=sizes,
        theorem=point.floor,
        interval=np.stack([low.floor, high.floor], axis=1),
        warnings=(*stats.warnings, *_warnings(stats, point.alpha)),
    )


def _geometry(
    cost: Float64[np.ndarray, " feature"],
    rate: Float64[np.ndarray, " feature"],
    alive: Bool[np.ndarray, " feature"],
    widths: Int64[np.ndarray, " width"] | Float64[np.ndarray, " width"],
) -> Geometry:
    order = by_cost(cost, alive)
    alpha = 1.0 - float(rate[order].mean()) if len(order) else 1.0
    # A redrawn text may hold no feature, or only such as always fire: g(α) has no value at the ends.
    per_dimension = capacity(min(max(alpha, 1e-12), 1.0 - 1e-12))
    held = [n_held(width, per_dimension, len(order)) for width in widths]
    return Geometry(len(order), alpha, len(order) / per_dimension, tail_costs(cost[order])[held])


def _intervals(
    stats: FeatureStats, widths: np.ndarray, point: Geometry, min_count: int, n_bootstrap: int, seed: int
) -> tuple[Geometry, Geometry]:
    """(low, high) 95 % bounds: the measured value ± 1.96 standard errors over redrawn blocks of text, at least 0.

    The draws' quantiles would not do. A draw with replacement leaves out a third of the blocks, and with them the
    features that fire in no other, so that F lies below the measured one in every draw, while its spread is right.
    """
    n_blocks = len(stats.blocks.n_tokens)
    if n_blocks < 2:
        unknown = Geometry(np.nan, np.nan, np.nan, np.full(len(widths), np.nan))
        return unknown, unknown
    random = np.random.default_rng(seed)
    draws = [
        _redraw(stats, widths, min_count, np.bincount(random.integers(n_blocks, size=n_blocks), minlength=n_blocks))
        for _ in range(n_bootstrap)
    ]
    errors = [Z95 * np.std(np.stack(drawn), axis=0) for drawn in zip(*draws, strict=True)]
    low = [np.maximum(value - error, 0.0) for value, error in zip(point, errors, strict=True)]
    high = [value + error for value, error in zip(point, errors, strict=True)]
    return Geometry._make(low), Geometry._make(high)


def _redraw(stats: FeatureStats, widths: np.ndarray, min_count: int, times: Int64[np.ndarray, " block"]) -> Geometry:
    """The geometry of a text in which block b stands `times[b]` times."""
    drawn = times > 0
    tokens = int(times @ stats.blocks.n_tokens)
    count = times[drawn].astype(np.float64) @ stats.blocks.firing_count[drawn]
    cost = times[drawn].astype(np.float64) @ stats.blocks.cost[drawn]
    return _geometry(cost / tokens, count / tokens, count >= min_count, widths)


def _pair(low: Any, high: Any) -> Interval:
    return float(low), float(high)


def _widths(widths: Any, d_model: int) -> Int64[np.ndarray, " width"]:
    if widths is None:
        return np.unique([max(1, round(d_model * share)) for share in SHARES_OF_TEACHER]).astype(np.int64)
    sizes = np.unique(np.asarray(widths, dtype=np.float64))
    if not len(sizes) or not ((sizes >= 1) & (sizes == np.floor(sizes))).all():
        raise InputError(f"widths must be whole numbers of dimensions above 0, got {widths}; try --widths 64,128,256")
    return sizes.astype(np.int64)


def _warnings(stats: FeatureStats, alpha: float) -> list[str]:
    found = []
    if len(stats.blocks.n_tokens) < 2:
        found.append("one block of text gives no intervals: measure more tokens, or smaller batches")
    if alpha < DENSE:
        found.append(f"sparsity {alpha:.3f} is below 0.632, where Theorem 1's capacity function has no meaning")
    if stats.fvu > 0.3:
        found.append(f"the SAE leaves {stats.fvu:.0%} of the variance unexplained: that part is not in the floor")
    if stats.expected_l0 and not 0.5 <= stats.l0 / stats.expected_l0 <= 2.0:
        found.append(
            f"L0 is {stats.l0:.1f} where the SAE's publisher has {stats.expected_l0:.1f}:"
            " another text, another processing of the teacher, or an SAE that was loaded wrongly"
        )
    return found
