"""The expected loss of a trained student, with the interval of a new teacher."""

import dataclasses
import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t

from tests.helpers.records import made_head_floor, stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.display.as_json import floor_json
from tl_distill_floor.display.floor_tables import widths_table
from tl_distill_floor.distilling.planning.calibrate import calibrate
from tl_distill_floor.distilling.planning.plan import expected_loss
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.results.expected_loss import (
    EXPECTED_LOSS_FILE,
    ExpectedLossFit,
    StudentLoss,
    expected_loss_fit,
    narrowest,
)
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.student_loss import mean_loss
from tl_distill_floor.theory.learning_curve import fit_learning_curve, log_error
from tl_distill_floor.theory.random_effects import RandomEffectsFit

ATLAS = Path(__file__).parents[2] / "benchmarks" / "atlas"
WIDTHS = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def head() -> HeadFloor:
    """Return a head floor of a teacher of 64 dimensions."""
    return made_head_floor(widths=WIDTHS)


@pytest.fixture(scope="module")
def floor(head: HeadFloor) -> FloorPrediction:
    """Return a prediction in nats with a head floor and without a simulation."""
    stats = stats_of(1.0 / np.arange(1, 201), d_model=64, cost_unit="nats")
    return dataclasses.replace(floor_from_stats(stats, widths=list(WIDTHS)), head=head)


def test_expected_loss_is_a_power_law() -> None:
    none = ((0.0, 0.0), (0.0, 0.0))
    fit = RandomEffectsFit((math.log(2.0), 0.5), none, intercept_variance=0.03, residual_variance=0.01, n_groups=6)
    loss = ExpectedLossFit(fit, 0.1, 30, ("a",), 64, 300, 200, (0.3, 0.5)).at(0.25, 0.8)
    factor = math.exp(0.2 * student_t.ppf(0.9, 5))
    assert loss == pytest.approx((1.0, 1.0 / factor, factor))


@pytest.mark.parametrize(("log_error", "share"), [(0.2, 0.03 / 0.08), (0.0, 0.03 / 0.04), (None, 0.03 / 0.05)])
def test_a_student_of_the_teacher_counts_by_the_error_of_its_loss(log_error: float | None, share: float) -> None:
    """Variances 0.03 of the teacher, 0.01 of a student, and 0.2², 0 or, if the error is not known, 0.1² of its loss."""
    none = ((0.0, 0.0), (0.0, 0.0))
    fit = RandomEffectsFit((math.log(2.0), 0.5), none, intercept_variance=0.03, residual_variance=0.01, n_groups=6)
    seen = [(0.25, StudentLoss(math.exp(0.4), log_error))]  # 0.4 above the expected logarithm, 0
    loss = ExpectedLossFit(fit, 0.1, 30, ("a",), 64, 300, 200, (0.3, 0.5)).at(0.25, 0.8, seen)
    assert loss.value == pytest.approx(math.exp(0.4 * share))


def test_students_lose_more_of_a_teacher_that_knows_more() -> None:
    none = ((0.0,) * 3,) * 3
    fit = RandomEffectsFit(
        (math.log(2.0), 0.5, 2.0), none, intercept_variance=0.03, residual_variance=0.01, n_groups=6, n_group_terms=2
    )
    losses = ExpectedLossFit(fit, 0.1, 30, ("a",), 64, 300, 200, (0.3, 0.5), known_share=0.4)
    assert losses.at(0.25, 0.8).value == pytest.approx(2.0 * 0.25**0.5 * 0.4**2)
    assert dataclasses.replace(losses, known_share=0.0).at(0.25, 0.8).value < 1e-9


