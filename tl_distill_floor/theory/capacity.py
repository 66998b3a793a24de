"""The capacity function: how many features a dimension can hold (Sarkar and Deka 2026, arXiv 2604.04037, section 3)."""

import math
from typing import Any, TypeAlias

import numpy as np

Number: TypeAlias = float | int | np.integer[Any] | np.floating[Any]


def capacity(alpha: Number) -> float:
    """Features per dimension, g(α) = 1 / ((1−α) · ln(1/(1−α))).

    α is the sparsity, the probability that a feature is inactive. g is least, e, at α = 1 − 1/e ≈ 0.632, and grows
    without bound as α → 1; below that minimum it rises again, where the compressed-sensing argument behind it no
    longer holds.

    Raises:
        ValueError: α is not inside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"sparsity alpha must lie inside (0, 1), got {alpha}")
    rate = 1.0 - float(alpha)
    return 1.0 / (rate * -math.log(rate))


def critical_width(n_features: Number, alpha: Number) -> float:
    """The width d* = F / g(α), in dimensions, from which on a student can hold every feature.

    Raises:
        ValueError: α is not inside (0, 1), or the number of features is negative.
    """
    if not n_features >= 0:
        raise ValueError(f"the number of features must be at least 0, got {n_features}")
    return float(n_features) / capacity(alpha)


def n_features_held(width: Number, per_dimension: float, n_features: int) -> int:
    """F_S = min(⌊d_S · g⌋, F): how many features a student of `width` dimensions holds at `per_dimension` = g(α)."""
    # d* · g(α) is F up to rounding: a student of exactly the critical width holds all F.
    return min(math.floor(float(width) * per_dimension * (1.0 + 1e-12)), n_features)
