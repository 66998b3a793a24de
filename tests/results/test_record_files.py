"""Tests that every record saves, loads and describes itself in one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.probes import probe_result, sparse_probes
from tests.helpers.records import stats_of
from tl_distill_floor import FloorPrediction, InputError, Plan, ProbeResult, Probes, StudentResult, floor_from_stats
from tl_distill_floor.distilling.planning.calibrate import calibrate
from tl_distill_floor.predicting.lost_features import lost_features, one_feature
from tl_distill_floor.results.contexts import FeatureContexts
from tl_distill_floor.results.lost_features import FeatureContext, LostFeatures, OneFeature
from tl_distill_floor.results.plan import Candidate, Limits
from tl_distill_floor.results.probes import separation
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss

COST = np.array([8.0, 4.0, 2.0, 1.0])


@pytest.fixture
def floor() -> FloorPrediction:
    """Return a prediction for four features, each with one context, without a simulation."""
    contexts = FeatureContexts.empty(len(COST))
    contexts.activation[:, 0], contexts.sequence[:, 0], contexts.window[:, 0] = 3.0, 0, 7
    contexts = contexts.with_promoted(np.full((len(COST), 1), 7, dtype=np.int32)).with_strings(lambda _: " snow")
    return floor_from_stats(stats_of(COST, rate=0.05, contexts=contexts), [1, 2, 4], steps=0)


@pytest.fixture
def simulation() -> Simulation:
    """Return losses of one student at two widths."""
    lost_cost = np.array([[0.5, 1.0, 2.0, 1.0], [0.0, 0.1, 0.4, 1.0]])
    losses = lost_cost.sum(1)[:, None]
    return Simulation(np.array([1, 2]), losses, losses, np.full(2, 0.05), lost_cost, losses, 100.0, steps=10)


@pytest.fixture
def student() -> StudentResult:
    """Return a result with two points of a learning curve."""
    return StudentResult("width8", "tiny", 8, 2, 100, (10, 20), (0.5, 0.4), 0.3, (0.05, 0.38), "under-trained", 64)


@pytest.fixture
def plan() -> Plan:
    """Return a plan without an interval."""
    return Plan(
        teacher="tiny", width=8, depth=2, teacher_depth=3, unit="nats", loss=0.25, upper_bound=None, calibrated=False,
        n_parameters=100, teacher_parameters=900, speed=1.5, features=60, kept=40, known=("text",), assumed=("C = 1",),
    )  # fmt: skip


def test_json_records_load_unchanged(
    floor: FloorPrediction, student: StudentResult, plan: Plan, probes: Probes, tmp_path: Path
) -> None:
    calibration = calibrate(floor, {1: 9.0, 2: 5.0, 4: 1.0})
    lost, feature = lost_features(floor, 1, top=2), one_feature(floor, 0, None)
    assert lost.shown[0].contexts == (FeatureContext(3.0, " snow" * 12, " snow", " snow" * 5),)
    probe = probe_result("student", 8, 0.7)
    names = ("calibration", "student", "plan", "probe", "probes", "lost", "feature", "sparse_probes")
    for record, name in zip(
        (calibration, student, plan, probe, probes, lost, feature, sparse_probes()), names, strict=True
    ):
        file = record.save(tmp_path / name)
        assert file == tmp_path / name / f"{name}.json"
        loaded = type(record).load(file.parent)
        if isinstance(record, StudentResult):
            assert loaded.path == str(file.parent)
            loaded = dataclasses.replace(loaded, path=None)
        assert loaded == record


def test_plans_of_older_files_load(plan: Plan, tmp_path: Path) -> None:
    """Files of version 0.1.0 have no rule, no limits, no memory and no candidates."""
    candidate = Candidate(8, 100, 200, None, 1.5, True, 0.25, None, None)
    full = dataclasses.replace(plan, rule="widest", limits=Limits(max_width=9), context=64, candidates=(candidate,))
    file = full.save(tmp_path)
    assert Plan.load(file) == full
    assert full.chosen == candidate
    stored = json.loads(file.read_text())
    new = ("rule", "limits", "memory_dtype", "context", "candidates")
    file.write_text(json.dumps({name: value for name, value in stored.items() if name not in new}))
    assert Plan.load(file) == plan
    assert plan.chosen is None


def test_array_records_load_unchanged(simulation: Simulation, tmp_path: Path) -> None:
    judged = dataclasses.replace(simulation, kl=simulation.floor, kl_reached=simulation.floor, kl_error=np.ones(2))
    tail = TailLoss(np.arange(2), np.array([2.0, 1.0]), np.array([[3.0], [1.0]]), np.array([1]), np.array([0]))
    for number, record in enumerate((simulation, judged, tail)):
        loaded = type(record).load(record.save(tmp_path / str(number)).parent)
        for field in dataclasses.fields(record):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(record, field.name))
    with pytest.raises(InputError, match="missing or not a complete simulation file"):
        Simulation.load(tmp_path / "2" / "tail.safetensors.none")


@pytest.mark.parametrize(
    ("record", "file", "command"),
    [
        (Plan, "plan.json", "tl-floor plan"),
        (ProbeResult, "probe.json", "tl-floor probe"),
        (LostFeatures, "lost.json", "tl-floor lost"),
        (OneFeature, "feature.json", "tl-floor lost --feature"),
    ],
)
def test_damaged_json_records_name_the_file_and_the_command(
    record: Any, file: str, command: str, tmp_path: Path
) -> None:
    for content in ("", "[]", '{"format": "tl-distill-floor/other", "version": 1}', json.dumps({"version": 1})):
        (tmp_path / file).write_text(content)
        with pytest.raises(InputError, match=file):
            record.load(tmp_path)
    (tmp_path / file).write_text(json.dumps({"format": f"tl-distill-floor/{record.KIND}", "version": 1}))
    with pytest.raises(InputError, match=f"run {command}"):
        record.load(tmp_path)


def test_records_describe_themselves_in_one_line(
    floor: FloorPrediction, simulation: Simulation, student: StudentResult, plan: Plan, probes: Probes
) -> None:
    tail = TailLoss(np.arange(2), np.array([2.0, 1.0]), np.array([[3.0], [1.0]]), np.array([1]), np.array([0]))
    calibration = calibrate(floor, {1: 9.0, 2: 5.0, 4: 1.0})
    expected = {
        floor: f"FloorPrediction(made, blocks.1.hook_resid_post: 4 features, d* = {floor.critical_width:.1f},"
        " widths 1 to 4, mse)",
        simulation: "Simulation(4 features, 2 widths 1 to 2, 1 seeds, 10 steps)",
        tail: "TailLoss(2 ranks up to 1, 1 sequences, 3 nats without features)",
    }
    for record, text in expected.items():
        assert repr(record) == text
    assert repr(plan) == "Plan(tiny: width 8, 2 of 3 layers, expected loss 0.25 nats)"
    assert repr(student) == (
        "StudentResult(width8 of tiny: width 8, 2 layers, loss 0.4 nats, floor 0.3, under-trained)"
    )
    assert repr(probes) == "Probes(made at blocks.1.hook_resid_post, rows: 4 results for genre)"
    assert repr(probes.features[0]).endswith("2 features, 1 of them expected to be kept, separation 1.000)")
    assert repr(probes.results[0]).startswith("ProbeResult(genre from teacher None at blocks.1.hook_resid_post:")
    assert repr(calibration).startswith("Calibration(made: loss = ")
    assert repr(lost_features(floor, 1, top=2)).startswith("LostFeatures(made, blocks.1.hook_resid_post: width 1 loses")
    assert repr(one_feature(floor, 0, None)).startswith("OneFeature(made, blocks.1.hook_resid_post: feature 0, rank 1")


def test_the_interval_of_an_older_file_is_widened(student: StudentResult, tmp_path: Path) -> None:
    """0.1 of the last loss, 0.4, is left by the fit, so that 0.3 to 0.033 may be left."""
    older = dataclasses.replace(student, interval=(0.29, 0.31))
    assert StudentResult.load(older.save(tmp_path)).interval == pytest.approx((0.1, 0.4 - 0.1 / 3))


def test_separation_is_nan_if_all_features_are_kept() -> None:
    assert np.isnan(separation((0.5, 0.4), (True, True)))
    assert separation((0.9, 0.5, 0.4, 0.2), (True, False, True, False)) == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": (0.5,)}, "one loss for each number of tokens"),
        ({"tokens": (), "losses": ()}, "one loss for each number of tokens"),
        ({"width": 0}, "must be at least 1"),
        ({"depth": 0}, "must be at least 1"),
        ({"n_parameters": 0}, "must be at least 1"),
        ({"tokens": (0, 20)}, "must be at least 1"),
        ({"floor": -0.1}, "losses of a student must be at least 0"),
        ({"losses": (0.5, -0.4)}, "losses of a student must be at least 0"),
    ],
)
def test_impossible_students_are_rejected(student: StudentResult, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(student, **change)
