"""The block bootstrap: its intervals hold the mean of few blocks as often as those of many."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from tl_distill_floor.theory.bootstrap import block_bootstrap, margin_95


@pytest.mark.parametrize("n_blocks", [2, 3, 5, 20])
def test_the_interval_of_a_mean_is_that_of_the_t_distribution(n_blocks: int) -> None:
    """The textbook margin is t · s / √n, with s² from n − 1 degrees of freedom."""
    blocks = np.random.default_rng(n_blocks).normal(5.0, 1.0, n_blocks)
    times = block_bootstrap(n_blocks, 20_000, seed=0)
    textbook = student_t.ppf(0.975, n_blocks - 1) * blocks.std(ddof=1) / np.sqrt(n_blocks)
    assert margin_95(times @ blocks / n_blocks, n_blocks) == pytest.approx(textbook, rel=0.02)


@pytest.mark.parametrize("n_blocks", [2, 4])
def test_intervals_of_few_blocks_hold_the_mean(n_blocks: int) -> None:
    """Of 400 intervals of 95 %, about 20 miss; at most 32 may."""
    random, times, missed = np.random.default_rng(0), block_bootstrap(n_blocks, 200, seed=0), 0
    for _ in range(400):
        blocks = random.normal(5.0, 1.0, n_blocks)
        missed += abs(blocks.mean() - 5.0) > margin_95(times @ blocks / n_blocks, n_blocks)
    assert missed <= 32
