"""Tests of the verdict on learning curves with a known end."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest

from tests.helpers.learning_curves import POINTS, Kind, made_head, simulated_curve
from tests.helpers.records import made_head_floor
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import (
    Calibration,
    Diagnosis,
    FloorPrediction,
    InputError,
    LearningCurve,
    StudentResult,
    calibrate,
    diagnose,
)
from tl_distill_floor.theory.regression import fit_line

TOKENS = np.geomspace(2e4, 1e6, 24)
BETWEEN = "of them between 10 % and 80 % of its tokens, over a factor of"
HEAD = made_head(expected=0.3, bound=0.1)


def falling_to(end: float, reached: float, exponent: float = 0.6) -> LearningCurve:
    """Return a curve that would saturate at `end`, and has come down to `reached`."""
    losses = end + (reached - end) * (TOKENS / TOKENS[-1]) ** -exponent
    return LearningCurve(tuple(TOKENS.tolist()), tuple(losses.tolist()), width=64)


def student_of(curve: LearningCurve, **fields: Any) -> StudentResult:
    """Return a student with a learning curve, and with other fields as given."""
    reached = curve.losses[-1]
    student = StudentResult(
        "width64", "made", 64, 2, 9, tuple(map(int, curve.tokens)), curve.losses, reached, (0.0, reached),
        "under-trained", 9,
    )  # fmt: skip
    return dataclasses.replace(student, **fields)


def test_says_under_trained_and_how_many_tokens_half_of_the_rest_needs() -> None:
    """A third of 0.3 nats is left. With exponent 0.6 half of it needs 2^(1/0.6) − 1 = 2.2 times the tokens so far."""
    diagnosis = diagnose(falling_to(0.2, 0.3), HEAD)
    assert diagnosis.verdict == "under-trained"
    assert diagnosis.reached == pytest.approx(0.3)
    assert diagnosis.end_interval[0] <= 0.2 <= diagnosis.end_interval[1]
    assert diagnosis.left == pytest.approx(1 / 3, abs=0.1)
    assert diagnosis.tokens_for_half == pytest.approx(2.2e6, rel=0.6)
    assert "more tokens" in diagnosis.reason
    assert (diagnosis.bound, diagnosis.teacher, diagnosis.width) == (0.1, "made", 64)
    assert diagnosis.expected == pytest.approx(0.3, rel=1e-3)


def test_the_end_is_not_below_the_bound_if_the_losses_are_noisy() -> None:
    """The curve tends to 0.505 with 5 % of noise, and no student loses less than 0.5."""
    share = np.arange(1, 101) / 100
    losses = (0.505 + 0.05 * share**-0.8) * (1 + 0.05 * np.random.default_rng(0).standard_normal(100))
    curve = LearningCurve(tuple((share * 1e6).tolist()), tuple(losses.tolist()), width=64)
    low, high = diagnose(curve, made_head(expected=0.6, bound=0.5)).end_interval
    assert low == 0.5 < high


def test_says_capacity_limited_where_the_width_explains_the_end() -> None:
    curve = falling_to(0.29, 0.3)
    assert "the curve has no learning rate" in diagnose(curve, HEAD).warnings[-1]
    diagnosis = diagnose(dataclasses.replace(curve, learning_rates=(1e-3,) * 24), HEAD)
    assert diagnosis.verdict == "capacity-limited"
    assert "what remains is within what students of width 64 lose" in diagnosis.reason
    assert diagnosis.warnings == (
        "the loss is taken as KL(teacher ‖ student) in nats per token on held-out text: temperature 1, forward"
        " direction, the mean over all tokens, no masked or padded ones",
    )


def test_says_stalled_where_neither_the_width_nor_the_tokens_explain_the_end() -> None:
    diagnosis = diagnose(falling_to(2.0, 2.05), HEAD)
    assert diagnosis.verdict == "stalled above the expected loss"
    assert diagnosis.expected_interval[1] < 2.0
    assert "check the learning rate" in diagnosis.reason


def test_says_to_check_a_loss_below_the_bound_also_of_a_short_curve() -> None:
    """The bound is 0.1 nats; its standard error and what more training would gain lower it to 0.097."""
    for curve in (falling_to(0.02, 0.03), LearningCurve((1e5, 1e6), (0.2, 0.09), width=64)):
        diagnosis = diagnose(curve, HEAD)
        assert diagnosis.verdict == "below what the width allows"
        assert "check the loss: temperature 1" in diagnosis.reason
    assert diagnose(falling_to(0.095, 0.098), HEAD).verdict != "below what the width allows"


@pytest.mark.parametrize("reached", [0.098, 0.1])
def test_a_loss_within_the_error_of_the_bound_ends_there(reached: float) -> None:
    """Between 0.1 and its lower end of 0.097 at most 3 % of the loss are left, less than a tenth."""
    diagnosis = diagnose(falling_to(0.09, reached), HEAD)
    assert diagnosis.verdict == "capacity-limited"
    assert diagnosis.end is not None
    assert 0.097 <= diagnosis.end_interval[0] <= diagnosis.end <= diagnosis.end_interval[1] <= reached
    assert diagnosis.left is not None
    assert diagnosis.left <= 0.03
    assert any("below the 95 % interval" in warning for warning in diagnosis.warnings)


def test_a_loss_at_an_exact_bound_says_so() -> None:
    head = dataclasses.replace(HEAD, standard_error=(0.0,), half_steps=(0.1,))
    diagnosis = diagnose(falling_to(0.05, 0.1), head)
    assert diagnosis.sentence == "not known: the loss is the least that the bound allows, so nothing is left to gain"


def test_warns_of_a_loss_that_is_below_the_interval_of_trained_students() -> None:
    diagnosis = diagnose(falling_to(0.115, 0.12), made_head(expected=1.0, bound=0.1))
    assert diagnosis.verdict == "capacity-limited"
    assert "below the 95 % interval" in diagnosis.warnings[-1]


@pytest.mark.parametrize(
    ("tokens", "losses", "reason"),
    [
        (
            (1e5, 5e5, 1e6),
            (0.9, 0.5, 0.4),
            f"the curve has 3 points, 2 {BETWEEN} 5 in tokens; at least 6 are needed there",
        ),
        (TOKENS[-7:], [0.5] * 7, f"the curve has 7 points, 5 {BETWEEN} 1.97 in tokens"),
        # Of 200 averaged points, evenly spaced in the logarithm, ln 1.6 / ln 2 are below 80 %.
        (
            np.linspace(5e5, 1e6, 1000),
            np.linspace(0.9, 0.5, 1000),
            f"the curve has 200 averaged points, 135 {BETWEEN} 1.59",
        ),
        # There is no factor between the tokens of one point.
        (
            (5e5, 1e6),
            (0.5, 0.4),
            "the curve has 2 points, 1 of them between 10 % and 80 % of its tokens; at least 6 are",
        ),
        (
            TOKENS,
            [*np.linspace(0.9, 0.4, 12), *np.linspace(0.41, 0.6, 12)],
            "the loss rose from 0.4 after 130 k tokens",
        ),
    ],
)
def test_says_not_known_and_why(tokens: tuple[float, ...], losses: list[float], reason: str) -> None:
    curve = LearningCurve(tuple(map(float, tokens)), tuple(map(float, losses)), width=64)
    diagnosis = diagnose(curve, HEAD)
    assert diagnosis.verdict == "not known"
    assert diagnosis.reason.startswith(reason)
    assert (diagnosis.end, diagnosis.end_interval) == (None, (0.1, diagnosis.reached))


def test_at_most_is_the_lower_end_of_the_interval() -> None:
    """What is left of real curves is known within a factor of 3, and the posterior of the curve alone is narrower."""
    diagnosis = diagnose(falling_to(0.275, 0.3), HEAD)
    assert diagnosis.verdict == "not known"
    assert diagnosis.left is not None
    most = 1 - diagnosis.end_interval[0] / diagnosis.reached
    assert most > 2.9 * diagnosis.left
    assert f"and at most {most:.0%}: the curve leaves open" in diagnosis.reason


def test_says_that_points_count_by_the_learning_rate_before_them() -> None:
    """Of ten points under a cosine only four are below 80 % of the sum of the rates."""
    share = np.arange(1, 11) / 10
    rates = (1 + np.cos(np.pi * share)) / 2
    losses = 0.5 + 0.1 * share**-0.5
    curve = LearningCurve(*(tuple(values.tolist()) for values in (1e6 * share, losses)), width=64,
                          learning_rates=tuple(rates.tolist()))  # fmt: skip
    diagnosed = diagnose(curve, made_head(0.5, 0.1))
    assert diagnosed.verdict == "not known"
    assert diagnosed.reason.startswith(f"the curve has 10 points, 4 {BETWEEN} 3.58")
    assert diagnosed.reason.endswith("over a factor of 3, where tokens count by their learning rate")


def test_a_sum_over_positions_is_refused() -> None:
    """A uniform guess over 4,096 tokens loses at most ln 4096 = 8.32 nats per token."""
    with pytest.raises(InputError, match=r"the last loss of the curve, 51.2, is above 8.32 nats per token"):
        diagnose(falling_to(50.0, 51.2), HEAD)


def test_a_width_of_any_integer_type_can_be_stored() -> None:
    curve = dataclasses.replace(falling_to(0.2, 0.3), width=None)
    with without_type_checks():
        diagnosis = diagnose(curve, HEAD, width=np.int64(64))  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(diagnosis)))["width"] == 64


def test_widths_that_are_unknown_or_impossible_are_refused() -> None:
    curve = falling_to(0.2, 0.3)
    with pytest.raises(InputError, match="does not say how wide the student is; set width="):
        diagnose(dataclasses.replace(curve, width=None), HEAD)
    with pytest.raises(InputError, match=r"a student's width must be from 1 to its teacher's 256 \(made\), got 300"):
        diagnose(dataclasses.replace(curve, width=300), HEAD)
    with pytest.raises(InputError, match="has width 64, not 96; leave out width="):
        diagnose(curve, HEAD, 96)
    with pytest.raises(InputError, match="the narrowest width of this head floor is 64, got 8"):
        diagnose(dataclasses.replace(curve, width=None), HEAD, 8)


def test_the_configuration_of_the_teacher_next_to_a_curve_is_not_that_of_the_student(tmp_path: Path) -> None:
    """The teacher has 256 dimensions; a student of that width needs --width."""
    curve = falling_to(0.29, 0.3)
    rows = [f"{tokens},{loss}" for tokens, loss in zip(curve.tokens, curve.losses, strict=True)]
    file = tmp_path / "curve.csv"
    file.write_text("\n".join(["tokens,eval_kl", *rows]))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 256}))
    with pytest.raises(InputError, match=r"config\.json has the teacher's width, 256, so it .* with width="):
        diagnose(file, HEAD)
    assert diagnose(file, HEAD, 64).width == 64
    assert diagnose(file, HEAD, 256).width == 256
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    assert diagnose(file, HEAD).width == 64
    with pytest.raises(InputError, match=r"has width 64, not 96; leave out width=, or move .* away from .*\.json"):
        diagnose(file, HEAD, 96)


def test_the_configuration_next_to_a_state_of_the_trainer_is_that_of_the_student(tmp_path: Path) -> None:
    curve = falling_to(0.29, 0.3)
    history = [
        {"num_tokens": tokens, "eval_loss": loss} for tokens, loss in zip(curve.tokens, curve.losses, strict=True)
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 256}))
    assert diagnose(tmp_path, HEAD).width == 256
    with pytest.raises(InputError, match=r"has width 256, not 64; leave out width=$"):
        diagnose(tmp_path, HEAD, 64)


def test_a_student_as_wide_as_its_teacher_is_expected_to_lose_nothing() -> None:
    diagnosis = diagnose(dataclasses.replace(falling_to(0.29, 0.3), width=256), HEAD)
    assert (diagnosis.bound, diagnosis.expected, diagnosis.verdict) == (0.0, 0.0, "stalled above the expected loss")


def test_other_students_of_the_run_narrow_the_expected_loss_but_not_the_student_itself() -> None:
    head = made_head(expected=0.3, bound=0.1)
    losses = (0.6, 0.3, 0.17)
    fit = fit_line(np.array([3.0, 2.0, 1.0]), np.array(losses))
    statuses: tuple[Literal["given"], ...] = ("given",) * 3
    nulls = {"1/width": 0.1}
    calibration = Calibration("made", "", "nats", (64, 96, 128), losses, statuses, "head", {"head": fit}, nulls, 0.1)
    floor = dataclasses.replace(FloorPrediction.from_head(head), calibration=calibration)
    own = StudentResult("width64", "made", 64, 2, 9, (10, 20), (0.7, 0.6), 0.6, (0.0, 0.6), "under-trained", 9)
    diagnosis = diagnose(own, floor)
    assert diagnosis.expected == pytest.approx(floor.expected_at(64, 0.95, {96: 0.3, 128: 0.17}).value)
    assert diagnosis.warnings == ()
    assert diagnosis.curve == "width64"
    assert diagnose(dataclasses.replace(own, teacher="another"), floor).warnings == (
        "the teacher of width64 is another, and the prediction is for made: unless both are one model, the verdict is"
        " wrong",
    )
    never = dataclasses.replace(own, tokens=(), losses=(), status="diverged")
    with pytest.raises(InputError, match="student width64 diverged before its first evaluation"):
        diagnose(never, floor)


def test_a_student_whose_training_diverged_is_not_under_trained() -> None:
    """Its held-out losses fell until then."""
    own = student_of(falling_to(0.2, 0.3), status="diverged", settings={"diverged": "at step 300 (loss nan)"})
    diagnosis = diagnose(own, HEAD)
    assert diagnosis.sentence == "not known: the training diverged at step 300 (loss nan); lower the learning rate"
    assert diagnosis.end is None
    assert diagnose(student_of(falling_to(0.2, 0.3)), HEAD).verdict == "under-trained"


def test_other_students_of_an_older_calibration_may_lose_less_than_their_width_allows() -> None:
    """Their curves were extrapolated to 0.15 nats, and width 8 allows 0.18 at least."""
    floor = FloorPrediction.from_head(made_head_floor())
    older = dataclasses.replace(calibrate(floor, {4: 0.6, 8: 0.4, 16: 0.14}), losses=(0.6, 0.15, 0.14))
    floor = floor.calibrated_by(older)
    diagnosis = diagnose(student_of(falling_to(0.12, 0.15), width=16), floor)
    narrower = dataclasses.replace(older, widths=(4, 8), losses=(0.6, 0.15), statuses=older.statuses[:2], log_errors=())
    expected = dataclasses.replace(floor, calibration=narrower).expected_at(16)
    assert (diagnosis.expected, *diagnosis.expected_interval) == pytest.approx(tuple(expected))


def test_other_students_whose_losses_do_not_fall_with_the_width_are_not_used() -> None:
    """Without the student of width 16 the losses rise. A calibration does not use such losses either."""
    floor = FloorPrediction.from_head(made_head_floor())
    calibration = calibrate(floor, {4: 0.9, 8: 0.6, 16: 0.7})
    floor = floor.calibrated_by(calibration)
    assert list(floor.student_losses) == [4, 8, 16]
    student = student_of(falling_to(0.8, 0.9), width=4)
    assert diagnose(student, floor).expected == pytest.approx(floor.expected_at(4, losses={}).value)


def test_a_curve_that_is_flat_because_of_its_schedule_is_not_at_its_end() -> None:
    """The learning rate falls linearly to 0, and the loss is a power law of its sum, of which 15 % are left."""
    share = np.arange(1, 26) / 25
    rates = 1 - share + 1e-3
    trained = 1 - (1 - share) ** 2
    losses = 0.3 * (0.85 + 0.15 * np.maximum(trained, 1e-3) ** -0.5)
    curve = LearningCurve(tuple((share * 1e6).tolist()), tuple(losses.tolist()), width=64)
    assert diagnose(curve, HEAD).verdict == "capacity-limited"
    with_rates = diagnose(dataclasses.replace(curve, learning_rates=tuple(rates.tolist())), HEAD)
    assert with_rates.verdict == "under-trained"
    # Half of the rest needs 4 times the 0.5 M tokens that were trained on, counted at the highest rate.
    assert with_rates.tokens_for_half is not None
    assert 0.7e6 < with_rates.tokens_for_half < 5e6


def test_many_noisy_points_are_averaged() -> None:
    """The training log has 5,000 points with noise of 5 %."""
    tokens = np.arange(1.0, 5001.0) * 1000
    losses = 0.2 + 0.1 * (tokens / tokens[-1]) ** -0.5
    noisy = losses * (1 + 0.05 * np.random.default_rng(0).standard_normal(5000))
    diagnosis = diagnose(LearningCurve(tuple(tokens), tuple(noisy), width=64), HEAD)
    assert diagnosis.verdict == "under-trained"
    assert len(diagnosis.losses) <= 200
    assert diagnosis.reached == pytest.approx(0.3, abs=0.01)


def judged(kind: Kind, seed: int) -> tuple[float, Diagnosis]:
    """Return the share of a simulated training's loss that is left, and its diagnosis."""
    losses, end = simulated_curve(kind, seed)
    curve = LearningCurve(tuple((POINTS * 4096.0).tolist()), tuple(losses.tolist()), width=64)
    head = made_head(expected=max(end, 0.02), bound=end / 4)
    return 1 - end / float(losses[-1]), diagnose(curve, head)


def count_verdicts(kinds: Sequence[Kind], seeds: range) -> Counter[str]:
    """Return how many verdicts are right, not known and wrong."""
    counts: Counter[str] = Counter()
    for kind in kinds:
        for seed in seeds:
            left, diagnosis = judged(kind, seed)
            right = "under-trained" if left > 0.1 else "capacity-limited"
            is_known = "wrong" if diagnosis.verdict != "not known" else "not known"
            counts["right" if diagnosis.verdict == right else is_known] += 1
    return counts


def test_verdicts_on_simulated_trainings_are_right() -> None:
    """Of 40 verdicts at least 36 are right; benchmarks/diagnose.py judges more, with as many of either kind."""
    counts = count_verdicts(get_args(Kind), range(1000, 1010))
    assert counts["right"] >= 36, counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Kind))
def test_verdicts_on_many_simulated_trainings_are_right(kind: Kind) -> None:
    """Of 100 verdicts at least 90 are right, and at most 5 are wrong."""
    counts = count_verdicts([kind], range(2000, 2100))
    assert counts["right"] >= 90, counts
    assert counts["wrong"] <= 5, counts
