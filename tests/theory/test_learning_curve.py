"""Tests of the fit of learning curves, on curves with a known floor."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from tests.helpers.learning_curves import POINTS, Kind, simulated_curve
from tl_distill_floor.theory.learning_curve import fit_learning_curve, has_diverged, with_misfit
from tl_distill_floor.theory.rate_schedule import tokens_by_rate

N_TOKENS = np.geomspace(2e4, 1e6, 24)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_interval_covers_the_floor_of_simulated_trainings(kind: Kind) -> None:
    """At least 54 of 60 intervals of the fit hold the true floor; some are not known, which counts, but not most."""
    covered = known = 0
    for seed in range(60):
        losses, floor = simulated_curve(kind, seed)
        fit = fit_learning_curve(POINTS * 4096, losses)
        covered += fit.fit_interval[0] - 1e-9 <= floor <= fit.fit_interval[1] + 1e-9
        known += fit.interval != (0.0, losses[-1])
    assert covered >= 54
    assert known >= 30


@given(st.floats(0.05, 2.0), st.floats(0.02, 1.0), st.floats(0.2, 2.0))
def test_interval_covers_the_floor_of_curves_without_noise(floor: float, amplitude: float, exponent: float) -> None:
    losses = floor + amplitude * (N_TOKENS / N_TOKENS[-1]) ** -exponent
    fit = fit_learning_curve(N_TOKENS, losses)
    low, high = fit.fit_interval
    assert fit.interval[0] <= low <= fit.floor <= high <= fit.interval[1]
    assert low - 1e-9 <= floor <= high + 1e-9
    if floor > losses[-1] / 2.5:
        assert fit.floor == pytest.approx(floor, abs=0.1 * amplitude)


def test_floor_below_a_third_of_the_last_loss_is_not_known() -> None:
    """The curve ends at 1.05, and its floor is 0.05."""
    losses = 0.05 + (N_TOKENS / N_TOKENS[-1]) ** -0.5
    fit = fit_learning_curve(N_TOKENS, losses)
    assert (fit.floor, fit.interval, fit.status) == (losses[-1], (0.0, losses[-1]), "under-trained")


def test_decay_of_the_learning_rate_does_not_hide_either_floor() -> None:
    """Without the decay the curve tends to 0.5; the decay lowers its end by 4 %."""
    losses = 0.5 + 0.1 * (N_TOKENS / N_TOKENS[-1]) ** -0.8
    losses *= 1 - 0.04 * np.clip((N_TOKENS / N_TOKENS[-1] - 0.8) / 0.2, 0, 1)
    low, high = fit_learning_curve(N_TOKENS, losses).fit_interval
    assert low < 0.5 * 0.96
    assert high > 0.5


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_interval_covers_the_floor_of_noisy_curves(exponent: float) -> None:
    """Of 60 intervals of 95 %, about 3 miss the floor; at most 6 may, also for a flat curve."""
    missed = 0
    for seed in range(60):
        noise = 1 + np.random.default_rng(seed).normal(0, 0.005, len(N_TOKENS))
        falling = 0.2 * (N_TOKENS / N_TOKENS[-1]) ** -exponent if exponent else 0.0
        fit = fit_learning_curve(N_TOKENS, (0.5 + falling) * noise)
        missed += not fit.fit_interval[0] <= 0.5 <= fit.fit_interval[1]
    assert missed <= 6


def test_what_is_left_is_known_within_a_factor_of_three() -> None:
    """The fit leaves 0.3 ± 0.02 below a last loss of 1, so that 0.1 to 0.9 may be left."""
    assert with_misfit((0.68, 0.72), 0.7, 1.0) == pytest.approx((0.1, 0.9))
    assert with_misfit((0.05, 0.95), 0.7, 1.0) == pytest.approx((0.05, 0.95))
    assert with_misfit((0.38, 0.42), 0.4, 1.0) == pytest.approx((0.0, 0.8))


def test_interval_holds_the_floor_of_a_curve_that_slows_down() -> None:
    """The slow power law of this curve shows only at its end, so that a fit ends too high; its own interval is sure."""
    losses = 0.5 + 0.05 * (N_TOKENS / N_TOKENS[-1]) ** -1.2 + 0.05 * (N_TOKENS / N_TOKENS[-1]) ** -0.2
    fit = fit_learning_curve(N_TOKENS, losses)
    assert not fit.fit_interval[0] <= 0.5 <= fit.fit_interval[1]
    assert fit.interval[0] <= 0.5 <= fit.interval[1]


def test_status_of_each_kind_of_curve() -> None:
    flat = 0.5 + 1e-3 * (N_TOKENS / N_TOKENS[-1]) ** -1.5
    falling = 0.5 + 1.0 * (N_TOKENS / N_TOKENS[-1]) ** -0.3
    rising = np.append(flat[:-1], 0.9)
    assert [fit_learning_curve(N_TOKENS, curve).status for curve in (flat, falling, rising)] == [
        "saturated", "under-trained", "diverged",
    ]  # fmt: skip
    assert fit_learning_curve(N_TOKENS, np.append(flat[:-1], np.nan)).status == "diverged"
    assert fit_learning_curve([1, 2, 3], [3.0, 2.0, 1.0]) == fit_learning_curve([3], [1.0])
    assert fit_learning_curve([3], [1.0]).status == "under-trained"
    # Flat, but over less than a factor of ten in tokens, or with too few points.
    assert fit_learning_curve(N_TOKENS[10:], flat[10:]).status == "under-trained"
    assert fit_learning_curve(N_TOKENS[::6], flat[::6]).status == "under-trained"


@pytest.mark.parametrize(("noise", "n_points"), [(0.02, 24), (0.05, 100), (0.1, 200)])
def test_noise_is_not_divergence_and_a_rise_is(noise: float, n_points: int) -> None:
    """The lowest of 100 losses with 5 % of noise is 12 % below the curve, which falls; or rises by half at its end."""
    share, diverged, rises = np.linspace(1, n_points, n_points) / n_points, 0, 0
    for seed in range(100):
        losses = (0.5 + 0.1 * share**-0.5) * np.exp(np.random.default_rng(seed).normal(0, noise, n_points))
        diverged += has_diverged(losses)
        rises += has_diverged(losses * (1 + 0.5 * np.clip((share - 0.7) / 0.3, 0, 1)))
    assert diverged <= 3
    assert rises >= 90


@pytest.mark.parametrize("n_points", [24, 200, 2000])
@pytest.mark.parametrize("kind", ["alike", "heavy tails"])
def test_noise_of_logs_is_not_divergence(kind: str, n_points: int) -> None:
    """Averages of a log have noise that is alike in neighbours; single batches have a few losses far from others."""
    share, diverged, rises = np.arange(1, n_points + 1) / n_points, 0, 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        white = random.normal(0, 0.1 * math.sqrt(1 - 0.9**2), n_points + 50)
        alike = lfilter([1.0], [1.0, -0.9], white)[50:]  # standard deviation 0.1, correlation 0.9
        noise = alike if kind == "alike" else 0.06 * random.standard_t(3, n_points)
        losses = (0.5 + 0.1 * share**-0.5) * np.exp(noise)
        diverged += has_diverged(losses)
        rises += has_diverged(losses * (1 + 2.0 * np.clip((share - 0.8) / 0.2, 0, 1)))
    assert diverged <= 8
    assert rises >= 80


def test_ignores_the_warm_up() -> None:
    """Points before a tenth of the tokens do not change the fit."""
    curve = 0.5 + 0.1 * (N_TOKENS / N_TOKENS[-1]) ** -1.0
    noisy = np.where(N_TOKENS < 1e5, 9.0, curve)
    assert fit_learning_curve(N_TOKENS, noisy) == fit_learning_curve(N_TOKENS, curve)


def test_rounding_is_not_divergence() -> None:
    fit = fit_learning_curve(N_TOKENS, np.where(np.arange(len(N_TOKENS)) % 2, 4e-8, 1e-9))
    assert fit.status == "saturated"
    assert fit.interval[0] == 0.0
    assert fit.floor <= fit.interval[1] <= 1e-6
    assert fit_learning_curve(N_TOKENS, np.linspace(1e-9, 1e-3, len(N_TOKENS))).status == "diverged"


def test_tokens_count_by_their_share_of_the_highest_rate() -> None:
    """The rate falls from 2 to 0 over 100 tokens, so those of the second half count a quarter of the first half's."""
    np.testing.assert_allclose(tokens_by_rate([10, 50, 100], [2.0, 2.0, 0.0]), [10, 50, 75])
    np.testing.assert_allclose(tokens_by_rate([10, 50], [0.0, 0.0]), [10, 50])


