"""Tests of how much of a loss more tokens would remove, on curves with a known end."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_distill_floor.theory import remaining_loss as module
from tl_distill_floor.theory.remaining_loss import average_in_bins, remaining_loss

N_TOKENS = np.geomspace(2e4, 1e6, 24)


def curve(left: float, *exponents: float, reached: float = 0.8) -> np.ndarray:
    """Return losses that end at `reached`, of which a share `left` is shared by power laws with some exponents."""
    powers = [(N_TOKENS / N_TOKENS[-1]) ** -exponent for exponent in exponents]
    losses: np.ndarray = reached * (1 - left + left * np.mean(powers, 0))
    return losses


@pytest.mark.parametrize(("left", "exponent"), [(0.02, 0.8), (0.05, 0.4), (0.2, 0.6), (0.5, 0.3)])
def test_interval_holds_what_is_left(left: float, exponent: float) -> None:
    remaining = remaining_loss(N_TOKENS, curve(left, exponent))
    assert remaining is not None
    assert remaining.quantile(0.025) <= left <= remaining.quantile(0.975)
    assert (remaining.probability_above(0.1) > 0.5) == (left > 0.1)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.08])
def test_interval_of_the_end_holds_it_if_the_last_loss_is_noisy(noise: float) -> None:
    """Of 60 intervals of 95 %, at least 52 hold the end; without the error of the last loss 43 to 47 would."""
    covered, share = 0, np.arange(1, 101) / 100
    for seed in range(60):
        random = np.random.default_rng(seed)
        left = 10 ** random.uniform(-2, -0.1)
        losses = (1 - left + left * share ** -random.uniform(0.3, 1.2)) * (1 + noise * random.standard_normal(100))
        remaining = remaining_loss(share * 1e6, losses)
        assert remaining is not None
        low, high = remaining.end_interval()
        assert low <= 1 - remaining.quantile(0.5) <= high
        covered += losses[-1] * low - 1e-9 <= 1 - left <= losses[-1] * high + 1e-9
    assert covered >= 52


def test_without_noise_the_interval_of_the_end_is_that_of_what_is_left() -> None:
    remaining = remaining_loss(N_TOKENS, curve(0.2, 0.6))
    assert remaining is not None
    exact = dataclasses.replace(remaining, noise=0.0)
    assert exact.end_interval(0.8) == pytest.approx((1 - exact.quantile(0.9), 1 - exact.quantile(0.1)), abs=2e-3)


def test_interval_holds_the_slow_part_of_two_power_laws() -> None:
    """A single power law through this curve ends too early."""
    remaining = remaining_loss(N_TOKENS, curve(0.2, 1.2, 0.3))
    assert remaining is not None
    assert remaining.quantile(0.025) <= 0.2 <= remaining.quantile(0.975)


def test_flat_curve_has_nothing_left_and_steep_one_is_limited_by_the_bound() -> None:
    flat = remaining_loss(N_TOKENS, np.full(24, 0.3))
    assert flat is not None
    assert flat.quantile(0.975) < 0.05
    steep = remaining_loss(N_TOKENS, curve(1.0, 0.8), bound=0.6)
    assert steep is not None
    assert steep.quantile(1.0) == pytest.approx(0.25)  # 1 − 0.6 / 0.8
    assert steep.quantile(0.5) > 0.24
    assert steep.probability_above(0.25) < 1e-9


def test_half_of_what_is_left_is_gained_after_a_known_factor() -> None:
    """With exponent b it is 2^(1/b). With b and 2b it is φ^(1/b): y = x^-b solves y + y² = 1, so 1 / y = φ."""
    golden = (1 + math.sqrt(5)) / 2
    np.testing.assert_allclose(module._half_factors(1.0), 2 ** (1 / module.EXPONENTS), rtol=1e-9)
    np.testing.assert_allclose(module._half_factors(2.0), golden ** (1 / module.EXPONENTS), rtol=1e-9)
    remaining = remaining_loss(N_TOKENS, curve(0.3, 0.5))
    assert remaining is not None
    assert 3.0 < remaining.half_factor < 7.0  # 2^(1/0.5) = 4


def test_agrees_with_sums_over_a_grid_of_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The integrals over A and L∞ are replaced by sums over a grid."""
    exponents = np.array([0.3, 0.5, 0.9])
    monkeypatch.setattr(module, "EXPONENTS", exponents)
    monkeypatch.setattr(module, "SHIFTS", (0.0,))
    monkeypatch.setattr(module, "RATIOS", {1.0: 1.0})
    random = np.random.default_rng(0)
    losses = curve(0.3, 0.5) * (1 + 0.01 * random.standard_normal(24))
    remaining = remaining_loss(N_TOKENS, losses)
    assert remaining is not None

    share = N_TOKENS / N_TOKENS[-1]
    used = (share >= 0.1) & (share <= 0.8)
    x, y = share[used], losses[used]
    amplitude, floor = np.linspace(0, losses[-1], 601), np.linspace(-1.0, 1.5, 601)
    errors = [
        (((floor[:, None, None] + amplitude[:, None] * x**-b) / y - 1.0) ** 2).sum(-1) for b in exponents
    ]  # each [floor, amplitude]
    least = min(np.linalg.lstsq(np.stack([1 / y, x**-b / y], 1), np.ones(len(y)))[1][0] for b in exponents)
    variance = max(least / (len(y) - 4), module.MISFIT**2)
    prior = np.exp(-((np.log(exponents / 0.5) / 0.6) ** 2) / 2)
    weight = sum(p * np.exp(-(e - least) / (2 * variance)).sum(0) for p, e in zip(prior, errors, strict=True))
    cumulative = np.cumsum(weight) / weight.sum()
    for probability in (0.025, 0.25, 0.5, 0.75, 0.975):
        by_grid = np.interp(probability, cumulative, amplitude) / losses[-1]
        assert remaining.quantile(probability) == pytest.approx(by_grid, abs=0.005)


