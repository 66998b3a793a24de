"""Resampled texts, and Theorem 1's interval, worked out by hand."""

import numpy as np
import pytest

from tests.helpers.records import stats_of
from tl_distill_floor import capacity, floor_from_stats
from tl_distill_floor.predicting.intervals import _resample
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.theory.bootstrap import block_bootstrap, margin_95


def test_alive_features_and_sparsity_of_resampled_texts() -> None:
    """Two blocks of 10 tokens, in which features fire 3 and 2, and 1 and 0 times; alive features fire 4 times."""
    counts = np.array([[3, 2], [1, 0]])
    stats = stats_of(None, blocks=(np.array([10, 10]), counts, np.ones((2, 2))))
    resamples = _resample(stats, min_count=4, times=np.array([[2, 0], [1, 1], [0, 2]]))
    # Counts 6 and 4, 4 and 2, 2 and 0: of 20 tokens, α is 1 − 10 / 2 / 20, 1 − 4 / 20, and 1 without an alive feature.
    assert resamples.n_features.tolist() == [2, 1, 0]
    assert resamples.alpha == pytest.approx([0.75, 0.8, 1.0])
    assert resamples.alpha[2] < 1


def test_interval_of_theorem_has_the_error_of_the_number_of_held_features() -> None:
    """All blocks have the same costs, but firing rates of 2 % and 10 %; so only the number of held features varies."""
    n_blocks, n_resamples, cost = 4, 100, np.arange(8.0, 0.0, -1.0)
    tokens, counts = np.full(n_blocks, 1000), np.repeat([[20] * 8, [100] * 8], 2, axis=0)
    stats = stats_of(None, blocks=(tokens, counts, np.tile(cost * 1000, (n_blocks, 1))))
    floor = floor_from_stats(stats, [1], n_bootstrap=n_resamples, seed=3)
    # α = 0.94: width 1 holds ⌊5.92⌋ of 8 features, and loses the costs 3, 2 and 1.
    assert floor.theorem.tolist() == pytest.approx([6.0])
    rates = block_bootstrap(n_blocks, n_resamples, seed=3) @ np.array([0.02, 0.02, 0.1, 0.1]) / n_blocks
    n_held = np.minimum([capacity(1 - rate) for rate in rates], 8)
    margin = margin_95(n_held, n_blocks) * cost[int(n_held.mean())]
    assert margin > 0.5
    assert floor.theorem_interval[0] == pytest.approx([max(6.0 - margin, 0.0), 6.0 + margin])


@pytest.mark.parametrize("is_simulated", [False, True])
def test_intervals_have_the_error_of_the_tail_loss(is_simulated: bool) -> None:
    """Two sequences of one token lose 0.9 and 1.1 times twice the cost: √(2 · 0.1²) · √(2 / 1) / 2 = 10 %."""
    cost = np.array([8.0, 4.0, 2.0, 1.0])
    additive = np.array([15.0, 7.0, 3.0, 1.0])
    one = np.ones(2, dtype=np.int64)
    tail = TailLoss(np.arange(4), additive, np.outer(2 * additive, [0.9, 1.1]), one, np.arange(2))
    lost = np.array([[2.0, 1.0, 1.0, 1.0]])
    simulation = Simulation(
        np.array([1]), lost.sum(1)[:, None], lost.sum(1)[:, None], np.zeros(1), lost, lost.sum(1)[:, None], 100.0, 10
    )
    stats = stats_of(cost, rate=0.5, cost_unit="nats")
    floor = floor_from_stats(stats, [1], tail=tail, simulation=simulation if is_simulated else None)
    # The blocks are equal, so there is no other error. α = 0.5: width 1 holds ⌊2.89⌋ features, and 2 · (2 + 1) is lost.
    assert floor.theorem.tolist() == pytest.approx([6.0])
    assert floor.theorem_interval[0] == pytest.approx([6.0 * (1 - 0.196), 6.0 * (1 + 0.196)])
    (independent,) = floor.independent
    assert floor.independent_interval[0] == pytest.approx([independent * (1 - 0.196), independent * (1 + 0.196)])