def test_constant_rates_and_a_decay_in_the_last_fifth_change_nothing() -> None:
    losses, _ = simulated_curve("decay", 3)
    without = fit_learning_curve(N_TOKENS, losses)
    share = N_TOKENS / N_TOKENS[-1]
    for rates in (np.full(24, 3e-3), np.minimum(1.0, (1 - share) / 0.2), np.minimum(1.0, share / 0.02)):
        assert fit_learning_curve(N_TOKENS, losses, rates) == without
    assert fit_learning_curve(N_TOKENS, losses, 1 - share) != without


def test_noise_of_the_learning_rate_is_taken_out() -> None:
    """The curve tends to 0.3, and a linear decay to 0 takes away 0.05 nats that the highest rate adds."""
    share = N_TOKENS / N_TOKENS[-1]
    trained = share - share**2 / 2  # integral of the rate
    losses = 0.3 + 0.1 * (trained / trained[-1]) ** -0.8 + 0.05 * (1 - share)
    fit = fit_learning_curve(N_TOKENS, losses, 1 - share)
    assert fit.floor == pytest.approx(0.3, abs=0.01)
    assert fit.interval[0] <= 0.3 <= fit.interval[1]
    assert fit.exponent == pytest.approx(0.8, abs=0.1)


def test_rejects_different_numbers_of_losses_and_tokens() -> None:
    with pytest.raises(ValueError, match="one loss per number of tokens"):
        fit_learning_curve([1, 2], [1.0])
    with pytest.raises(ValueError, match="one learning rate per number of tokens"):
        fit_learning_curve([1, 2], [1.0, 0.9], [1.0])
