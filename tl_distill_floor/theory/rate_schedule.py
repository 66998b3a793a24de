"""Learning rates in the fit of a learning curve: tokens weighted by them, and the parts of a constant schedule."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

WARM_UP_SHARE = 0.1
"""Points before this share of the tokens are left out as warm-up."""
DECAY_START = 0.8
"""Points after this share of the tokens may be lower because the learning rate is decaying."""
SHIFTS = np.linspace(-0.01, 0.02, 7)
"""Shifts s of the tokens that fits try, as shares of the tokens. Tokens of the warm-up count for less; a start from the
teacher's weights is worth some tokens."""
SMALLEST_RATE = 1e-3
"""Smallest learning rate, as a share of the highest, by which tokens are weighted."""
SMALLEST_CHANGE = 0.05
"""Learning rates that differ by less than this share of the highest are taken as constant."""


def tokens_by_rate(n_tokens: npt.ArrayLike, rates: npt.ArrayLike) -> Float64[np.ndarray, " point"]:
    """Return the tokens at each point, each weighted by its learning rate as a share of the highest.

    A training at a low learning rate advances less per token, so that a curve that flattens because of its schedule is
    not taken for one that is at its end. Loss curves are power laws of the sum of the learning rates (Luo et al. 2025,
    "A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules", arXiv 2503.12811).

    Args:
        n_tokens: [point] tokens trained on, rising.
        rates: [point] learning rates, in any unit.

    Returns:
        [point] weighted tokens; the tokens themselves if all rates are 0.

    Example:
        >>> tokens_by_rate([100.0, 200.0], [1.0, 0.0]).tolist()
        [100.0, 150.0]
    """
    n, lr = (np.asarray(values, dtype=np.float64) for values in (n_tokens, rates))
    if not lr.max() > 0:
        return n
    shares = lr / lr.max()
    means = (shares + np.append(shares[:1], shares[:-1])) / 2
    weighted: np.ndarray = np.cumsum(np.maximum(means, SMALLEST_RATE) * np.diff(n, prepend=0.0))
    return weighted


def is_constant_until_decay(n_tokens: npt.ArrayLike, rates: npt.ArrayLike) -> bool:
    """Return whether a learning rate is constant from a short warm-up to a decay in the last fifth of the tokens.

    Then the tokens and the sum of the learning rates differ by a shift that the fits of learning curves try.

    Args:
        n_tokens: [point] tokens trained on, rising.
        rates: [point] learning rates, in any unit.

    Example:
        >>> is_constant_until_decay([10, 50, 80, 100], [1.0, 1.0, 1.0, 0.0])
        True
        >>> is_constant_until_decay([10, 50, 80, 100], [1.0, 0.5, 0.2, 0.0])
        False
    """
    n, lr = (np.asarray(values, dtype=np.float64) for values in (n_tokens, rates))
    before_decay = n <= DECAY_START * n[-1]
    between = lr[before_decay & (n >= WARM_UP_SHARE * n[-1])]
    if len(between) and np.ptp(between) > SMALLEST_CHANGE * lr.max():
        return False
    missing = (n - tokens_by_rate(n, lr))[before_decay]
    return bool((missing <= SHIFTS[-1] * n[-1]).all())