def test_errors_of_floating_point_may_be_raised() -> None:
    losses = curve(0.2, 0.6)
    expected = remaining_loss(N_TOKENS, losses)
    with np.errstate(all="raise"):
        remaining = remaining_loss(N_TOKENS, losses)
    assert remaining is not None
    assert expected is not None
    assert remaining.end_interval() == expected.end_interval()


def test_short_curves_are_not_known() -> None:
    losses = curve(0.2, 0.5)
    assert remaining_loss(N_TOKENS[::4], losses[::4]) is None  # 2 points between 10 % and 80 %
    assert remaining_loss(N_TOKENS[-7:], losses[-7:]) is None  # a factor of 2.4
    assert remaining_loss(N_TOKENS, losses, bound=0.9) is None  # below the bound
    assert remaining_loss([1.0], [0.5]) is None


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.0, 0.9))
def test_is_a_distribution_between_zero_and_the_bound(seed: int, share_of_bound: float) -> None:
    random = np.random.default_rng(seed)
    losses = random.uniform(0.1, 3.0, 24)
    remaining = remaining_loss(N_TOKENS, losses, share_of_bound * losses[-1])
    assert remaining is not None
    assert (np.diff(remaining.cumulative) >= -1e-12).all()
    assert remaining.cumulative[-1] == pytest.approx(1.0)
    assert 0 <= remaining.quantile(0.5) <= 1 - share_of_bound + 1e-9
    assert remaining.half_factor > 1


def test_averages_in_bins_of_equal_width_in_the_logarithm() -> None:
    """Bins of 1 to 10 and 10 to 100 tokens hold 3 and 2 points."""
    tokens, losses = average_in_bins([1, 2, 3, 50, 100], [3.0, 2.0, 1.0, 0.6, 0.4], n_bins=2)
    np.testing.assert_allclose(tokens, [2, 75])
    np.testing.assert_allclose(losses, [2.0, 0.5])
    unchanged = average_in_bins([1, 2], [3.0, 2.0], n_bins=2)
    np.testing.assert_array_equal(unchanged, ([1, 2], [3.0, 2.0]))
