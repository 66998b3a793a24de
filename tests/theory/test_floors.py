"""Tests of Theorem 1: values computed by hand, properties, and the coverage of the intervals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers.records import stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import (
    FeatureStats,
    FloorPrediction,
    InputError,
    allocate,
    capacity,
    critical_width,
    floor_from_stats,
    theorem_floor,
)  # fmt: skip
from tl_distill_floor.results.tail_loss import TailLoss

costs = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e6))
rates = st.floats(1e-6, 0.999)


def test_capacity_by_hand() -> None:
    # α = 0.9: 1 / (0.1 · ln 10) = 1 / 0.2302585 = 4.342945
    assert capacity(0.9) == pytest.approx(4.342944819)
    # α = 1 − 1/e: 1 / (e^-1 · 1) = e, the minimum of g
    assert capacity(1 - 1 / math.e) == pytest.approx(math.e)
    assert capacity(1e-17) == pytest.approx(1e17)  # g(α) = 1/α + 1/2 + ... for small α


def test_matches_the_papers_pythia_410m() -> None:
    # Sarkar and Deka 2026: F ≈ 28,700 at α ≈ 0.992 gives d* ≈ 1,065; α has three printed digits, so within 5 %.
    assert critical_width(28_700, 0.992) == pytest.approx(1_065, rel=0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_capacity_rejects_alpha_outside_0_to_1(alpha: float) -> None:
    with pytest.raises(ValueError, match="must be inside \\(0, 1\\)"):
        capacity(alpha)


def test_critical_width_rejects_negative_counts() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        critical_width(-1, 0.9)


def test_allocate_by_hand() -> None:
    # rate 0.1: g = 4.342945, so width 0.5 holds ⌊2.17⌋ = 2 of 5: the costs 9 and 5. Floor: 1 + 2 + 0.5 = 3.5.
    allocation = allocate([1.0, 9.0, 2.0, 5.0, 0.5], 0.1, 0.5, method="top_k")
    assert allocation.kept.tolist() == [False, True, False, True, False]
    assert allocation.floor == pytest.approx(3.5)
    assert allocation.capacity.tolist() == pytest.approx([0, 0.2302585, 0, 0.2302585, 0])


def test_allocate_takes_lists_arrays_and_tensors() -> None:
    cost, rate = [3.0, 1.0, 2.0], [0.1, 0.2, 0.3]
    kinds = [(cost, rate), (np.array(cost), np.array(rate)), (torch.tensor(cost), torch.tensor(rate))]
    floors = [allocate(c, r, 0.5, method="top_k").floor for c, r in kinds]
    assert floors == pytest.approx([floors[0]] * 3, rel=1e-6)


def test_dead_features_do_not_change_the_floor() -> None:
    # A dead feature counts neither in α nor in F nor in the floor.
    with_dead = theorem_floor([4.0, 0.0, 1.0], [0.1, 0.0, 0.3], [0.1, 1.0])
    assert with_dead.tolist() == theorem_floor([4.0, 1.0], [0.1, 0.3], [0.1, 1.0]).tolist()
    # The mean rate of the others is 0.2: g = 3.11, and width 0.6 holds one feature; with the dead one it would hold two
    held = allocate([4.0, 0.0, 1.0], [0.1, 0.0, 0.3], 0.6, method="top_k")
    assert (held.kept.tolist(), held.floor) == ([True, False, False], 1.0)
    filled = allocate([4.0, 0.0, 1.0], [0.1, 0.0, 0.3], 0.6)
    assert filled.capacity[[0, 2]].tolist() == allocate([4.0, 1.0], [0.1, 0.3], 0.6).capacity.tolist()
    assert (filled.capacity[1], filled.kept[1]) == (0.0, False)


@pytest.mark.parametrize(
    ("cost", "rate", "width", "message"),
    [
        ([], 0.1, 1, "at least one feature"),
        ([[1.0]], 0.1, 1, "vector"),
        ([1.0, 2.0], [0.1], 1, "as long as cost"),
        ([-1.0], 0.1, 1, r"cost\[0\] is -1.0"),
        ([1.0, math.nan], 0.1, 1, r"cost\[1\] is nan"),
        ([1.0], 1.5, 1, r"firing_rate\[0\] is 1.5; it must be inside \(0, 1\)"),
        ([1.0], 1.0, 1, r"firing_rate\[0\] is 1.0"),
        ([1.0], math.nan, 1, r"firing_rate\[0\] is nan"),
        ([1.0, 2.0], [0.1, 0.0], 1, r"firing_rate\[1\] is 0.0"),
        ([1.0], 0.0, 1, "at least one feature must be alive"),
        ([1.0], 0.1, 0, "width must be a number of dimensions above 0, got 0"),
        ([1.0], 0.1, -3, "above 0, got -3"),
        ([1.0], 0.1, math.nan, "above 0"),
        ([1.0], 0.1, math.inf, "above 0"),
    ],
)
@pytest.mark.parametrize("method", ["top_k", "water_fill"])
def test_allocate_rejects_invalid_values(cost: object, rate: object, width: float, message: str, method: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(cost, rate, width, method=method)


def test_allocate_rejects_an_unknown_method() -> None:
    with (
        without_type_checks(),
        pytest.raises(InputError, match="method must be one of top_k, water_fill, got 'magic'"),
    ):
        allocate([1.0], 0.1, 1, method="magic")


@given(costs, rates, st.lists(st.floats(0.01, 200), min_size=2, max_size=20))
def test_floor_never_rises_with_the_width(cost: np.ndarray, rate: float, widths: list[float]) -> None:
    floors = theorem_floor(cost, rate, sorted(widths))
    assert (np.diff(floors) <= 0).all()


@given(costs, rates)
def test_floor_is_zero_from_the_critical_width_on(cost: np.ndarray, rate: float) -> None:
    critical = critical_width(len(cost), 1 - rate)
    assert theorem_floor(cost, rate, [critical, 2 * critical]).tolist() == [0, 0]


@given(costs, rates)
def test_floor_is_the_total_cost_below_the_share_of_one_feature(cost: np.ndarray, rate: float) -> None:
    width = 0.999 / capacity(1 - rate)
    assert theorem_floor(cost, rate, [width])[0] == pytest.approx(cost.sum())


@given(costs, rates, st.floats(0.01, 50))
def test_allocation_matches_the_floor_and_fits_the_width(cost: np.ndarray, rate: float, width: float) -> None:
    allocation = allocate(cost, rate, width, method="top_k")
    assert allocation.capacity.sum() <= width * (1 + 1e-9)
    assert allocation.floor == pytest.approx(theorem_floor(cost, rate, [width])[0])
    assert allocation.floor == pytest.approx(cost[~allocation.kept].sum())
    if allocation.kept.any() and not allocation.kept.all():
        assert cost[allocation.kept].min() >= cost[~allocation.kept].max()


@given(costs.filter(lambda c: c.sum() > 0), st.floats(0, 1.2))
@settings(max_examples=40)
def test_width_for_returns_the_narrowest_sufficient_width(cost: np.ndarray, share: float) -> None:
    floor = floor_from_stats(stats_of(cost, rate=0.05), [1], n_bootstrap=2)
    max_loss = share * cost.sum()
    width = floor.width_for(max_loss)
    tolerance = 1e-9 * cost.sum()
    assert allocate(cost, 0.05, width).floor <= max_loss + tolerance
    assert width == 1 or allocate(cost, 0.05, width - 1).floor > max_loss - tolerance


def test_feature_floor_is_the_independent_floor_without_codes() -> None:
    cost = np.array([5.0, 1.0, 9.0, 4.0, 2.0, 8.0, 7.0, 6.0])
    floor = floor_from_stats(stats_of(cost, rate=0.05), [1, 2, 8])
    allocations = [allocate(cost, 0.05, width) for width in (1, 2, 8)]
    assert floor.feature_floor.tolist() == floor.independent.tolist() == pytest.approx([a.floor for a in allocations])
    assert floor.simulated is None
    for width, allocation in zip((1, 2, 8), allocations, strict=True):
        assert floor.kept(width).tolist() == allocation.kept.tolist()
        assert set(floor.lost(width)) == set(np.flatnonzero(~allocation.kept))
    # rates 0.05: g = 6.676; by Theorem 1 width 1 keeps 6 of 8, and loses the two smallest costs, 1 and 2.
    assert floor.theorem.tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert cost[floor.lost(1)].tolist() == sorted(cost[floor.lost(1)], reverse=True)


def test_floor_from_stats_rejects_invalid_input() -> None:
    with pytest.raises(InputError, match="none of the 3 features fired"):
        floor_from_stats(stats_of(np.ones(3), rate=0.0))
    with pytest.raises(InputError, match="every token"):
        floor_from_stats(stats_of(np.ones(3), rate=1.0))
    with pytest.raises(InputError, match="must be integers"):
        floor_from_stats(stats_of(np.ones(3), rate=0.1), [0.5])
    with pytest.raises(ValueError, match="max_loss must be at least 0"):
        floor_from_stats(stats_of(np.ones(3), rate=0.1)).width_for(-1)


def test_warns_about_dense_codes() -> None:
    assert any("no meaning" in warning for warning in floor_from_stats(stats_of(np.ones(5), rate=0.5)).warnings)


def test_warns_about_an_l0_far_from_the_published_one() -> None:
    floor = floor_from_stats(stats_of(np.ones(50), rate=0.1, expected_l0=80.0))
    assert any("published L0 is 80.0" in warning for warning in floor.warnings)


def test_intervals_allow_resamples_without_alive_features() -> None:
    counts = np.array([[5, 0], [0, 0], [0, 0], [0, 0]])
    floor = floor_from_stats(stats_of(None, blocks=(np.full(4, 100), counts, counts * 1.0)), [1])
    low, high = floor.n_features_interval
    assert low < floor.n_features == 1 < high


def test_intervals_of_equal_blocks_are_the_values() -> None:
    floor = floor_from_stats(stats_of(np.array([8.0, 4.0, 2.0, 1.0]), rate=0.5), [1, 2, 3])
    for name in ("theorem", "independent"):
        values, intervals = getattr(floor, name), getattr(floor, f"{name}_interval")
        np.testing.assert_allclose(intervals, np.stack([values, values], axis=1), rtol=1e-6)


def test_interval_of_theorem_allows_for_an_uncertain_order() -> None:
    """With g = 2.9, width 1 holds 2 of 4 features; each of the last three is the second most costly in some texts."""
    counts, costs = np.full((4, 4), 50), np.array([[90, 3, 0, 0], [90, 0, 3, 0], [90, 0, 0, 3], [90, 1, 1, 1]])
    floor = floor_from_stats(stats_of(None, blocks=(np.full(4, 100), counts, costs)), [1])
    certain = floor_from_stats(stats_of(None, blocks=(np.full(4, 100), counts, np.tile(costs.mean(0), (4, 1)))), [1])
    assert floor.theorem == pytest.approx(8 / 400)
    assert certain.theorem_interval == pytest.approx(8 / 400, rel=1e-6)
    low, high = floor.theorem_interval[0]
    assert low < 8 / 400 < high
    one_block = floor_from_stats(stats_of(None, blocks=(np.array([100]), counts[:1], costs[:1])), [1])
    assert np.isnan(one_block.theorem_interval).all()


@pytest.mark.parametrize("has_tail", [False, True])
def test_interval_of_theorem_allows_for_an_order_by_measured_costs(has_tail: bool) -> None:
    """The sum of the costs that are measured as the smallest is too small; a loss of other tokens is too large.

    Width 8 holds the 62 most costly of 400 features. In 100 texts, an error of 35 % of each cost changes their order.
    """
    true, n_blocks, held = 1.0 / np.sqrt(np.arange(1, 401)), 16, []
    tokens, counts = np.full(n_blocks, 1000), np.full((n_blocks, 400), 40)
    for seed in range(100):
        costs = np.random.default_rng(seed).gamma(0.5, 2.0, (n_blocks, 400)) * true
        stats = stats_of(None, blocks=(tokens, counts, 1000 * costs), cost_unit="nats" if has_tail else "mse")
        order, ranks = np.argsort(-stats.cost, kind="stable"), np.arange(400)
        additive, loss = (np.cumsum(values[order][::-1])[::-1] for values in (stats.cost, true))
        tail = TailLoss(ranks, additive, np.tile(loss[:, None], 2), np.ones(2, dtype=np.int64), np.arange(2))
        floor = floor_from_stats(stats, [8], tail=tail if has_tail else None, n_bootstrap=100)
        n_held = int(8 * floor.capacity)
        low, high = floor.theorem_interval[0]
        held.append(low <= true[n_held:].sum() <= high)
    assert n_held == 62
    assert np.mean(held) >= 0.88


def bursty_stats(
    seed: int, rate: np.ndarray, amplitude: np.ndarray, n_blocks: int, n_tokens: int = 2000
) -> FeatureStats:
    """Return statistics of features whose rates vary between blocks of text, as topics do."""
    random = np.random.default_rng(seed)
    per_block = np.clip(rate * random.gamma(1.0, 1.0, (n_blocks, len(rate))), 0, 1)
    counts = random.binomial(n_tokens, per_block)
    return stats_of(None, blocks=(np.full(n_blocks, n_tokens), counts, counts * amplitude))


@pytest.mark.parametrize("n_blocks", [3, pytest.param(32, marks=pytest.mark.slow)])
def test_intervals_cover_the_true_values(n_blocks: int) -> None:
    """Of 40 measurements, at least 80 % of the 95 % intervals cover the mean over 80 other measurements."""
    random = np.random.default_rng(0)
    rate = np.clip(np.exp(random.normal(np.log(1e-3), 1.5, 400)), 1e-7, 0.3)
    amplitude = random.lognormal(0, 1, 400)
    widths = [4, 8, 16]

    def estimates(floor: FloorPrediction) -> np.ndarray:
        floors = np.concatenate([floor.feature_floor, floor.theorem, floor.independent])
        return np.array([floor.n_features, floor.alpha, floor.critical_width, *floors])

    def stats(seed: int) -> FeatureStats:
        return bursty_stats(seed, rate, amplitude, n_blocks)

    points = [floor_from_stats(stats(1000 + seed), widths, n_bootstrap=2) for seed in range(80)]
    truth = np.mean([estimates(p) for p in points], axis=0)
    hits = np.zeros(len(truth))
    for seed in range(40):
        floor = floor_from_stats(stats(seed), widths, n_bootstrap=100)
        of_floors = np.concatenate([floor.sampling_interval, floor.theorem_interval, floor.independent_interval])
        bounds = np.array([floor.n_features_interval, floor.alpha_interval, floor.critical_width_interval, *of_floors])
        hits += (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
    assert (hits / 40 >= 0.8).all(), hits / 40
