"""The block bootstrap: resample blocks of text with replacement, since tokens of one text are not independent."""

import math

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import t as student_t

Interval = tuple[float, float]
"""(low, high)."""
UNKNOWN: Interval = (math.nan, math.nan)
"""An interval that could not be estimated."""
Z_95 = 1.96
"""Standard errors on either side of a 95 % interval."""


def block_bootstrap(n_blocks: int, n_resamples: int, seed: int) -> Int64[np.ndarray, "resample block"]:
    """Sample `n_blocks` blocks with replacement, `n_resamples` times, and count how often each block is sampled.

    Source: Künsch 1989, "The Jackknife and the Bootstrap for General Stationary Observations", with blocks that do not
    overlap.

    Args:
        n_blocks: number of blocks.
        n_resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        [resample, block] how often each block is in each resample; every row sums to `n_blocks`.

    Example:
        >>> block_bootstrap(4, 2, seed=0).sum(axis=1).tolist()
        [4, 4]
    """
    blocks = np.random.default_rng(seed).integers(n_blocks, size=(n_resamples, n_blocks))
    return np.stack([np.bincount(resample, minlength=n_blocks) for resample in blocks])


def margin_95(resampled: Float64[np.ndarray, "resample *value"], n_blocks: int) -> Float64[np.ndarray, "*value"]:
    """Return half the width of the 95 % interval of a value, from the values of the resamples.

    The variance over resamples is that of the blocks divided by `n_blocks`, where the variance of a mean has
    `n_blocks` - 1; and a variance from few blocks is not well known, so that the quantile is of Student's t
    distribution.

    Args:
        resampled: values of the resamples.
        n_blocks: number of blocks, at least 2.

    Example:
        >>> round(float(margin_95(np.array([-1.0, 1.0]), n_blocks=64)), 2)
        2.01
    """
    errors = resampled.std(0) * math.sqrt(n_blocks / (n_blocks - 1))
    return np.asarray(float(student_t.ppf(0.975, n_blocks - 1)) * errors)