def test_a_head_floor_with_a_known_share_uses_it(head: HeadFloor, floor: FloorPrediction) -> None:
    shares = expected_loss_fit("encoded").shares
    knowing = [dataclasses.replace(head, known_share=share) for share in shares]
    for width in WIDTHS:
        less, more = (record.expected_at(width).value for record in knowing)
        assert less < more
        assert more == dataclasses.replace(floor, head=knowing[1]).expected_at(width).value
    assert len({head.digest(), *(record.digest() for record in knowing)}) == 3
    assert "extrapolation" not in knowing[0]._repr_html_()
    assert "This run is from an older version" in head._repr_html_()
    assert "older version" not in knowing[0]._repr_html_()
    beyond = dataclasses.replace(head, known_share=0.72)._repr_html_()
    assert "extrapolation" in beyond
    assert "remove 72% of the next" in beyond


def test_students_of_the_teacher_shift_and_narrow_the_interval() -> None:
    losses = expected_loss_fit("encoded and simulated")
    alone = losses.at(0.1, 0.8)
    twice = [(x, 2.0 * losses.at(x, 0.8).value) for x in (0.4, 0.8, 1.0)]
    exact, uncertain = (
        losses.at(0.1, 0.8, [(x, StudentLoss(loss, error)) for x, loss in twice]) for error in (0.0, 0.5)
    )
    assert 1.2 * alone.value < uncertain.value < exact.value < 2.0 * alone.value
    assert exact.high / exact.low < 0.8 * alone.high / alone.low
    assert exact.high / exact.low < uncertain.high / uncertain.low < alone.high / alone.low


@pytest.mark.parametrize("error", [-0.1, math.nan, math.inf])
def test_rejects_an_impossible_error_of_a_loss(head: HeadFloor, floor: FloorPrediction, error: float) -> None:
    for record in (head, floor):
        with pytest.raises(InputError, match="log_error of a student's loss must be a number of at least 0, got"):
            record.expected_at(16, losses={4: StudentLoss(0.5, error)})


def test_errors_of_students_of_one_width_are_added_in_nats() -> None:
    students = [StudentLoss(0.1, 0.3), StudentLoss(0.3, 0.4)]
    assert mean_loss(students) == pytest.approx((0.2, (0.03 + 0.12) / 0.4))
    assert mean_loss([StudentLoss(0.2, 0.3)] * 4) == pytest.approx((0.2, 0.3))
    assert mean_loss([*students, StudentLoss(0.5)]) == pytest.approx((0.3, None))
    assert mean_loss([StudentLoss(0.0, 0.3)] * 2) == (0.0, None)


@given(x=st.floats(1e-6, 10.0), level=st.floats(0.05, 0.99))
def test_the_interval_holds_the_value(x: float, level: float) -> None:
    for predictor in ("encoded", "encoded and simulated"):
        loss = expected_loss_fit(predictor).at(x, level)  # type: ignore[arg-type]
        assert loss.low < loss.value < loss.high
        assert expected_loss_fit(predictor).at(1.1 * x, level).value > loss.value  # type: ignore[arg-type]


def test_an_error_that_is_not_known_is_the_median_of_the_full_errors_of_the_atlas() -> None:
    """The fit of a learning curve alone has a median error of 0.034; real curves are no power laws."""
    errors = []
    for file in sorted(ATLAS.glob("*.json")):
        for student in json.loads(file.read_text(encoding="utf-8"))["students"]:
            fit = fit_learning_curve(student["tokens"], student["losses"])
            low, high = fit.fit_interval
            if 0 < high <= 3 * low:
                errors.append(log_error(fit.floor, fit.interval))
    for predictor in ("encoded", "encoded and simulated"):
        fitted = expected_loss_fit(predictor)  # type: ignore[arg-type]
        assert fitted.n_students == len(errors)
        assert fitted.log_error == pytest.approx(np.median(errors), rel=1e-3)


