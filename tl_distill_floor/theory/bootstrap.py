"""The block bootstrap: resample blocks of text with replacement, since tokens of one text are not independent."""

import math

import numpy as np
from jaxtyping import Int64

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
