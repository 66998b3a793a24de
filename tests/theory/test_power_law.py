"""Tests of the power law of the sorted costs, on costs with and without a cliff."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.records import stats_of
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.theory import power_law
from tl_distill_floor.theory.power_law import PowerLaw, fit_power_law, power_law_with_intervals


def power_law_of(stats: FeatureStats, min_count: int = 1, n_bootstrap: int = 100) -> PowerLaw | None:
    """Fit the power law of measured statistics."""
    alive, blocks = stats.alive(min_count), stats.blocks
    sums = (blocks.cost[:, alive], blocks.firing_count[:, alive])
    return power_law_with_intervals(stats.cost[alive], *sums, min_count=min_count, n_bootstrap=n_bootstrap)


def test_intervals_do_not_depend_on_the_parts_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    counts = random.poisson(3.0, (8, 500))
    costs = counts * np.arange(1, 501) ** -1.2
    law = power_law_of(stats_of(None, blocks=(np.full(8, 100), counts, costs)), min_count=20)
    assert law is not None
    monkeypatch.setattr(power_law, "FEATURES_PER_PART", 7)
    in_parts = power_law_of(stats_of(None, blocks=(np.full(8, 100), counts, costs)), min_count=20)
    assert in_parts is not None
    assert in_parts.slope_interval == pytest.approx(law.slope_interval, rel=1e-9)


def test_features_of_cost_zero_are_left_out() -> None:
    random = np.random.default_rng(0)
    counts = random.poisson(3.0, (8, 500))
    costs = counts * np.arange(1, 501) ** -1.2
    stats = stats_of(None, blocks=(np.full(8, 100), counts, costs))
    alive = stats.alive(24)
    assert 100 < alive.sum() < 400
    law = power_law_with_intervals(
        np.where(alive, stats.cost, 0.0), stats.blocks.cost, stats.blocks.firing_count, min_count=24
    )
    only_alive = power_law_of(stats, min_count=24)
    assert law is not None
    assert only_alive is not None
    assert law.slope == only_alive.slope
    assert law.slope_interval == pytest.approx(only_alive.slope_interval, rel=1e-9)


def broken_power_law(n: int, cliff: float, slope: float, beyond: float) -> np.ndarray:
    """Return costs rank^-slope up to the cliff, which continue with rank^-beyond."""
    rank = np.arange(1, n + 1.0)
    return np.where(rank < cliff, rank**-slope, cliff**-slope * (rank / cliff) ** -beyond)


@pytest.mark.parametrize(
    ("n", "cliff", "slope", "beyond"),
    [(28_700, 3000, 0.8, 3.2), (28_700, 15_000, 0.5, 6.0), (2000, 400, 1.2, 3.0), (200, 50, 0.0, 2.0), (40, 20, 1, 5)],
)
def test_recovers_a_broken_power_law(n: int, cliff: float, slope: float, beyond: float) -> None:
    law = fit_power_law(broken_power_law(n, cliff, slope, beyond))
    assert law is not None
    assert law.cliff == pytest.approx(cliff, rel=0.02)
    assert law.slope == pytest.approx(slope, abs=0.01)
    assert law.slope_beyond == pytest.approx(beyond, rel=0.02)
    assert law.r2 > 0.999


@given(st.integers(30, 3000), st.floats(0.1, 0.9), st.floats(0.2, 1.5), st.floats(2.0, 4.0))
def test_recovers_random_broken_power_laws(n: int, position: float, slope: float, factor: float) -> None:
    """The cliff has 10 features on each side; near the edges, a straight fit may be good enough."""
    cliff = min(max(n**position, 11.0), n - 11.0)
    law = fit_power_law(broken_power_law(n, cliff, slope, factor * slope + 0.5))
    assert law is not None
    if law.cliff is None:
        assert law.r2 >= 0.99 or position > 0.8 or position < 0.2 or factor < 2.5
    else:
        assert law.cliff == pytest.approx(cliff, rel=0.05)
        assert law.slope == pytest.approx(slope, abs=0.02)


@pytest.mark.parametrize("n", [10, 50, 1000, 28_700])
@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0])
def test_a_pure_power_law_has_no_cliff(n: int, slope: float) -> None:
    law = fit_power_law(np.arange(1, n + 1.0) ** -slope)
    assert law is not None
    assert law.slope == pytest.approx(slope, abs=1e-9)
    assert (law.cliff, law.slope_beyond) == (None, None)
    assert law.r2 == pytest.approx(1.0)


@pytest.mark.parametrize("cost", [5.0, 123.456, 1 / 3, 1e-8])
@pytest.mark.parametrize("rounding", [0.0, 1e-15, 1e-12])
def test_equal_costs_have_no_cliff(cost: float, rounding: float) -> None:
    for n in (10, 30, 1000, 28_700):
        law = fit_power_law(cost * (1.0 + rounding * np.random.default_rng(n).standard_normal(n)))
        assert law is not None
        assert law.cliff is None
        assert str(law).startswith("cost ~ rank^-0.00; the top 20")


def test_noisy_power_laws_rarely_have_a_cliff() -> None:
    """Each cost has a random factor e^±0.5, which bends the end of the sorted costs down."""
    random = np.random.default_rng(0)
    rank = np.arange(1, 3001.0)
    laws = [fit_power_law(rank**-1 * np.exp(0.5 * random.standard_normal(3000))) for _ in range(50)]
    assert np.mean([law is not None and law.cliff is None for law in laws]) >= 0.9
    assert np.mean([law.slope for law in laws if law is not None]) == pytest.approx(1.0, abs=0.02)


def test_an_upward_bend_is_no_cliff() -> None:
    """Ranks 1 to 30 have the exponent 2, the other 970 the exponent 0.3."""
    law = fit_power_law(broken_power_law(1000, 30, 2.0, 0.3))
    assert law is not None
    assert law.cliff is None
    assert 0.3 < law.slope < 2.0


def test_finds_the_cliff_below_a_steep_top() -> None:
    """The ten largest costs fall with the exponent 1, which is no cliff; the cliff is at rank 1,000."""
    cost = broken_power_law(5000, 1000, 0.5, 4.0)
    cost[:10] *= (np.arange(1, 11) / 10.0) ** -0.5
    law = fit_power_law(cost)
    assert law is not None
    assert law.cliff == pytest.approx(1000, rel=0.25)


@given(st.floats(1e-200, 1e200), st.integers(0, 1000))
def test_fit_does_not_depend_on_scale_or_order(scale: float, seed: int) -> None:
    cost = broken_power_law(500, 100, 0.7, 3.0)
    law, expected = fit_power_law(scale * np.random.default_rng(seed).permutation(cost)), fit_power_law(cost)
    assert law is not None
    assert expected is not None
    for name in ("slope", "cliff", "slope_beyond", "top_share", "r2"):
        assert getattr(law, name) == pytest.approx(getattr(expected, name)), name


def test_top_share_by_hand() -> None:
    """Twenty features of cost 3 and forty of cost 1 give 60 of 100; twelve features give everything."""
    law, few = fit_power_law([3.0] * 20 + [1.0] * 40), fit_power_law(np.ones(12))
    assert law is not None
    assert few is not None
    assert law.top_share == pytest.approx(0.6)
    assert few.top_share == 1.0


def test_ignores_zero_costs_and_needs_ten_features() -> None:
    cost = broken_power_law(500, 100, 0.7, 3.0)
    assert fit_power_law([*cost, *[0.0] * 300]) == fit_power_law(cost)
    assert fit_power_law([*cost[:9], *[0.0] * 300]) is None
    assert fit_power_law([]) is None
    assert fit_power_law(cost[:10]) is not None


@pytest.mark.parametrize("cost", [[1.0, math.nan], [1.0, -1.0], [[1.0, 2.0]], [math.inf]])
def test_rejects_invalid_costs(cost: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        fit_power_law(cost)


def power_law_of_blocks(true_cost: np.ndarray, n_blocks: int, seed: int) -> PowerLaw | None:
    """Fit the power law of text whose block costs scatter around the true costs by 50 %."""
    random = np.random.default_rng(seed)
    noise = random.gamma(4.0, 0.25, size=(n_blocks, len(true_cost)))
    counts = random.poisson(5.0, size=noise.shape)
    return power_law_of(
        stats_of(None, blocks=(np.full(n_blocks, 100), counts, true_cost * noise * 100)), n_bootstrap=60
    )


def test_intervals_cover_the_true_values() -> None:
    """Of 48 intervals of 95 %, about 2 miss; fewer than 8 may."""
    true_cost, missed = broken_power_law(400, 80, 0.8, 3.0), np.zeros(2)
    for seed in range(48):
        law = power_law_of_blocks(true_cost, 24, seed)
        assert law is not None
        assert law.cliff is not None
        low, high = law.slope_interval
        missed[0] += not low <= 0.8 <= high
        low, high = law.cliff_interval
        assert law.cliff**2 == pytest.approx(low * high)
        missed[1] += not low <= 80 <= high
    assert (missed < 8).all(), missed


def test_slope_has_an_interval_without_a_cliff() -> None:
    law = power_law_of_blocks(np.arange(1, 401.0) ** -1, 24, 0)
    assert law is not None
    assert law.cliff is None
    low, high = law.slope_interval
    assert low < 1.0 < high
    assert high - low < 0.2
    assert np.isnan(law.cliff_interval).all()


def test_a_cliff_that_most_resamples_lack_has_no_interval() -> None:
    """A bend needs 20 features, and each of 4 blocks has 6 of the 24: only 9 % of the resamples have all blocks."""
    cost = broken_power_law(24, 12, 0.1, 8.0)
    blocks = np.stack([cost * (np.arange(24) % 4 == block) for block in range(4)])
    law = power_law_of(stats_of(None, blocks=(np.full(4, 100), (blocks > 0).astype(int), blocks)))
    assert law is not None
    assert law.cliff is not None
    assert np.isnan([*law.slope_interval, *law.cliff_interval]).all()


def test_more_text_gives_a_narrower_interval() -> None:
    few, many = (power_law_of_blocks(broken_power_law(400, 80, 0.8, 3.0), n, 0) for n in (8, 64))
    assert few is not None
    assert many is not None
    assert np.diff(many.slope_interval) < np.diff(few.slope_interval)


def test_one_block_gives_no_interval_and_equal_seeds_give_equal_fits() -> None:
    cost = broken_power_law(100, 30, 0.8, 3.0)
    one = power_law_of(stats_of(None, blocks=(np.array([1000]), np.full((1, 100), 10), cost[None])))
    assert one is not None
    assert np.isnan([*one.slope_interval, *one.cliff_interval]).all()
    assert power_law_of_blocks(cost, 8, 3) == power_law_of_blocks(cost, 8, 3)


def test_only_alive_features_count() -> None:
    cost = np.concatenate([broken_power_law(300, 60, 0.8, 3.0), np.full(50, 100.0)])
    counts = np.stack([np.where(np.arange(350) < 300, 5, 1)] * 4)
    stats = stats_of(None, blocks=(np.full(4, 100), counts, np.stack([cost] * 4) * 100))
    law = power_law_of(stats, min_count=10)
    assert law is not None
    assert law.cliff == pytest.approx(60, rel=0.02)


def test_str_is_one_line() -> None:
    law = PowerLaw(0.812, 412.3, 3.21, 0.312, 0.99, (0.79, 0.83), (380.0, 1450.4))
    assert str(law) == (
        "cost ~ rank^-0.81 (0.79 to 0.83) up to rank 412 (380 to 1,450), then ^-3.2; the top 20 have 31% of it"
    )
    assert str(PowerLaw(1.0, None, None, 0.5, 1.0)) == "cost ~ rank^-1.00; the top 20 have 50% of it"


def test_many_features_are_fast() -> None:
    random = np.random.default_rng(0)
    cost = broken_power_law(30_000, 3000, 0.8, 3.2) * random.gamma(4.0, 0.25, size=(64, 30_000))
    stats = stats_of(None, blocks=(np.full(64, 100), random.poisson(5.0, size=cost.shape), cost))
    start = time.perf_counter()
    power_law_of(stats)
    assert time.perf_counter() - start < 5.0  # 0.5 s on an idle machine