@pytest.mark.slow
def test_the_data_file_is_that_of_the_atlas(tmp_path: Path) -> None:
    out = tmp_path / EXPECTED_LOSS_FILE
    subprocess.run([sys.executable, ATLAS / "fit_expected.py", "--out", out], check=True, capture_output=True)
    made, stored = json.loads(out.read_text()), json.loads((files("tl_distill_floor.assets") / out.name).read_text())
    for name in ("teachers", "n_students", "head_steps"):
        assert made[name] == stored[name]
    assert made["log_error"] == pytest.approx(stored["log_error"])
    assert made["fits"].keys() == stored["fits"].keys()
    for predictor, parts in made["fits"].items():
        for part, fit in parts.items():
            for key, value in fit.items():
                np.testing.assert_allclose(value, stored["fits"][predictor][part][key], rtol=1e-3, atol=1e-6)


def test_head_floor_and_prediction_agree_without_a_simulation(floor: FloorPrediction, head: HeadFloor) -> None:
    assert floor.expected is not None
    assert floor.interval is not None
    assert floor.expected.tolist() == [head.expected_at(width).value for width in WIDTHS]
    assert floor.interval.shape == (4, 2)
    assert (floor.expected > head.floor).all()
    assert head.expected_at(64) == (0.0, 0.0, 0.0)


def test_is_never_above_the_loss_of_equal_probabilities(head: HeadFloor, floor: FloorPrediction) -> None:
    """With 300 tokens they lose log 300 = 5.70 nats, less the teacher's entropy."""
    far = dataclasses.replace(head, encoded=(5.0, 4.0, 0.12, 0.03))
    for record in (far, dataclasses.replace(floor, head=far)):
        assert record.expected_at(4, 0.95).value < record.expected_at(4, 0.95).high == math.log(300)
        assert record.expected_at(16).high < 1.0


def test_is_never_below_the_head_floor(head: HeadFloor) -> None:
    close = dataclasses.replace(head, encoded=tuple(0.001 * loss for loss in head.encoded))
    assert all(close.expected_at(width).low == close.floor_at(width) for width in WIDTHS)


def test_confidence_asks_for_a_wider_student(floor: FloorPrediction, head: HeadFloor) -> None:
    for record in (floor, head):
        widths = [record.width_for(0.3, confidence) for confidence in (0.1, 0.5, 0.9)]
        assert widths[0] < widths[1] < widths[2]
        assert record.expected_at(widths[2], 0.8).high <= 0.3 < record.expected_at(widths[2] - 1, 0.8).high
        with pytest.raises(ValueError, match=r"confidence must be inside \(0, 1\), got 1.5"):
            record.width_for(0.3, 1.5)
    assert floor.width_for(0.3) == floor.width_for(0.3, 0.5)
    assert head.width_for(0.3) < head.width_for(0.3, 0.5)


def test_a_prediction_without_it_says_what_is_missing(floor: FloorPrediction) -> None:
    in_mse = floor_from_stats(stats_of(1.0 / np.arange(1, 201), d_model=64), widths=list(WIDTHS))
    for without in (in_mse, dataclasses.replace(floor, head=None)):
        assert without.expected is None
        assert without.interval is None
        with pytest.raises(InputError, match='measure with cost="fisher" and steps=8 or more, and without head=False'):
            without.expected_at(8)
        with pytest.raises(InputError, match='measure with cost="fisher"'):
            without.width_for(0.1, confidence=0.9)


def test_is_shown_and_planned(floor: FloorPrediction) -> None:
    table, explanation, *_ = widths_table(floor).renderables
    assert "expected" in [column.header for column in table.columns]  # type: ignore[attr-defined]
    assert "students of 9 teachers;" in str(explanation)
    assert floor_json(floor)["expected"] == floor.expected.tolist()  # type: ignore[union-attr]
    assert "expected, 80 %" in [trace.name for trace in floor.plot().data]
    assert expected_loss(floor, 8) == floor.expected_at(8, 0.8)


