"""Resampled texts, documents longer than blocks, and Theorem 1's interval, worked out by hand."""

import numpy as np
import pytest

from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, capacity, floor_from_stats
from tl_distill_floor.predicting.intervals import _resample
from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.theory.bootstrap import block_bootstrap, margin_95


def test_alive_features_and_sparsity_of_resampled_texts() -> None:
    """Two blocks of 10 tokens, in which features fire 3 and 2, and 1 and 0 times; alive features fire 4 times."""
    counts = np.array([[3, 2], [1, 0]])
    stats = stats_of(None, blocks=(np.array([10, 10]), counts, np.ones((2, 2))))
    resamples = _resample(stats.blocks, min_count=4, times=np.array([[2, 0], [1, 1], [0, 2]]))
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
    """Two sequences of one token lose 0.99 and 1.01 times twice the cost: √(2 · 0.01²) · √(2 / 1) / 2 = 1 %.

    The quantile of Student's t for two units is 12.706.
    """
    cost = np.array([8.0, 4.0, 2.0, 1.0])
    additive = np.array([15.0, 7.0, 3.0, 1.0])
    one = np.ones(2, dtype=np.int64)
    tail = TailLoss(np.arange(4), additive, np.outer(2 * additive, [0.99, 1.01]), one, np.arange(2))
    lost = np.array([[2.0, 1.0, 1.0, 1.0]])
    simulation = Simulation(
        np.array([1]), lost.sum(1)[:, None], lost.sum(1)[:, None], np.zeros(1), lost, lost.sum(1)[:, None], 100.0, 10
    )
    stats = stats_of(cost, rate=0.5, cost_unit="nats")
    floor = floor_from_stats(stats, [1], tail=tail, simulation=simulation if is_simulated else None)
    # The blocks are equal, so there is no other error. α = 0.5: width 1 holds ⌊2.89⌋ features, and 2 · (2 + 1) is lost.
    assert floor.theorem.tolist() == pytest.approx([6.0])
    assert floor.theorem_interval[0] == pytest.approx([6.0 * (1 - 0.12706), 6.0 * (1 + 0.12706)], rel=1e-4)
    (independent,) = floor.independent
    assert floor.independent_interval[0] == pytest.approx(
        [independent * (1 - 0.12706), independent * (1 + 0.12706)], rel=1e-4
    )


N_FEATURES, BLOCK_TOKENS, MEAN_RATE = 50, 1000, 0.1


