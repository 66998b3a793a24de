"""Predictions of teachers that were measured without an SAE."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.records import made_head_floor, stats_of
from tl_distill_floor import (
    FeatureFloorPrediction,
    FloorPrediction,
    HeadFloor,
    InputError,
    StudentLoss,
    calibrate,
    floor_from_stats,
    lost_features,
    one_feature,
    predict_floor,
)
from tl_distill_floor.display.as_json import floor_json
from tl_distill_floor.display.report import write_report
from tl_distill_floor.distilling.planning.plan import expected_loss

WIDTHS = (4, 8, 16, 32)
FEATURE_FIELDS = ("stats", "n_features", "alpha", "capacity", "critical_width", "theorem", "independent", "simulated",
    "feature_floor", "sampling_interval", "theorem_interval",
    "independent_interval", "structure_gain", "simulation", "tail", "power_law")  # fmt: skip


@pytest.fixture(scope="module")
def head() -> HeadFloor:
    """Return a head floor of a teacher of 64 dimensions."""
    return made_head_floor(widths=WIDTHS)


@pytest.fixture(scope="module")
def floor(head: HeadFloor) -> FloorPrediction:
    """Return the prediction of that teacher."""
    return FloorPrediction.from_head(head)


def test_has_the_bound_and_the_expected_loss_and_no_feature(floor: FloorPrediction, head: HeadFloor) -> None:
    assert floor.unit == "nats"
    assert (floor.model_name, floor.d_model) == ("made", 64)
    assert floor.bound is not None
    assert tuple(floor.bound) == head.floor
    assert floor.expected is not None
    assert floor.expected.tolist() == [head.expected_at(width).value for width in WIDTHS]
    assert floor.interval is not None
    assert floor.interval.tolist() == [list(head.expected_at(width)[1:]) for width in WIDTHS]
    assert floor.width_for(0.3, confidence=0.9) == head.width_for(0.3, confidence=0.9)
    assert floor.width_for(0.3) == head.width_for(0.3, confidence=0.5)
    assert [name for name in FEATURE_FIELDS if getattr(floor, name) is not None] == []


def test_refuses_what_needs_features(floor: FloorPrediction) -> None:
    asked: list[Any] = [
        floor.with_features,
        lambda: floor.kept(8),
        lambda: floor.lost(8),
        lambda: floor.floor_at(8),
        lambda: floor.capacities(8),
        lambda: floor.predicted("theorem", 8),
        lambda: floor.total_loss,
        lambda: lost_features(floor),
        lambda: one_feature(floor, 0),
    ]
    for ask in asked:
        with pytest.raises(InputError, match="measured without an SAE, so nothing is known of its features; measure"):
            ask()


def test_is_saved_loaded_and_reported(floor: FloorPrediction, tmp_path: Path) -> None:
    floor.save(tmp_path)
    loaded = FloorPrediction.load(tmp_path)
    assert type(loaded) is FloorPrediction
    assert loaded.head == floor.head
    assert loaded.widths.tolist() == list(WIDTHS)
    assert floor_json(loaded) == floor_json(floor)
    assert "Least and expected loss" in Path(write_report(tmp_path)).read_text(encoding="utf-8")


def test_a_directory_with_only_a_head_floor_is_loaded(head: HeadFloor, tmp_path: Path) -> None:
    head.save(tmp_path)
    assert FloorPrediction.load(tmp_path).head == head


def test_its_json_has_every_key_of_a_prediction_with_features(floor: FloorPrediction, head: HeadFloor) -> None:
    stats = stats_of(1.0 / np.arange(1, 201), d_model=64, cost_unit="nats")
    features = dataclasses.replace(floor_from_stats(stats, widths=list(WIDTHS)), head=head)
    without, with_them = floor_json(floor), floor_json(features)
    assert list(without) == list(with_them)
    assert list(without["intervals"]) == list(with_them["intervals"])
    assert without["theorem"] is None
    assert without["n_features"] is None
    assert without["head"] == with_them["head"] == list(head.floor)


def test_students_of_the_teacher_narrow_it(floor: FloorPrediction) -> None:
    losses = {4: 1.0, 8: 0.6, 16: 0.25}
    calibration = calibrate(floor, losses)
    assert calibration.predictor == "head"
    assert list(calibration.predictors) == ["head"]
    calibrated = floor.calibrated_by(calibration)
    assert calibrated.student_losses == {width: StudentLoss(loss) for width, loss in losses.items()}
    before, after = (expected_loss(record, 32) for record in (floor, calibrated))
    assert after.high / after.low < before.high / before.low
    assert "The 3 students of the calibration narrow it" in calibrated._repr_html_()
    assert "students" in [trace.name for trace in calibrated.plot().data]
    other = FloorPrediction.from_head(dataclasses.replace(floor.head_floor, model_name="other"))
    assert other.calibrated_by(calibration).calibration is None


def test_impossible_predictions_are_rejected(head: HeadFloor) -> None:
    widths = np.array(WIDTHS)
    with pytest.raises(ValueError, match="needs a head floor or features"):
        FloorPrediction(widths=widths)
    with pytest.raises(ValueError, match="widths must be those of the head floor"):
        FloorPrediction(widths=widths + 1, head=head)
    with pytest.raises(ValueError, match="in rising order"):
        FloorPrediction(widths=widths[::-1].copy(), head=head)


def test_a_teacher_without_a_known_sae_is_predicted_without_one(bridge: Any, ids: Any) -> None:
    floor = predict_floor(bridge, text=ids, widths=[4, 8], steps=20, n_tokens=1000)
    assert type(floor) is FloorPrediction
    assert floor.expected is not None
    assert floor.theorem is None
    assert "no SAE is known for this teacher" in floor.warnings[0]
    for named in ({"layer": 0}, {"hook_name": "blocks.0.hook_resid_post"}, {"cost": "energy"}):
        with pytest.raises(InputError, match="SAE"):
            predict_floor(bridge, text=ids, widths=[4, 8], steps=20, n_tokens=1000, **named)


def test_a_prediction_with_features_is_one_that_has_them() -> None:
    features = floor_from_stats(stats_of(1.0 / np.arange(1, 201), d_model=64), widths=[4, 8])
    assert isinstance(features, FeatureFloorPrediction)
    assert features.with_features() is features