def test_a_calibration_may_have_students_that_are_narrower_than_the_head_floor_or_as_wide_as_the_teacher(
    floor: FloorPrediction,
) -> None:
    inside = {8: 0.5, 16: 0.3}
    losses = {2: 2.0, **inside, 64: 1e-4}
    calibrated = dataclasses.replace(floor, calibration=calibrate(floor, losses))
    exact = {width: StudentLoss(loss) for width, loss in inside.items()}
    assert calibrated.student_losses == exact
    assert calibrated.expected_at(32) == floor.expected_at(32, losses=inside)
    assert "2 of the 4 students of the calibration narrow it" in calibrated._repr_html_()
    with pytest.raises(InputError, match="the narrowest width of this head floor is 4, got 2"):
        floor.expected_at(32, losses=losses)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({8: math.nan}, "must be a number above 0, in nats per token, got nan"),
        ({8: math.inf}, "got inf"),
        ({8: -0.3}, r"got -0\.3"),
        ({8: None}, "got None"),
        ({8.5: 0.3}, r"a student's width must be an integer, got 8\.5"),
        ({"0": 0.3}, "a student's width must be at least 1, got 0"),
        ({8: 0.3, "8": 0.3}, "there are two losses at width 8; give their mean"),
        ({8: 5.8}, r"a loss of 5\.8 at width 8 is more than that of equal probabilities, 5\.7 nats"),
        ({8: 0.1}, r"a loss of 0\.1 at width 8 is less than its logits allow, about 0\.18 nats"),
        ({8: 0.3, 16: 0.5}, r"losses do not fall with the width \(0\.3 at 8, 0\.5 at 16\)"),
    ],
)
def test_rejects_impossible_losses(head: HeadFloor, floor: FloorPrediction, losses: Any, message: str) -> None:
    for record in (head, floor):
        with pytest.raises(InputError, match=message), without_type_checks():
            record.expected_at(32, losses=losses)


def test_widths_of_losses_from_json_and_tables_are_read(head: HeadFloor, floor: FloorPrediction) -> None:
    for record in (head, floor):
        with without_type_checks():
            from_json, from_floats = (record.expected_at(32, losses={width: 0.5}) for width in ("8", np.float64(8.0)))
        assert from_json == from_floats == record.expected_at(32, losses={8: 0.5})


@pytest.mark.parametrize("level", [80, -0.5, 1.0, math.nan])
def test_rejects_a_level_that_is_no_probability(head: HeadFloor, floor: FloorPrediction, level: float) -> None:
    for record in (head, floor):
        with (
            pytest.raises(InputError, match=r"must be a probability inside \[0, 1\), such as 0\.8"),
            without_type_checks(),
        ):
            record.expected_at(32, level)


def test_a_calibration_whose_losses_rise_is_not_used(floor: FloorPrediction) -> None:
    calibrated = dataclasses.replace(floor, calibration=calibrate(floor, {8: 0.3, 16: 0.5, 32: 0.9}))
    assert calibrated.student_losses == {}
    assert calibrated.expected_at(32) == floor.expected_at(32)
    assert "0 of the 3 students of the calibration narrow it" in calibrated._repr_html_()


def test_a_large_teacher_is_an_extrapolation(floor: FloorPrediction, head: HeadFloor) -> None:
    large = dataclasses.replace(head, d_model=4096, vocab_size=50_000)
    assert (
        "4,096 dimensions (at most 512 in the fit), 50,000 tokens of vocabulary (at most 8,000)" in large._repr_html_()
    )
    assert "extrapolation" not in head._repr_html_()
    # A teacher of bytes: of those of the fit, neox-speeches has the fewest, 1,500 tokens for 512 dimensions.
    bytes_ = dataclasses.replace(head, d_model=512, vocab_size=256)
    assert "0.5 tokens of vocabulary per dimension (at least 2.9)" in bytes_._repr_html_()
    assert "head floors of 200 steps, and this one has 60" in dataclasses.replace(head, steps=60)._repr_html_()


def test_bisection_returns_the_teachers_width_if_nothing_narrower_is_enough() -> None:
    assert narrowest(4, 64, lambda _: False) == 64
    assert narrowest(4, 64, lambda _: True) == 4