def text_of_documents(blocks_per_document: int, n_blocks: int, seed: int) -> FeatureStats:
    """Return statistics of a text whose documents have their own firing rates and costs.

    The expected value of every rate is `MEAN_RATE`. A few features, their topic, fire more in each document; documents
    also differ in the rates of all features. The text begins in the middle of a document.
    """
    rng = np.random.default_rng(seed)
    shape = (n_blocks // blocks_per_document + 2, N_FEATURES)
    factors = rng.lognormal(-0.02, 0.2, (shape[0], 1)) * rng.lognormal(-0.125, 0.5, shape)
    rates = np.minimum(np.repeat(MEAN_RATE * factors, blocks_per_document, axis=0), 1.0)
    rates = rates[blocks_per_document // 2 :][:n_blocks]
    counts = rng.binomial(BLOCK_TOKENS, rates)
    return stats_of(None, blocks=(np.full(n_blocks, BLOCK_TOKENS), counts, counts / np.arange(1, N_FEATURES + 1)))


def test_correlation_of_neighbouring_blocks() -> None:
    """One feature with the rates 0, 0, 1, 1 has the deviations ∓½: (¼ − ¼ + ¼) / 3 / ¼ = ⅓, and ¼ is added."""

    def correlation(*counts: list[int], tokens: int = 10) -> float:
        blocks = np.array(counts).T
        return stats_of(None, blocks=(np.full(len(blocks), tokens), blocks, blocks)).blocks.neighbour_correlation()

    assert correlation([0, 0, 10, 10]) == pytest.approx(1 / 3 + 1 / 4)
    # A second feature that varies half as much, and the other way round, counts a quarter.
    assert correlation([0, 0, 10, 10], [0, 5, 0, 5]) == pytest.approx((4 / 3 - 1) / 5 + 1 / 4)
    assert correlation([3, 3, 3, 3]) == 0.0
    assert correlation([1, 9]) == 0.0
    tokens = np.array([10, 20, 10, 20])
    uneven = stats_of(None, blocks=(tokens, tokens[:, None] // 2, tokens[:, None]))
    assert uneven.blocks.neighbour_correlation() == 0.0


def test_correlation_of_blocks_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = text_of_documents(3, 24, seed=0).blocks
    whole = blocks.neighbour_correlation()
    monkeypatch.setattr("tl_distill_floor.results.block_sums.NUMBERS_PER_PART", 7 * 24)
    assert blocks.neighbour_correlation() == pytest.approx(whole)
    rate = blocks.firing_count / blocks.n_tokens[:, None]
    correlation = [np.cov(rate[:-1, f], rate[1:, f], ddof=0)[0, 1] for f in range(N_FEATURES)]
    assert whole - 1 / 24 == pytest.approx(np.sum(correlation) / rate.var(0).sum(), abs=0.1)


@pytest.mark.parametrize(("blocks_per_document", "n_blocks", "n_joined"), [(1, 48, 48), (4, 48, 6), (4, 11, 11)])
def test_blocks_of_one_document_are_joined(blocks_per_document: int, n_blocks: int, n_joined: int) -> None:
    """Blocks of several documents stay as they are; six blocks remain, and fewer than twelve are not joined."""
    stats = text_of_documents(blocks_per_document, n_blocks, seed=1)
    joined = stats.independent_blocks
    assert len(joined.n_tokens) == n_joined
    np.testing.assert_array_equal(joined.firing_count.sum(0), stats.firing_count)
    if n_joined < n_blocks:
        assert joined.neighbour_correlation() < 0.3 < 0.5 < stats.blocks.neighbour_correlation()


def test_intervals_hold_on_other_documents() -> None:
    """Documents have four blocks: with blocks that are not joined, two thirds of the intervals of α hold."""
    floors = [floor_from_stats(text_of_documents(4, 48, seed), [8], n_bootstrap=100) for seed in range(200)]
    intervals = np.array([floor.alpha_interval for floor in floors])
    alpha = np.array([floor.alpha for floor in floors])
    held = (intervals[:, 0] <= 1 - MEAN_RATE) & (intervals[:, 1] >= 1 - MEAN_RATE)
    assert held.mean() >= 0.9
    errors = np.diff(intervals)[:, 0] / 2
    assert alpha.std() < errors.mean() < 4 * alpha.std()


def test_every_interval_is_from_independent_blocks() -> None:
    stats = text_of_documents(4, 48, seed=1)
    joined: BlockSums = stats.independent_blocks
    by_hand = stats_of(None, blocks=(joined.n_tokens, joined.firing_count, joined.cost))
    floor, expected = floor_from_stats(stats, [2, 8]), floor_from_stats(by_hand, [2, 8])
    for name in ("n_features", "alpha", "critical_width", "theorem", "independent", "sampling"):
        np.testing.assert_allclose(getattr(floor, f"{name}_interval"), getattr(expected, f"{name}_interval"), rtol=1e-6)
    assert floor.power_law is not None
    assert expected.power_law is not None
    assert floor.power_law.slope_interval == pytest.approx(expected.power_law.slope_interval)


def test_text_of_too_few_documents_gives_a_warning() -> None:
    (warning,) = floor_from_stats(text_of_documents(4, 11, seed=1), [8]).warnings
    assert warning.startswith("neighbouring parts of the text are alike (correlation 0.")
    assert floor_from_stats(text_of_documents(1, 11, seed=1), [8]).warnings == ()
