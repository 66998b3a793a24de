"""Tests of the loss-capacity curve and of water-filling: properties, values by hand, and a linear program."""

import math
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tl_distill_floor import allocate, independent_floor
from tl_distill_floor.theory import water_filling
from tl_distill_floor.theory.loss_capacity import (
    CAPACITIES,
    SEGMENTS,
    loss_curve,
    lower_hull,
    nothing_kept,
    scalar_denoiser,
)

WIDTHS = [1, 2, 5, 20, 300, 5000]


@st.composite
def features(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Generate costs and firing rates."""
    n = draw(st.integers(1, 40))
    cost = draw(st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n))
    rate = draw(st.lists(st.floats(1e-5, 0.99), min_size=n, max_size=n))
    return np.array(cost), np.array(rate)


@pytest.mark.parametrize("width", WIDTHS)
def test_curve_falls_from_the_variance_to_zero_and_is_convex(width: int) -> None:
    rate = np.geomspace(1e-5, 0.999, 50)
    gains = loss_curve(width).gains(rate)
    assert (gains >= 0).all()
    assert (np.diff(gains, axis=0) <= 1e-9 * gains[0]).all()
    # r(0) is the sum of the gains of all segments, since r(1) = 0.
    assert SEGMENTS @ gains == pytest.approx(nothing_kept(rate), rel=0.01)


def test_curve_never_rises_with_the_width() -> None:
    curves = [loss_curve(width).r for width in WIDTHS]
    for narrow, wide in pairwise(curves):
        assert (wide <= narrow + 1e-9).all()


def test_curve_of_an_antipodal_pair_by_hand() -> None:
    # Two features of rate p in one dimension, w = ±1, b = 0, have an error only if both fire. For x > y, ReLU(x − y)
    # gives the error (x − (x − y))² + y² = 2y², so the two lose 2 E[min²] = 2 · 1/6 = 1/3 with probability p², of a
    # cost of 2 · p/3: r = p²/3 / (2p/3) = p/2. A bias and other norms are slightly better.
    for rate in (0.1, 0.01, 0.001):
        curve = loss_curve(1)
        r = np.exp(np.interp(math.log(rate), curve.log_rate, np.log(curve.r[:, CAPACITIES == 0.5][:, 0])))
        assert 0.8 * rate / 2 < r <= 1.05 * rate / 2


def test_scalar_denoiser_by_hand() -> None:
    # A full dimension has no interference and loses nothing. Without capacity the best output is the mean.
    assert scalar_denoiser(1.0, 0.1) == pytest.approx(0.0, abs=1e-5)
    assert scalar_denoiser(0.0, 0.2) == pytest.approx(1 - 0.75 * 0.2)


def test_scalar_denoiser_matches_sampled_noise() -> None:
    random = np.random.default_rng(0)
    rate, capacity = 0.05, 0.25
    on = random.random(400_000) < rate
    x = np.where(on, random.random(len(on)), 0.0)
    noise = math.sqrt((1 / capacity - 1) * rate / 3) * random.standard_normal(len(x))
    best = min(
        np.mean((np.maximum(a * (x + noise) + b, 0) - x) ** 2)
        for a in np.linspace(0.3, 1, 15)
        for b in np.linspace(-0.4, 0.1, 21)
    )
    assert scalar_denoiser(capacity, rate) == pytest.approx(best / np.mean(x**2), rel=0.03)


def test_lower_hull_by_hand() -> None:
    # (0, 1), (1/2, 0.9), (1, 0): the middle point is above the line between the others, which is the hull.
    assert lower_hull(np.array([0, 0.5, 1]), np.array([1, 0.9, 0])) == pytest.approx(1 - CAPACITIES)


def test_floor_matches_a_linear_program() -> None:
    random = np.random.default_rng(3)
    cost, rate, width = random.lognormal(0, 2, 12), random.uniform(1e-3, 0.5, 12), 3
    gains = loss_curve(width).gains(rate) * cost
    solution = linprog(
        -gains.ravel(), A_ub=[np.ones(gains.size)], b_ub=[width], bounds=[(0, s) for s in np.repeat(SEGMENTS, 12)]
    )
    total = float((SEGMENTS @ gains).sum())
    assert allocate(cost, rate, width).floor == pytest.approx(total + solution.fun, rel=1e-6)


@given(features(), st.floats(0.1, 50), st.floats(1.0, 3.0))
def test_properties_of_an_allocation(
    costs_and_rates: tuple[np.ndarray, np.ndarray], width: float, factor: float
) -> None:
    cost, rate = costs_and_rates
    allocation = allocate(cost, rate, width)
    assert allocation.capacity.sum() <= width * (1 + 1e-9) + 1e-9
    assert (allocation.capacity >= 0).all()
    assert (allocation.capacity <= 1 + 1e-9).all()
    assert 0 <= allocation.floor <= (cost * nothing_kept(rate)).sum() * 1.01
    assert allocate(cost, rate, width * factor).floor <= allocation.floor * (1 + 1e-9)
    assert allocate(7.5 * cost, rate, width).floor == pytest.approx(7.5 * allocation.floor, rel=1e-6)


@given(features(), st.floats(0.1, 50), st.randoms(use_true_random=False))
def test_permuted_features_have_the_permuted_allocation(
    costs_and_rates: tuple[np.ndarray, np.ndarray], width: float, random: object
) -> None:
    cost, rate = costs_and_rates
    order = np.array(random.sample(range(len(cost)), len(cost)))
    direct, permuted = allocate(cost, rate, width), allocate(cost[order], rate[order], width)
    assert permuted.capacity == pytest.approx(direct.capacity[order])
    assert permuted.floor == pytest.approx(direct.floor)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30), st.floats(1e-4, 0.9), st.floats(0.1, 20))
def test_a_larger_cost_gets_no_less_capacity_at_equal_rates(cost: list[float], rate: float, width: float) -> None:
    capacity = allocate(sorted(cost), rate, width).capacity
    assert (np.diff(capacity) >= -1e-9).all()


def test_equal_features_get_equal_capacity() -> None:
    capacity = allocate(np.ones(30), 0.05, 4.3).capacity
    assert capacity == pytest.approx(np.full(30, 4.3 / 30))


def test_a_width_equal_to_the_number_of_features_loses_nothing() -> None:
    allocation = allocate([3.0, 1.0, 2.0], 0.5, 3)
    assert allocation.floor == 0
    assert allocation.capacity.tolist() == [1, 1, 1]
    assert allocation.kept.all()


@pytest.mark.parametrize(("width", "capacity", "kept"), [(0.5, 0.0, False), (1.8, 0.4, False), (2.2, 0.6, True)])
def test_features_of_cost_0_are_kept_only_with_half_a_dimension(width: float, capacity: float, kept: bool) -> None:
    """The other feature gets its dimension first; two of cost 0 share what is left."""
    allocation = allocate([1.0, 0.0, 0.0], 0.1, width)
    assert allocation.capacity[1:] == pytest.approx([capacity] * 2)
    assert allocation.kept.tolist() == [True, kept, kept]
    assert allocate([1.0, 0.0, 0.0], [0.1, 0.0, 0.1], 0.5).kept.tolist() == [True, False, False]


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 3.0), st.floats(0.01, 0.5))
@example(10447, 0.5, 0.5)  # the level is the gain of four segments of one feature
@settings(max_examples=20)
def test_level_of_many_gains_matches_a_full_sort(seed: int, spread: float, share: float) -> None:
    random = np.random.default_rng(seed)
    n, width = 3000, 3000 * share
    cost, rate = random.lognormal(0, spread, n), np.exp(random.uniform(np.log(1e-4), np.log(0.3), n))
    gains = loss_curve(width).gains(rate) * cost
    order = np.argsort(-gains, axis=None)
    sizes = np.cumsum(np.repeat(SEGMENTS, n)[order])
    level = gains.ravel()[order[np.searchsorted(sizes, width)]]
    capacity = allocate(cost, rate, width).capacity
    assert capacity.sum() == pytest.approx(width)
    rounding = 1 + 1e-12  # segments of one feature may have equal gains
    least, most = (SEGMENTS @ (gains > bound) for bound in (level * rounding, level / rounding))
    assert ((capacity > least - 1e-9) & (capacity < most + 1e-9)).all()
    assert (capacity - least > 1e-9).sum() <= 1  # the feature that is filled partly


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 5.0), st.floats(0.1, 4.0), st.booleans())
@settings(max_examples=20)
def test_grouped_features_have_the_floor_of_single_ones(
    seed: int, spread: float, rate_spread: float, related: bool
) -> None:
    random = np.random.default_rng(seed)
    rate = 1.0 / (1.0 + np.exp(random.normal(6.0, rate_spread, 20_000)))
    cost = random.lognormal(0, spread, len(rate)) * (rate if related else 1.0)
    cost[:50], cost[50] = 0.0, 1e16  # alive features of cost 0, and one that costs more than all others
    widths = np.array([1.0, 20.0, 400.0, 5000.0, 15_000.0, 20_000.0])
    groups = water_filling.group_similar(cost, rate)
    assert groups.n.sum() == len(cost)
    assert groups.cost @ groups.n == pytest.approx(cost.sum())
    single = water_filling.water_filling_floors(cost, rate, widths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(water_filling, "MAX_UNGROUPED", 1000)
        grouped = independent_floor(cost, rate, widths)
    assert grouped == pytest.approx(single, rel=1e-3, abs=1e-5 * np.sort(cost)[:-1].sum())


def test_groups_are_those_of_sorted_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    cost, rate = random.lognormal(0, 3, 5000), 1.0 / (1.0 + np.exp(random.normal(6.0, 2.0, 5000)))
    cost[::7] = 0.0
    log_odds = np.log(rate / (1 - rate))
    cost_bin = np.floor(np.log(np.where(cost > 0, cost, 1.0)) * water_filling.LOG_COST_BINS)
    pairs = list(zip(np.floor(log_odds * water_filling.LOG_ODDS_BINS), np.where(cost > 0, cost_bin, 1e9), strict=True))
    expected = [[i for i, pair in enumerate(pairs) if pair == one] for one in sorted(set(pairs))]
    for max_cells in (water_filling.MAX_CELLS, 1):
        monkeypatch.setattr(water_filling, "MAX_CELLS", max_cells)
        groups = water_filling.group_similar(cost, rate)
        assert groups.n.tolist() == [len(members) for members in expected]
        assert groups.cost == pytest.approx([cost[members].mean() for members in expected])
        mean_log_odds = np.array([log_odds[members].mean() for members in expected])
        assert groups.rate == pytest.approx(1.0 / (1.0 + np.exp(-mean_log_odds)))


def test_costs_of_all_magnitudes_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(water_filling, "MAX_UNGROUPED", 4)
    cost, rate = [1e-300, 1e300, 1e300, 0.0, 1.0, 5e-324], [1e-300, 1e-12, 1e-12, 0.5, 1 - 1e-12, 0.1]
    assert independent_floor(cost, rate, [6.0]).tolist() == [0.0]
    assert water_filling.group_similar(np.array(cost), np.array(rate)).n.tolist() == [1, 2, 1, 1, 1]


def test_one_width_takes_a_few_sorts() -> None:
    random = np.random.default_rng(0)
    cost, rate = random.lognormal(0, 3, 1_000_000), np.exp(random.uniform(np.log(1e-5), np.log(0.3), 1_000_000))

    def seconds(function: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
        return min(times)

    # It took 5 to 6 sorts on an AVX-512 machine. Grouping the features by sorting them took 12 to 16.
    assert seconds(lambda: independent_floor(cost, rate, [300])) < 10 * seconds(lambda: np.sort(cost))


def test_floors_match_the_allocations() -> None:
    cost, rate = [5.0, 0.0, 1.0, 2.0], [0.1, 0.0, 0.01, 0.2]
    floors = independent_floor(cost, rate, [0.5, 2, 7])
    assert floors == pytest.approx([allocate(cost, rate, width).floor for width in (0.5, 2, 7)])
    with pytest.raises(ValueError, match="widths must be a vector"):
        independent_floor(cost, rate, [0.0])


def test_a_million_features_take_linear_time() -> None:
    random = np.random.default_rng(0)
    cost, rate = random.lognormal(0, 3, 1_000_000), np.exp(random.uniform(np.log(1e-5), np.log(0.3), 1_000_000))
    started = time.process_time()
    allocation = allocate(cost, rate, 1024)
    assert allocation.capacity.sum() == pytest.approx(1024)
    assert time.process_time() - started < 20  # a guard against quadratic time, not a benchmark
