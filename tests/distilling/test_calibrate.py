"""Tests of the fits of predictions to students, of the null models, and of the input that is rejected."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.records import made_head_floor, stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.planning.calibrate import calibrate
from tl_distill_floor.distilling.planning.plan import plan
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.results.student_loss import StudentLoss
from tl_distill_floor.theory.rate_schedule import tokens_by_rate
from tl_distill_floor.theory.regression import fit_line, leave_one_out_error


@pytest.fixture(scope="module")
def floor() -> FloorPrediction:
    """Predict floors for synthetic features whose costs fall as 1/rank."""
    return floor_from_stats(stats_of(1.0 / np.arange(1, 65), d_model=16), widths=[2, 4, 8, 16])


def student(width: int, loss: float, **fields: Any) -> StudentResult:
    """Return a saturated student with a loss, and with other fields as given."""
    defaults: dict[str, Any] = {
        "name": f"width{width}", "teacher": "made", "width": width, "depth": 2, "n_parameters": 1000 * width,
        "tokens": (10,), "losses": (loss + 0.1,), "floor": loss, "interval": (loss, loss), "status": "saturated",
        "heldout_tokens": 5,
    }  # fmt: skip
    return StudentResult(**(defaults | fields))


def test_linear_fit_matches_hand_computed_values() -> None:
    """Points (0, 1), (1, 3), (2, 4): slope 3/2, offset 7/6; residuals -1/6, 1/3, -1/6; R² = 1 - (1/6) / (14/3)."""
    fit = fit_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 4.0]))
    assert (fit.slope, fit.baseline, fit.r2) == pytest.approx((1.5, 7 / 6, 1 - (1 / 6) / (14 / 3)))
    # One degree of freedom: t = 12.706; s = √(1/6); standard error of the slope s / √2.
    assert fit.slope_interval[1] - 1.5 == pytest.approx(12.706 * np.sqrt(1 / 6) / np.sqrt(2), rel=1e-3)
    # The fits to the other two points predict 2 for 1, 2.5 for 3, and 5 for 4; the mean loss is 8/3.
    assert fit.loo_error == pytest.approx((1 + 0.5 + 1) / 3 / (8 / 3))
    at = fit.at(1.0)
    assert at.value == pytest.approx(8 / 3)
    assert at.high - at.value == pytest.approx(12.706 * np.sqrt(1 / 6) * np.sqrt(1 + 1 / 3), rel=1e-3)
    # The upper end of a two-sided 80 % interval is the one-sided bound of 90 %: t = 3.0777.
    assert fit.at(1.0, 0.8).high - at.value == pytest.approx(3.0777 * np.sqrt(1 / 6) * np.sqrt(1 + 1 / 3), rel=1e-3)


@given(st.floats(0.1, 10), st.floats(0, 5), st.integers(3, 8))
def test_fit_of_exactly_linear_points_has_no_error(slope: float, baseline: float, n: int) -> None:
    x = np.arange(1.0, n + 1)
    fit = fit_line(x, slope * x + baseline)
    assert (fit.slope, fit.baseline) == pytest.approx((slope, baseline), abs=1e-6)
    assert fit.loo_error < 1e-6
    assert leave_one_out_error(x, slope * x + baseline) < 1e-6


def test_chooses_the_predictor_that_generated_the_losses(floor: FloorPrediction) -> None:
    students = [student(w, 2.0 * floor.predicted("theorem", w) + 0.5) for w in (2, 3, 4, 6, 8)]
    calibration = calibrate(floor, students)
    assert calibration.predictor == "theorem"
    assert (calibration.slope, calibration.baseline) == pytest.approx((2.0, 0.5))
    assert set(calibration.predictors) == {"theorem", "independent"}
    assert set(calibration.nulls) == {"1/width", "log size", "power law"}
    assert calibration.loo_error < 1e-6 < min(calibration.nulls.values())
    at_teacher = 2.0 * floor.predicted("theorem", floor.stats.d_model) + 0.5
    assert calibration.at_teacher_width == pytest.approx(at_teacher)


def test_students_have_the_errors_of_their_learning_curves(floor: FloorPrediction, tmp_path: Path) -> None:
    students = [
        student(2, 0.8, interval=(0.4, 1.6)),
        student(4, 0.3, interval=(0.3, 0.3)),
        student(4, 0.5, interval=(0.5, 0.5)),
        student(8, 0.2, interval=(0.0, 0.2), status="under-trained", losses=(0.2,)),
    ]
    calibration = calibrate(floor, students)
    calibration.save(tmp_path)
    # An interval of 95 % is 3.92 standard errors wide. Of the last L∞ nothing is known below its third.
    expected = {2: StudentLoss(0.8, np.log(4) / 3.92), 4: StudentLoss(0.4, 0.0), 8: StudentLoss(0.2, np.log(3) / 3.92)}
    for loaded in (calibration, Calibration.load(tmp_path)):
        for width, loss in loaded.student_losses.items():
            assert loss == pytest.approx(expected[width], rel=1e-4)
    older = dataclasses.replace(calibration, log_errors=())
    assert older.student_losses[4] == StudentLoss(pytest.approx(0.4), None)  # type: ignore[arg-type]
    file = calibration.save(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"log_errors": [0.1]}))
    with pytest.raises(InputError, match="log_errors of a calibration need one value for each student"):
        Calibration.load(tmp_path)


def test_null_models_fit_losses_that_depend_only_on_the_width(floor: FloorPrediction) -> None:
    calibration = calibrate(floor, {width: 3.0 / width + 0.1 for width in (2, 3, 4, 6, 8)})
    assert calibration.nulls["1/width"] < 1e-9 < calibration.loo_error
    assert calibration.nulls["power law"] < 1e-3
    assert calibration.statuses == ("given",) * 5


def test_predictions_at_the_widths_of_a_floor_equal_its_curves(floor: FloorPrediction) -> None:
    for name in ("theorem", "independent"):
        assert [floor.predicted(name, int(w)) for w in floor.widths] == pytest.approx(getattr(floor, name).tolist())
    with pytest.raises(InputError, match="no simulated floors"):
        floor.predicted("simulated", 4)


def test_calibration_is_loaded_with_its_floor(floor: FloorPrediction, tmp_path: Path) -> None:
    assert floor.calibrated is None
    with pytest.raises(InputError, match="run tl-floor distill and calibrate"):
        floor.calibrated_at(4)
    floor.save(tmp_path)
    calibration = calibrate(floor, {width: 1.5 * floor.predicted("independent", width) + 0.2 for width in (2, 4, 8)})
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    loaded = FloorPrediction.load(tmp_path)
    assert loaded.calibrated == pytest.approx(1.5 * floor.independent + 0.2)
    low, high = loaded.calibrated_at(4)[1:]
    assert low <= loaded.calibrated_at(4).value <= high
    # The calibration is not used after a second measurement, which has other statistics.
    floor_from_stats(stats_of(2.0 / np.arange(1, 65), d_model=16), widths=[2, 4]).save(tmp_path)
    assert FloorPrediction.load(tmp_path).calibration is None


def test_ignores_a_calibration_of_another_prediction(floor: FloorPrediction, tmp_path: Path) -> None:
    """The second prediction has the same statistics and another threshold of alive features."""
    stats = stats_of(1.0 / np.arange(1, 65), d_model=16)
    rare = dataclasses.replace(stats, firing_count=np.where(np.arange(64) < 8, 1, stats.firing_count))
    blocks = dataclasses.replace(rare.blocks, firing_count=np.stack([rare.firing_count // 2, rare.firing_count - rare.firing_count // 2]))  # fmt: skip  # noqa: E501
    rare = dataclasses.replace(rare, blocks=blocks)
    first = floor_from_stats(rare, widths=[2, 4, 8])
    first.save(tmp_path)
    calibrate(first, {2: 2.0, 4: 1.5, 8: 1.0}).save(tmp_path)
    assert FloorPrediction.load(tmp_path).calibration is not None
    floor_from_stats(rare, widths=[2, 4, 8], min_count=2).save(tmp_path)
    assert FloorPrediction.load(tmp_path).calibration is None


def test_leaves_out_all_students_of_a_width_together(floor: FloorPrediction) -> None:
    """Two students of width 2 agree only with each other, and must not predict one another."""
    loss = {2: 9.0, 4: 1.5, 8: 1.0}
    one = calibrate(floor, [student(w, loss[w]) for w in (2, 4, 8)])
    both = calibrate(floor, [*(student(w, loss[w]) for w in (2, 4, 8)), student(2, 9.0, losses=(9.2,))])
    error = leave_one_out_error(np.array([3.0, 3.0, 2.0, 1.0]), np.array([9.0, 9.0, 1.5, 1.0]), [2, 2, 4, 8])
    # The fit through (2, 1.5) and (1, 1) predicts 2 for both students of width 2, an error of 7. The other two are
    # predicted 5 for 1.5, and -6 for 1. The mean loss is 20.5 / 4.
    assert error == pytest.approx((2 * 7.0 + 3.5 + 7.0) / 4 / (20.5 / 4))
    # A student with almost no loss does not dominate the error.
    assert leave_one_out_error(np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 0.1])) == pytest.approx(
        (abs(3.9 - 3.0) + abs(1.55 - 2.0) + abs(1.0 - 0.1)) / 3 / (5.1 / 3)
    )
    assert both.widths == (2, 2, 4, 8)
    assert one.widths == (2, 4, 8)


def test_warns_of_or_rejects_students_without_a_usable_floor(floor: FloorPrediction) -> None:
    three = [student(w, 1.0 / w) for w in (2, 4, 8)]
    assert calibrate(floor, three).warnings == ()
    short = dataclasses.replace(three[0], status="under-trained")
    assert calibrate(floor, [short, *three[1:]]).warnings == (
        "not saturated, so their floors are extrapolated or not known: width2",
    )
    diverged = student(6, 9.0, status="diverged")
    calibration = calibrate(floor, [*three, diverged])
    assert (calibration.widths, calibration.warnings) == ((2, 4, 8), ("left out because they diverged: width6",))
    straight = student(6, 0.0)
    assert "do not bend yet (train longer): width6" in calibrate(floor, [*three, straight]).warnings[0]
    with pytest.raises(
        InputError, match=r"at least 3 widths, got 2 \(left out because they diverged: width6\); distil more"
    ):
        calibrate(floor, [*three[:2], diverged])
    with pytest.raises(
        InputError, match="the teacher of width6 is another, and the prediction is for made; give students of made"
    ):
        calibrate(floor, [*three, student(6, 1.0, teacher="another")])
    with pytest.raises(InputError, match="must be a number above 0"):
        calibrate(floor, {2: 1.0, 4: float("nan"), 8: 0.1})


def test_stored_floors_of_other_schedules_are_fitted_again(floor: FloorPrediction) -> None:
    """Older versions fitted all curves as if the learning rate were constant."""
    config = DistillConfig(n_tokens=1_000_000, schedule="cosine")
    tokens = np.linspace(25_000, 1_000_000, 40)
    rates = np.array([config.lr_at(int(step), 10_000) for step in tokens // 100 - 1])
    losses = 0.2 + 3000 * tokens_by_rate(tokens, rates) ** -0.8
    old = student(
        4, 0.35, tokens=tuple(tokens.astype(int).tolist()), losses=tuple(losses.tolist()),
        settings=dataclasses.asdict(config),
    )  # fmt: skip
    calibration = calibrate(floor, [student(2, 0.5), old, student(8, 0.1)])
    assert calibration.losses == pytest.approx((0.5, 0.2, 0.1), rel=0.03)


def test_a_student_that_diverged_under_another_schedule_is_left_out(floor: FloorPrediction) -> None:
    """Its loss fell before it diverged, so the fit to its curve with learning rates knows nothing of that."""
    tokens = np.geomspace(20_000, 1_000_000, 24)
    diverged = student(
        6, 9.0, tokens=tuple(tokens.astype(int).tolist()), losses=tuple((0.2 + 100 * tokens**-0.6).tolist()),
        status="diverged", settings=dataclasses.asdict(DistillConfig(n_tokens=2_000_000, schedule="cosine")),
    )  # fmt: skip
    calibration = calibrate(floor, [student(w, 1.0 / w) for w in (2, 4, 8)] + [diverged])
    assert (calibration.widths, calibration.warnings) == ((2, 4, 8), ("left out because they diverged: width6",))


def test_a_floor_below_what_the_width_allows_is_raised_to_it() -> None:
    """Width 8 allows 0.2 nats at least, less 0.005 · 1.96 for its error and 0.01 that more training would remove."""
    floor = FloorPrediction.from_head(made_head_floor())
    students = [student(4, 0.6), student(8, 0.15, losses=(0.4,), interval=(0.1, 0.2)), student(16, 0.14)]
    calibration = calibrate(floor, students)
    assert calibration.losses == pytest.approx((0.6, 0.2 - 0.0098 - 0.01, 0.14), abs=1e-5)
    assert calibration.warnings == (
        "their curves are extrapolated to less than their widths allow, so the least loss of these widths is used:"
        " width8; train longer",
    )


def test_without_features_students_narrower_than_the_measured_widths_are_refused() -> None:
    floor = FloorPrediction.from_head(made_head_floor())
    students = [student(w, 2.0 / w) for w in (2, 4, 8)]
    for either in (students, {2: 0.9, 4: 0.7, 8: 0.4}):
        with pytest.raises(InputError, match="narrowest width of this head floor is 4, got 2; measure the"):
            calibrate(floor, either)
    assert list(calibrate(floor, {4: 0.9, 8: 0.7, 16: 0.4}).predictors) == ["head"]


def test_a_student_of_the_same_name_as_a_diverged_one_is_used(floor: FloorPrediction) -> None:
    students = [student(w, 1.0 / w) for w in (2, 4, 8)]
    diverged = dataclasses.replace(students[1], status="diverged")
    assert calibrate(floor, [*students, diverged]).widths == (2, 4, 8)


def test_students_of_another_depth_are_left_out_by_name(floor: FloorPrediction) -> None:
    students = [student(w, 1.0 / w) for w in (2, 4, 8)]
    shallow = [student(w, 3.0 / w, name=f"shallow{w}", depth=1) for w in (2, 4)]
    calibration = calibrate(floor, [*students, *shallow])
    assert (calibration.depth, calibration.widths) == (2, (2, 4, 8))
    assert calibration.warnings == ("left out because they have other numbers of layers than 2: shallow2, shallow4",)


def test_a_copy_of_a_student_counts_once(floor: FloorPrediction) -> None:
    """A copied directory is no second training, which would narrow the intervals."""
    students = [student(w, loss) for w, loss in ((2, 0.5), (4, 0.3), (8, 0.2))]
    expected = calibrate(floor, students)
    copy = dataclasses.replace(students[1], path="runs/tiny/students/width4-backup")
    calibration = calibrate(floor, [*students, copy])
    assert (calibration.widths, calibration.predictors) == (expected.widths, expected.predictors)
    assert calibration.warnings == ("left out because they are copies of others: width4",)
    other_seed = dataclasses.replace(students[1], losses=(0.41,))
    assert calibrate(floor, [*students, other_seed]).widths == (2, 4, 4, 8)


def test_a_student_that_equals_its_teacher_is_left_out_by_name(floor: FloorPrediction) -> None:
    students = [student(w, 1.0 / w) for w in (2, 4, 8)]
    equal = dataclasses.replace(student(16, 0.0), losses=(0.0,))
    assert calibrate(floor, [*students, equal]).warnings == ("left out because they equal their teacher: width16",)


def test_another_objective_is_named(floor: FloorPrediction) -> None:
    objective = dataclasses.asdict(Objective(temperature=4.0, cross_entropy=0.5))
    students = [student(w, 1.0 / w, settings={"objective": objective}) for w in (2, 4, 8)]
    (warning,) = calibrate(floor, students).warnings
    assert warning.startswith("trained on another loss than KL(teacher ‖ student) at temperature 1: width2, width4")


def test_losses_given_with_errors_or_as_json_are_read(floor: FloorPrediction) -> None:
    with without_type_checks():
        calibration = calibrate(floor, {"16": 0.2, 2: StudentLoss(1.0, 0.1), 8: np.float64(0.3)})  # type: ignore[dict-item]
    assert (calibration.widths, calibration.losses) == ((2, 8, 16), (1.0, 0.3, 0.2))
    assert (calibration.log_errors, calibration.depth) == ((0.1, None, None), None)


@pytest.mark.parametrize(
    "losses", [{2: None}, {2: "0.3"}, {2.5: 0.3}, {"two": 0.3}, {2: 0.0}, {2: (0.3, 0.1)}, [(2, 0.3)]]
)
def test_rejects_what_are_not_losses_by_width(floor: FloorPrediction, losses: Any) -> None:
    with (
        pytest.raises(InputError, match=r"loss must be a number above 0|width must be an integer|{width: loss"),
        without_type_checks(),
    ):
        calibrate(floor, losses)


@pytest.mark.parametrize(
    ("losses", "message"), [({2: 0.9, "2": 0.8}, "two losses at width 2"), ({"²": 1.0}, "got '²'")]
)
def test_rejects_widths_that_are_given_twice_or_are_no_numbers(
    floor: FloorPrediction, losses: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message), without_type_checks():
        calibrate(floor, {4: 0.5, 8: 0.3} | losses)


def test_losses_that_do_not_fall_with_the_width_are_named(floor: FloorPrediction, bridge: Any) -> None:
    """A fit with C of 0 or below is not used to plan a student."""
    rising = calibrate(floor, {2: 0.31, 4: 0.33, 8: 0.36})
    assert rising.slope < 0
    assert "losses rise with the width, from 0.31 at width 2 to 0.33 at width 4, from 0.33" in rising.warnings[0]
    assert "do not fall where the predicted floor falls (C is -" in rising.warnings[1]
    with pytest.raises(InputError, match=r"do not fall .* \(C is -.*\); .* run tl-floor calibrate again"):
        plan(floor.calibrated_by(rising), bridge, max_loss=0.4)
    with pytest.raises(InputError, match="do not fall where the predicted floor falls"):
        plan(floor.calibrated_by(calibrate(floor, {2: 0.3, 4: 0.3, 8: 0.3})), bridge, max_width=8)
    partly = calibrate(floor, {2: 0.9, 4: 0.4, 8: 0.41})
    assert partly.slope > 0
    assert len(partly.warnings) == 1


def test_names_students_whose_floor_is_not_known(floor: FloorPrediction) -> None:
    students = [student(w, 1.0 / w) for w in (2, 4)]
    unknown = student(8, 0.1, status="under-trained")
    unknown = dataclasses.replace(unknown, losses=(*unknown.losses[:-1], 0.1), interval=(0.0, 0.1))
    assert (
        "their floors are not known, so the losses that they reached are used: width8"
        in (calibrate(floor, [*students, unknown]).warnings[-1])
    )


@pytest.mark.parametrize("width", [0, -4, 17, 640])
def test_rejects_widths_that_no_student_can_have(floor: FloorPrediction, width: int) -> None:
    expected = (
        f"must be from 1 to its teacher's 16 dimensions, got {width}; leave"
        if width > 0
        else f"at least 1, got {width}"
    )
    with pytest.raises(InputError, match=expected):
        calibrate(floor, {width: 0.5, 2: 0.4, 4: 0.3})


def test_rejects_damaged_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a valid calibration file .* run tl-floor calibrate"):
        Calibration.load(tmp_path)
    (tmp_path / "student.json").write_text('{"format": "tl-distill-floor/student", "version": 1, "name": 3}')
    with pytest.raises(InputError, match=r"not a valid student file .* run tl-floor distill"):
        StudentResult.load(tmp_path)
    saved = dataclasses.replace(student(4, 1.0), interval=(0.0, 9.0))
    saved.save(tmp_path / "again")
    assert dataclasses.replace(StudentResult.load(tmp_path / "again"), path=None) == saved
