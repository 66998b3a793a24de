"""Tests of `simulated` in a prediction: interpolation, structure gain, kept features and files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.records import stats_of
from tl_distill_floor import InputError, allocate, floor_from_stats
from tl_distill_floor.display.as_json import floor_json
from tl_distill_floor.distilling.planning.plan import expected_loss
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.simulation import Simulation

COST = np.array([8.0, 4.0, 2.0, 1.0])


def simulation(lost: list[list[float]], widths: tuple[int, ...] = (1, 2)) -> Simulation:
    """Return a simulation with the given lost costs [width, feature]."""
    cost = np.array(lost)
    floor = cost.sum(1)[:, None]
    return Simulation(np.array(widths), floor, floor, np.full(len(lost), 0.05), cost, floor, 100.0, steps=10)


@pytest.fixture
def floor() -> FloorPrediction:
    """Return a prediction with hand-written simulated floors."""
    # Width 1 loses 0.5 + 1 + 2 + 1 = 4.5, width 2 loses 0 + 0.1 + 0.4 + 1 = 1.5.
    simulated = simulation([[0.5, 1.0, 2.0, 1.0], [0.0, 0.1, 0.4, 1.0]])
    return floor_from_stats(stats_of(COST, rate=0.05), [1, 2, 3, 4], simulation=simulated)


def test_feature_floor_is_simulated_where_it_exists(floor: FloorPrediction) -> None:
    assert floor.simulated is not None
    assert floor.feature_floor is floor.simulated
    assert floor.simulated[:2].tolist() == pytest.approx([4.5, 1.5])
    assert floor.sampling_interval[0, 0] < 4.5 < floor.sampling_interval[0, 1]


def test_structure_gain_by_hand_and_beyond_the_trained_widths(
    floor: FloorPrediction,
) -> None:
    independent = [allocate(COST, 0.05, width).floor for width in (1, 2, 3)]
    gains = [independent[0] / 4.5, independent[1] / 1.5, independent[1] / 1.5]  # a gain that falls does not go on
    assert floor.structure_gain is not None
    assert floor.structure_gain[:3].tolist() == pytest.approx(gains)
    assert floor.simulated is not None
    assert floor.simulated[2] == pytest.approx(independent[2] / gains[2])
    assert floor.simulated[3] == 0  # as wide as the number of features
    assert np.isnan(floor.structure_gain[3])


def test_above_the_simulated_widths_the_gain_continues_the_power_law_of_the_last_two() -> None:
    """The gain is 2 at width 1 and 4 at width 2, so 6 at width 3."""
    lost = [[allocate(COST, 0.3, width).floor / gain / 4] * 4 for width, gain in ((1, 2), (2, 4))]
    floor = floor_from_stats(stats_of(COST, rate=0.3), [1, 2, 3], simulation=simulation(lost))
    assert floor.structure_gain.tolist() == pytest.approx([2.0, 4.0, 6.0])
    assert floor.simulated[2] == pytest.approx(floor.independent[2] / 6)


def test_below_the_simulated_widths_the_gain_falls_to_that_of_width_0() -> None:
    """At width 2 the gain is that of features that fire together; at width 0 every feature loses its variance."""
    lost = [0.02, 0.04, 0.08, 0.06]
    floor = floor_from_stats(stats_of(COST, rate=0.3), [1, 2], simulation=simulation([lost], widths=(2,)))
    gain = allocate(COST, 0.3, 2).floor / 0.2
    assert gain > 1
    assert floor.structure_gain.tolist() == pytest.approx([(gain + 1) / 2, gain])
    assert floor.floor_at(1e-6) == pytest.approx(allocate(COST, 0.3, 1e-6).floor, rel=1e-5)
    variance, share = floor.stats.variance_share, floor.lost_share(1)
    assert share / share[3] == pytest.approx(np.sqrt(variance * lost / COST) / np.sqrt(variance[3] * 0.06))
    assert share @ COST == pytest.approx(floor.floor_at(1))
    nothing_kept = floor.lost_share(1e-6)
    assert nothing_kept / nothing_kept[3] == pytest.approx(variance / variance[3], rel=1e-4)


def test_below_the_simulated_widths_nothing_is_gained_if_training_lost_more_than_independent_features() -> None:
    """A narrower student loses what independent features lose, but no less than the narrowest simulated one."""
    one, two = (allocate(COST, 0.3, width).floor for width in (1, 2))
    lost = [two / 0.9 / 4] * 4
    floor = floor_from_stats(stats_of(COST, rate=0.3), [1, 2], simulation=simulation([lost], widths=(2,)))
    assert floor.simulated.tolist() == pytest.approx([one, two / 0.9])
    floor = floor_from_stats(stats_of(COST, rate=0.3), [1, 2], simulation=simulation([list(COST)], widths=(2,)))
    assert one < COST.sum()
    assert floor.simulated.tolist() == pytest.approx([COST.sum()] * 2)


def test_interpolates_logarithms_and_never_rises_with_the_width() -> None:
    # Floors 8, 2, 4 and 1 at widths 1, 2, 4 and 8: the 4 counts as 2, since a wider student can do what a narrower can.
    simulated = simulation([[floor / 10] * 10 for floor in (8.0, 2.0, 4.0, 1.0)], widths=(1, 2, 4, 8))
    floor = floor_from_stats(stats_of(np.ones(10)), [1, 2, 3, 4, 6, 8, 9, 12], simulation=simulated)
    floors = floor.simulated
    assert floors is not None
    assert floors[[0, 1, 3, 5]] == pytest.approx([8, 2, 2, 1])
    assert floors[2] == pytest.approx(2)
    assert 1 < floors[4] < 2
    independent = [allocate(np.ones(10), 0.1, width).floor for width in (8, 9)]
    assert floors[6] == pytest.approx(independent[1] / independent[0])  # the gain of width 8, whose floor is 1
    assert floors[7] == 0
    assert floor.width_for(2.0) == 2
    one_width = simulation([[0.2] * 10], widths=(2,))
    floor = floor_from_stats(stats_of(np.ones(10)), [2, 3], simulation=one_width)
    assert floor.simulated[0] == pytest.approx(2)


def test_a_simulated_floor_of_0_stays_near_0() -> None:
    simulated = simulation([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    floor = floor_from_stats(stats_of(COST, rate=0.05), [1, 2], simulation=simulated)
    assert floor.simulated[1] < 1e-6 < floor.independent[1]
    falls_steeply = simulation([[0.1] * 400, [0.0] * 400], widths=(30, 31))
    assert floor_from_stats(stats_of(np.ones(400)), [30, 31], simulation=falls_steeply).floor_at(399) == 0.0


def test_features_of_cost_0_are_lost_as_others_that_fire_as_rarely() -> None:
    """They do not fire where costs were measured. The last two fire on 3 tokens, as rarely as the third."""
    cost, counts = np.array([8.0, 4.0, 1.0, 0.0, 0.0]), np.array([50, 50, 3, 3, 2])
    stats = stats_of(None, blocks=(np.array([1000]), counts[None], 1000 * cost[None]))
    simulated = simulation([[2.0, 3.0, 0.75, 0.0, 0.0], [0.4, 0.4, 0.1, 0.0, 0.0]])
    floor = floor_from_stats(stats, [1, 2], simulation=simulated)
    assert floor.lost_share(1) == pytest.approx([0.25, 0.75, 0.75, 0.75, 0.75])
    assert floor.lost_share(2) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1])
    assert floor.lost(1).tolist() == [1, 2, 3, 4]
    assert floor.kept(2).all()
    independent = floor_from_stats(stats, [1], steps=0)
    assert independent.lost_share(1)[3:].tolist() == [1.0, 1.0]
    assert not independent.kept(1)[3:].any()


def test_warns_if_simulated_is_above_independent() -> None:
    simulated = simulation([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]], widths=(1, 3))
    assert allocate(COST, 0.05, 1).floor > 3.0 > 2 * allocate(COST, 0.05, 3).floor
    floor = floor_from_stats(stats_of(COST, rate=0.05), [1, 3], simulation=simulated)
    assert any("simulated is above independent at width 3:" in warning for warning in floor.warnings)


def test_error_of_the_simulation_widens_the_interval() -> None:
    narrow = simulation([[0.5, 1.0, 2.0, 1.0]], widths=(1,))
    wide = dataclasses.replace(narrow, standard_error=np.array([1.0]))
    floors = [floor_from_stats(stats_of(COST, rate=0.05), [1], simulation=s) for s in (narrow, wide)]
    bounds = [floor.sampling_interval[0] for floor in floors]
    # The two blocks are equal, so there is no other error: 1.96 standard errors of 0.05 and of 1.
    assert (bounds[0][1] - bounds[0][0]) / 2 == pytest.approx(1.96 * 0.05)
    assert (bounds[1][1] - bounds[1][0]) / 2 == pytest.approx(1.96 * 1.0)


def test_errors_are_extrapolated_as_the_floors_are(floor: FloorPrediction) -> None:
    """Widths 1 and 2 lose 4.5 and 1.5 with errors of 0.05; a student of width 4 holds all four features."""
    errors = floor.measured_error()
    assert errors[:2] == pytest.approx([0.05, 0.05])
    assert errors[2] == pytest.approx(0.05 * floor.simulated[2] / 1.5)
    assert (floor.simulated[3], errors[3], floor.sampling_interval[3].tolist()) == (0.0, 0.0, [0.0, 0.0])


@pytest.mark.parametrize("error", [0.05, 1.0])
def test_the_bound_of_a_plan_is_relative_to_the_floor(error: float) -> None:
    """Width 2 loses 1.5 ± error, so the 90 % bound is 1.5 + 1.28 errors; width 4 loses nothing."""
    simulated = simulation([[0.5, 1.0, 2.0, 1.0], [0.0, 0.1, 0.4, 1.0]])
    simulated = dataclasses.replace(simulated, standard_error=np.full(2, error))
    floor = floor_from_stats(stats_of(COST, rate=0.05), [1, 2, 4], simulation=simulated)
    assert expected_loss(floor, 2).high == pytest.approx(1.5 + 1.2816 * error)
    loss = expected_loss(floor, 3)
    assert loss.high == pytest.approx(loss.value * (1 + 1.2816 * error / 1.5))
    assert expected_loss(floor, 4) == (0.0, 0.0, 0.0)


def test_kept_features_lose_at_most_half_of_their_variance(floor: FloorPrediction) -> None:
    # Var / E[a²] is 1 − count · mean²-share: chosen such that it is 1 − 50 / (1000 · cost) · ..., near 1.
    assert floor.kept(1).tolist() == [True, True, False, False]
    assert floor.lost(1).tolist() == [2, 3]
    assert floor.kept(2).tolist() == [True, True, True, False]
    assert floor.lost(4).tolist() == []
    assert floor.lost_share(1) @ COST == pytest.approx(4.5)


def test_width_for_follows_the_feature_floor(floor: FloorPrediction) -> None:
    assert floor.width_for(4.5) == 1
    assert floor.width_for(4.4) == 2
    assert floor.width_for(0) == 4


def test_can_be_saved_and_loaded(floor: FloorPrediction, tmp_path: Path) -> None:
    floor.save(tmp_path)
    loaded = FloorPrediction.load(tmp_path)
    assert loaded.simulation is not None
    assert loaded.simulation.lost_cost.tolist() == floor.simulation.lost_cost.tolist()
    assert loaded.feature_floor.tolist() == floor.feature_floor.tolist()
    simulation([[1.0], [0.5]]).save(tmp_path)
    with pytest.raises(InputError, match="another number of features"):
        FloorPrediction.load(tmp_path)
    simulation([[0.5, 1.0, 2.0, 1.0], [0.0, 0.1, 0.4, 0.5]]).save(tmp_path)
    with pytest.raises(InputError, match=r"not computed from the simulated.safetensors in the same directory"):
        FloorPrediction.load(tmp_path)
    (tmp_path / "simulated.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"simulated.safetensors is missing or not a complete simulation file"):
        FloorPrediction.load(tmp_path)


def test_appears_in_json_tables_and_figures(floor: FloorPrediction) -> None:
    shown = floor_json(floor)
    assert shown["simulated"] == shown["feature_floor"]
    assert shown["structure_gain"][:3] == pytest.approx(floor.structure_gain[:3].tolist())
    assert shown["structure_gain"][3] is None  # 0 over 0
    for heading in ("of all", "gain"):
        assert f'<th scope="col" class="number">{heading}</th>' in floor._repr_html_()
    assert "Above width 2," in floor._repr_html_()  # the teacher has 16 dimensions
    assert [trace.name for trace in floor.plot().data][-1] == "simulated (feature floor)"


def test_rejects_invalid_simulations() -> None:
    for widths in ((2, 1), (0, 1)):
        with pytest.raises(ValueError, match="rising widths"):
            simulation([[1.0], [1.0]], widths=widths)
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        simulation([[-1.0]], widths=(1,))
    with pytest.raises(ValueError, match="another number of features"):
        floor_from_stats(stats_of(COST, rate=0.05), [1], simulation=simulation([[1.0]], widths=(1,)))


@pytest.mark.parametrize(("n_cost_tokens", "expected"), [(100, [1.875, 0.75, 0.0]), (50, [3.6, 2.0, 0.0])])
def test_costs_that_were_measured_on_few_tokens_are_shrunk(n_cost_tokens: int, expected: list[float]) -> None:
    """All features together cost 1.5 (3) per square, the first alone 2 (4), which counts for 12/16 (6/10)."""
    blocks = np.array([100]), np.array([[12, 4, 0]]), np.array([[24.0, 0.0, 0.0]])
    stats = stats_of(None, blocks=blocks, sum_act_sq=np.array([12.0, 4.0, 0.0]))
    sums = dataclasses.replace(stats.blocks, n_cost_tokens=np.array([n_cost_tokens]))
    stats = dataclasses.replace(stats, n_cost_tokens=n_cost_tokens, blocks=sums)
    np.testing.assert_allclose(stats.error_weight, expected)


def test_weights_of_squared_errors_are_one() -> None:
    """The costs of `energy` are squared errors already, however rarely a feature fires."""
    counts, norm = np.array([1, 5, 900]), np.array([1.0, 0.5, 2.0])
    square = counts * np.array([0.3, 2.0, 1.0])
    stats = stats_of(None, blocks=(np.array([1000]), counts[None], (square * norm**2)[None]))
    stats = dataclasses.replace(stats, sum_act_sq=square, decoder_norm=norm)
    np.testing.assert_allclose(stats.error_weight, 1.0)
