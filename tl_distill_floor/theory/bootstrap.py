"""The block bootstrap: resample blocks of text with replacement, since tokens of one text are not independent."""

import math

import numpy as np
from jaxtyping import Int64

Interval = tuple[float, float]
"""(low, high)."""
UNKNOWN: Interval = (math.nan, math.nan)
Z_95 = 1.96
"""Standard errors on either side of a 95 % interval."""


def block_bootstrap(n_blocks: int, n_resamples: int, seed: int) -> Int64[np.ndarray, "resample block"]:
    """Return how often each block is drawn in each resample of `n_blocks` blocks.

    Args:
        n_blocks: number of blocks.
        n_resamples: number of resamples.
        seed: seed of the resampling.

    Example:
        >>> block_bootstrap(4, 2, seed=0).sum(axis=1).tolist()
        [4, 4]
    """
    chosen = np.random.default_rng(seed).integers(n_blocks, size=(n_resamples, n_blocks))
    return np.stack([np.bincount(each, minlength=n_blocks) for each in chosen])
