"""The capacity function: how many features one dimension can hold.

Source: Sarkar and Deka 2026 (arXiv 2604.04037), section 3.
"""

import math
from typing import Any, TypeAlias

import numpy as np

Number: TypeAlias = float | int | np.integer[Any] | np.floating[Any]


def capacity(alpha: Number) -> float:
    """Return the capacity function g(α) = 1 / ((1−α) · ln(1/(1−α))).

    α is the sparsity: the probability that a feature is inactive. g has its minimum, e, at α = 1 − 1/e ≈ 0.632, and
    grows without bound as α → 1. Below that α it grows again, where the compressed-sensing argument for it does not
    hold.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), section 3.

    Args:
        alpha: sparsity, inside (0, 1).

    Returns:
        Features per dimension.

    Raises:
        ValueError: `alpha` is not inside (0, 1).

    Example:
        >>> round(capacity(0.992), 2)
        25.89
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha, the sparsity, must be inside (0, 1), got {alpha}")
    return 1.0 / ((1.0 - float(alpha)) * -math.log1p(-float(alpha)))


def critical_width(n_features: Number, alpha: Number) -> float:
    """Return the critical width d* = F / g(α), the smallest width at which a student can hold all features.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), section 3.

    Args:
        n_features: number of alive features, F.
        alpha: sparsity, inside (0, 1).

    Returns:
        Width in dimensions.

    Raises:
        ValueError: `alpha` is not inside (0, 1), or `n_features` is negative.

    Example:
        >>> round(critical_width(28_700, 0.992))
        1109
    """
    if not n_features >= 0:
        raise ValueError(f"n_features must be at least 0, got {n_features}")
    return float(n_features) / capacity(alpha)


def n_features_held(width: Number, features_per_dimension: float, n_features: int) -> int:
    """Return F_S = min(⌊width · g⌋, F), the number of features that a student holds.

    Source: Sarkar and Deka 2026 (arXiv 2604.04037), section 3.

    Args:
        width: width of the student in dimensions.
        features_per_dimension: capacity g(α).
        n_features: number of alive features, F.

    Example:
        >>> n_features_held(0.5, 4.34, 5)
        2
    """
    # The factor corrects rounding: a student of exactly the critical width holds all F features.
    return min(math.floor(float(width) * features_per_dimension * (1.0 + 1e-12)), n_features)
