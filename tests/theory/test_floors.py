"""Theorem 1: numbers worked by hand, laws, and intervals that cover."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers.records import stats_of
from tl_distill_floor import InputError, allocate, capacity, critical_width, floor_from_stats, theorem_floor

costs = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1e6))
rates = st.floats(1e-6, 0.999)


def test_capacity_by_hand() -> None:
    # α = 0.9: 1 / (0.1 · ln 10) = 1 / 0.2302585 = 4.342945
    assert capacity(0.9) == pytest.approx(4.342944819)
    # α = 1 − 1/e: 1 / (e^-1 · 1) = e, the least that g can be
    assert capacity(1 - 1 / math.e) == pytest.approx(math.e)


def test_the_papers_pythia_410m() -> None:
    # Sarkar and Deka 2026: F ≈ 28,700 at α ≈ 0.992 gives d* ≈ 1,065; with α at its three printed digits, within 5 %.
    assert critical_width(28_700, 0.992) == pytest.approx(1_065, rel=0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_capacity_refuses(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie inside"):
        capacity(alpha)


def test_critical_width_refuses_negative_counts() -> None:
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


def test_a_feature_that_never_fires_needs_nothing() -> None:
    # The dead one neither counts in α nor in F nor in the floor: the same as without it.
    with_dead = theorem_floor([4.0, 0.0, 1.0], [0.1, 0.0, 0.3], [0.1, 1.0])
    assert with_dead.tolist() == theorem_floor([4.0, 1.0], [0.1, 0.3], [0.1, 1.0]).tolist()


@pytest.mark.parametrize(
    ("cost", "rate", "width", "says"),
    [
        ([], 0.1, 1, "at least one feature"),
        ([[1.0]], 0.1, 1, "vector"),
        ([1.0, 2.0], [0.1], 1, "as long as cost"),
        ([-1.0], 0.1, 1, r"cost\[0\] is -1.0"),
        ([1.0, math.nan], 0.1, 1, r"cost\[1\] is nan"),
        ([1.0], 1.5, 1, r"firing_rate\[0\] is 1.5; it must lie inside \(0, 1\)"),
        ([1.0], 1.0, 1, r"firing_rate\[0\] is 1.0"),
        ([1.0], math.nan, 1, r"firing_rate\[0\] is nan"),
        ([1.0, 2.0], [0.1, 0.0], 1, r"firing_rate\[1\] is 0.0"),
        ([1.0], 0.0, 1, "none is alive"),
        ([1.0], 0.1, 0, "width must be a number of dimensions above 0, got 0"),
        ([1.0], 0.1, -3, "above 0, got -3"),
        ([1.0], 0.1, math.nan, "above 0"),
        ([1.0], 0.1, math.inf, "above 0"),
    ],
)
@pytest.mark.parametrize("method", ["top_k", "water_fill"])
def test_allocate_refuses(cost: object, rate: object, width: float, says: str, method: str) -> None:
    with pytest.raises(ValueError, match=says):
        allocate(cost, rate, width, method=method)


def test_allocate_refuses_an_unknown_method() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        allocate([1.0], 0.1, 1, method="magic")


@given(costs, rates, st.lists(st.floats(0.01, 200), min_size=2, max_size=20))
def test_the_floor_never_rises_with_width(cost: np.ndarray, rate: float, widths: list[float]) -> None:
    floors = theorem_floor(cost, rate, sorted(widths))
    assert (np.diff(floors) <= 0).all()


@given(costs, rates)
def test_the_floor_is_nothing_from_the_critical_width_on(cost: np.ndarray, rate: float) -> None:
    needed = critical_width(len(cost), 1 - rate)
    assert theorem_floor(cost, rate, [needed, 2 * needed]).tolist() == [0, 0]


@given(costs, rates)
def test_the_floor_is_everything_below_one_features_share(cost: np.ndarray, rate: float) -> None:
    width = 0.999 / capacity(1 - rate)
    assert theorem_floor(cost, rate, [width])[0] == pytest.approx(cost.sum())


@given(costs, rates, st.floats(0.01, 50))
def test_allocation_and_floor_agree_and_fit_the_width(cost: np.ndarray, rate: float, width: float) -> None:
    allocation = allocate(cost, rate, width, method="top_k")
    assert allocation.capacity.sum() <= width * (1 + 1e-9)
    assert allocation.floor == pytest.approx(theorem_floor(cost, rate, [width])[0])
    assert allocation.floor == pytest.approx(cost[~allocation.kept].sum())
    if allocation.kept.any() and not allocation.kept.all():
        assert cost[allocation.kept].min() >= cost[~allocation.kept].max()


@given(costs.filter(lambda c: c.sum() > 0), st.floats(0, 1.2))
def test_width_for_is_the_narrowest_that_serves(cost: np.ndarray, share: float) -> None:
    floor = floor_from_stats(stats_of(cost, rate=0.05), [1], n_bootstrap=2)
    max_loss = share * cost.sum()
    width = floor.width_for(max_loss)
    at = lambda w: allocate(cost, 0.05, w).floor  # noqa: E731
    tolerance = 1e-9 * cost.sum()
    assert at(width) <= max_loss + tolerance
    assert width == 1 or at(width - 1) > max_loss - tolerance


def test_without_codes_the_independent_floor_is_expected() -> None:
    cost = np.array([5.0, 1.0, 9.0, 4.0, 2.0, 8.0, 7.0, 6.0])
    floor = floor_from_stats(stats_of(cost, rate=0.05), [1, 2, 8])
    allocations = [allocate(cost, 0.05, width) for width in (1, 2, 8)]
    assert floor.expected.tolist() == floor.independent.tolist() == pytest.approx([a.floor for a in allocations])
    assert floor.simulated is None
    for width, allocation in zip((1, 2, 8), allocations, strict=True):
        assert floor.kept(width).tolist() == allocation.kept.tolist()
        assert set(floor.lost(width)) == set(np.flatnonzero(~allocation.kept))
    # rates 0.05: g = 6.676; by Theorem 1 width 1 keeps 6 of 8, and loses the two cheapest, 1 and 2.
    assert floor.theorem.tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert cost[floor.lost(1)].tolist() == sorted(cost[floor.lost(1)], reverse=True)


def test_floor_says_when_nothing_can_be_said() -> None:
    with pytest.raises(InputError, match="none of the 3 features fired"):
        floor_from_stats(stats_of(np.ones(3), rate=0.0))
    with pytest.raises(InputError, match="every token"):
        floor_from_stats(stats_of(np.ones(3), rate=1.0))
    with pytest.raises(InputError, match="whole numbers"):
        floor_from_stats(stats_of(np.ones(3), rate=0.1), [0.5])
    with pytest.raises(ValueError, match="max_loss must be at least 0"):
        floor_from_stats(stats_of(np.ones(3), rate=0.1)).width_for(-1)


def test_dense_codes_are_called_dense() -> None:
    assert any("no meaning" in warning for warning in floor_from_stats(stats_of(np.ones(5), rate=0.5)).warnings)


def test_an_l0_far_from_the_published_one_is_called_so() -> None:
    found = floor_from_stats(stats_of(np.ones(50), rate=0.1, expected_l0=80.0))
    assert any("publisher has 80.0" in warning for warning in found.warnings)


def test_a_redrawn_text_may_hold_no_feature() -> None:
    counts = np.array([[5, 0], [0, 0], [0, 0], [0, 0]])
    floor = floor_from_stats(stats_of(None, blocks=(np.full(4, 100), counts, counts * 1.0)), [1])
    low, high = floor.n_features_interval
    assert low < floor.n_features == 1 < high


def bursty(seed: int, rate: np.ndarray, amplitude: np.ndarray, blocks: int = 32, tokens: int = 2000) -> object:
    """Statistics of features that come and go with the block of text, as topics do."""
    random = np.random.default_rng(seed)
    per_block = np.clip(rate * random.gamma(1.0, 1.0, (blocks, len(rate))), 0, 1)
    counts = random.binomial(tokens, per_block)
    return stats_of(None, blocks=(np.full(blocks, tokens), counts, counts * amplitude))


def test_intervals_cover_the_truth() -> None:
    """95 % intervals, 60 measurements of one source: the mean over 150 others is covered at least 80 % of the time."""
    random = np.random.default_rng(0)
    rate = np.clip(np.exp(random.normal(np.log(1e-3), 1.5, 400)), 1e-7, 0.3)
    amplitude = random.lognormal(0, 1, 400)
    widths = [4, 8, 16]

    def numbers(floor: object) -> np.ndarray:
        return np.array([floor.n_features, floor.alpha, floor.critical_width, *floor.expected])

    points = [floor_from_stats(bursty(1000 + s, rate, amplitude), widths, n_bootstrap=2) for s in range(150)]
    truth = np.mean([numbers(p) for p in points], axis=0)
    hits = np.zeros(len(truth))
    for seed in range(60):
        found = floor_from_stats(bursty(seed, rate, amplitude), widths, n_bootstrap=100)
        bounds = np.array(
            [found.n_features_interval, found.alpha_interval, found.critical_width_interval, *found.interval]
        )
        hits += (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
    assert (hits / 60 >= 0.8).all(), hits / 60
