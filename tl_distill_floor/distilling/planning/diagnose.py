"""`diagnose`: tell whether the loss of a student is limited by its width or by its training."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from tl_distill_floor.annotations import Verdict
from tl_distill_floor.distilling.training.learning_rates import rates_of_student
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.measuring.reloading import check_teacher_of_students
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.diagnosis import Diagnosis
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.student import StudentResult, other_teachers
from tl_distill_floor.sources.learning_curves import LearningCurve, load_learning_curve
from tl_distill_floor.theory.learning_curve import ROUNDING, has_diverged, with_misfit
from tl_distill_floor.theory.rate_schedule import tokens_by_rate
from tl_distill_floor.theory.regression import PredictedLoss
from tl_distill_floor.theory.remaining_loss import (
    MIN_POINTS,
    MIN_SPAN,
    RemainingLoss,
    average_in_bins,
    is_fitted,
    remaining_loss,
)

UNDER_TRAINED_SHARE = 0.1
"""A student is under-trained if more tokens would remove more than this share of its loss."""
UNDER_TRAINED_FROM, SATURATED_UP_TO = 0.75, 0.55
"""Probabilities that more than this share is left: from the first one on the verdict is "under-trained", up to the
second one the curve is at its end, and between them the verdict is not known."""
LEVEL = 0.95
"""Level of the prediction interval of the expected loss."""
VERDICTS_AT_THE_END = ("capacity-limited", "stalled above the expected loss")
"""Verdicts on curves that are at their end: hardly anything is left to gain."""
MOST_TOKENS = 100.0
"""Multiples of the tokens so far up to which the tokens for half of what is left are stated."""
LOSS_REQUIREMENTS = "temperature 1, forward direction, the mean over all tokens, no masked or padded ones"
"""What a loss must be for a verdict on it."""


def diagnose(
    curve: str | Path | LearningCurve | StudentResult,
    floor: FloorPrediction | HeadFloor,
    width: int | None = None,
) -> Diagnosis:
    """Tell whether a student's loss is limited by its width, or by its training.

    What is left is the share of the reached loss that more tokens would remove; see `theory.remaining_loss`. The
    verdicts:

    - "under-trained": the probability that more than a tenth is left is at least 75 %.
    - "capacity-limited": that probability is at most 55 %, and the end is not above the 95 % prediction interval of
      students of this width. A wider student is needed.
    - "stalled above the expected loss": that probability is at most 55 %, and the end is above that interval. Neither
      the width nor the tokens explain it.
    - "below what the width allows": the loss is below the head floor, so it is not KL(teacher ‖ student) in nats per
      token.
    - "not known": the curve is too short, it rises or the training diverged, or it leaves open which of the first two
      holds.

    Args:
        curve: learning curve on held-out text, a student of `distill`, or what `load_learning_curve` reads.
        floor: prediction for the teacher, with a head floor.
        width: width of the student, dimensions; that of the curve if None.

    Returns:
        The verdict with the losses behind it.

    Raises:
        InputError: the width is not known or above the teacher's, there is no head floor at this width, the student
            has other weights of the teacher, or the losses are above those of a student that knows nothing.

    Example:
        >>> head = head_floor("EleutherAI/pythia-410m", widths=[256])  # doctest: +SKIP
        >>> diagnose("outputs/student/trainer_state.json", head, width=256).sentence  # doctest: +SKIP
    """
    student = curve if isinstance(curve, StudentResult) else None
    curve = _loaded(curve)
    floor = FloorPrediction.from_head(floor) if isinstance(floor, HeadFloor) else floor
    if student is not None:
        check_teacher_of_students(floor, [student])
    head = floor.head_floor
    width = _checked_width(curve, head, width)
    tokens, losses = average_in_bins(np.array(curve.tokens), np.array(curve.losses))
    reached, bound = float(losses[-1]), head.floor_at(width)
    _check_unit(curve, reached, head)
    expected = _expected(floor, width, student)
    least = head.least_at(width)
    diverged_at = None if student is None else student.settings.get("diverged")
    end = None if diverged_at else _end_of(curve, losses, bound if reached > bound else least)
    if reached < least:
        verdict, reason = _below(reached, bound, width)
    elif diverged_at:
        verdict, reason = "not known", f"the training diverged {diverged_at}; lower the learning rate"
    elif end is None:
        verdict, reason = "not known", _why_not_known(curve, tokens, losses, least)
    else:
        verdict, reason = _verdict(end, width, expected)
    return Diagnosis(
        curve=curve.name,
        teacher=head.model_name,
        width=width,
        verdict=verdict,
        reason=reason,
        reached=reached,
        bound=bound,
        expected=expected.value,
        expected_interval=(expected.low, expected.high),
        end=None if end is None else end.loss,
        end_interval=(min(bound, reached), reached) if end is None else end.interval,
        half_factor=None if end is None else 1.0 + end.tokens_for_half / float(tokens[-1]),
        tokens=tuple(tokens.tolist()),
        losses=tuple(losses.tolist()),
        warnings=(*curve.warnings, *_warnings(curve, student, head.model_name, verdict, reached, expected)),
    )


class _End(NamedTuple):
    """Where a learning curve ends."""

    loss: float
    """Median of the loss at which it saturates, nats per token."""
    interval: tuple[float, float]
    """95 % interval of that loss."""
    most_left: float
    """Share of the reached loss that is left to gain at the lower end of the interval."""
    left: RemainingLoss
    """Distribution of the share of the reached loss that is left to gain."""
    tokens_for_half: float
    """More tokens, at the highest learning rate so far, after which half of it is gained."""
    tokens: float
    """Tokens so far, weighted by their learning rate; see `tokens_by_rate`."""


def _end_of(curve: LearningCurve, losses: Float64[np.ndarray, " point"], bound: float) -> _End | None:
    """Return where a curve of averaged `losses` ends, at least at `bound`; None if they rise, are 0, or too few."""
    reached = float(losses[-1])
    if reached <= ROUNDING or has_diverged(losses):
        return None
    tokens = _fitted_tokens(curve)
    rates = None if curve.learning_rates is None else average_in_bins(tokens, np.array(curve.learning_rates))[1]
    left = remaining_loss(*average_in_bins(tokens, np.array(curve.losses)), bound, rates)
    if left is None:
        return None
    share = 1.0 - left.quantile(0.5)
    low, high = with_misfit(left.end_interval(), share, 1.0)
    interval, last = (max(reached * low, bound), reached * high), float(tokens[-1])
    most_left = max(1.0 - interval[0] / reached, 0.0)
    return _End(reached * share, interval, most_left, left, (left.half_factor - 1.0) * last, last)


def _fitted_tokens(curve: LearningCurve) -> Float64[np.ndarray, " point"]:
    """Return the tokens of each point to which a curve is fitted: by their learning rate, if it is known."""
    tokens = np.array(curve.tokens)
    return tokens if curve.learning_rates is None else tokens_by_rate(tokens, np.array(curve.learning_rates))


def _loaded(curve: str | Path | LearningCurve | StudentResult) -> LearningCurve:
    """Return a learning curve from a file, a student or memory.

    Raises:
        InputError: the file cannot be read, the student diverged before its first evaluation, or its learning rates
            are not known.
    """
    if isinstance(curve, LearningCurve):
        return curve
    if not isinstance(curve, StudentResult):
        return load_learning_curve(curve)
    if not curve.tokens:
        raise InputError(f"student {curve.name} diverged before its first evaluation; train it with a lower --lr")
    tokens = tuple(float(count) for count in curve.tokens)
    rates = rates_of_student(curve)
    return LearningCurve(tokens, curve.losses, name=curve.name, width=curve.width, learning_rates=rates)


def _checked_width(curve: LearningCurve, head: HeadFloor, width: int | None) -> int:
    """Return the width of the student.

    Raises:
        InputError: it is not known, no integer, or out of range, or contradicts that of the curve.
    """
    width = None if width is None else as_integer("width", width)
    is_of_teacher = bool(curve.width_file) and curve.width == head.d_model
    if width is None and is_of_teacher:
        raise InputError(
            f"{curve.width_file} has the teacher's width, {head.d_model}, so it may be the teacher's; give that of"
            " the student with --width"
        )
    if width is None and curve.width is None:
        raise InputError(f"{curve.name} does not say how wide the student is; set --width")
    if width is not None and curve.width is not None and width != curve.width and not is_of_teacher:
        other = f", or move the curve away from {curve.width_file} of another model" if curve.width_file else ""
        raise InputError(f"the student of {curve.name} has width {curve.width}, not {width}; leave out --width{other}")
    chosen = curve.width if width is None else width
    assert chosen is not None
    if not 1 <= chosen <= head.d_model:
        raise InputError(
            f"a student's width must be from 1 to its teacher's {head.d_model} ({head.model_name}), got {chosen}"
        )
    return chosen


def _check_unit(curve: LearningCurve, reached: float, head: HeadFloor) -> None:
    """Raise an InputError if the last loss is above that of a student whose output is uniform."""
    if reached > (most := math.log(head.vocab_size)):
        raise InputError(
            f"the last loss of {curve.name}, {reached:.4g}, is above {most:.3g} nats per token, what a uniform guess"
            f" over {head.vocab_size:,} tokens loses at most; divide a sum over positions or sequences by their tokens"
        )


def _expected(floor: FloorPrediction, width: int, student: StudentResult | None) -> PredictedLoss:
    """Return the expected loss; students of the run's calibration narrow its interval, but not the one in question."""
    if student is not None and floor.calibration is not None:
        floor = dataclasses.replace(floor, calibration=_without_width(floor.calibration, width))
    return floor.expected_at(width, LEVEL)


def _without_width(calibration: Calibration, width: int) -> Calibration:
    """Return a calibration without its students of one width; its fits stay."""
    others = [i for i, other in enumerate(calibration.widths) if other != width]
    return dataclasses.replace(
        calibration,
        widths=tuple(calibration.widths[i] for i in others),
        losses=tuple(calibration.losses[i] for i in others),
        statuses=tuple(calibration.statuses[i] for i in others),
        log_errors=tuple(calibration.log_errors[i] for i in others) if calibration.log_errors else (),
    )


def _below(reached: float, bound: float, width: int) -> tuple[Verdict, str]:
    """Return the verdict on a loss below the bound, and its reason in one sentence."""
    return "below what the width allows", (
        f"{reached:.4g} is less than the {bound:.4g} that any student of width {width:,} loses, so this is not"
        f" KL(teacher ‖ student) in nats per token; check the loss: {LOSS_REQUIREMENTS}"
    )


def _verdict(end: _End, width: int, expected: PredictedLoss) -> tuple[Verdict, str]:
    """Return the verdict on a loss whose end is known, and its reason in one sentence."""
    probability = end.left.probability_above(UNDER_TRAINED_SHARE)
    share = f"about {end.left.quantile(0.5):.0%} of the loss"
    if probability >= UNDER_TRAINED_FROM:
        return "under-trained", f"{share} is left to gain, half of it with {_tokens_for_half(end)}"
    if probability > SATURATED_UP_TO:
        return "not known", (
            f"{share} is left to gain, and at most {end.most_left:.0%}: the curve leaves open whether that"
            f" is more than {UNDER_TRAINED_SHARE:.0%}; train longer"
        )
    if end.loss > expected.high:
        return "stalled above the expected loss", (
            f"more tokens would remove {share}, and the width explains at most {expected.high:.4g}; check the learning"
            f" rate, the text, the number of layers, and the loss: KL alone, in nats, {LOSS_REQUIREMENTS}"
        )
    return "capacity-limited", (
        f"more tokens would remove {share}, and what remains is within what students of width {width:,} lose; choose a"
        " wider one"
    )


def _why_not_known(
    curve: LearningCurve, tokens: Float64[np.ndarray, " point"], losses: Float64[np.ndarray, " point"], least: float
) -> str:
    """Return why the end of a curve, whose points are averaged, is not known; `least` is the bound's lower end."""
    lowest = int(losses.argmin())
    if losses[-1] <= ROUNDING:
        return "the loss is 0 up to rounding, so the student equals its teacher and nothing is left to gain"
    if has_diverged(losses):
        return (
            f"the loss rose from {losses[lowest]:.4g} after {_rounded(tokens[lowest])} tokens to {losses[-1]:.4g};"
            " lower the learning rate, or add text if it is repeated"
        )
    if losses[-1] <= least:
        return "the loss is the least that the bound allows, so nothing is left to gain"
    fitted = average_in_bins(_fitted_tokens(curve), np.array(curve.losses))[0]
    fitted = fitted[is_fitted(fitted)]
    span = f", over a factor of {fitted[-1] / fitted[0]:.3g} in tokens" if len(fitted) > 1 else ""
    points = "points" if len(losses) == len(curve.losses) else "averaged points"
    return (
        f"the curve has {len(losses)} {points}, {len(fitted)} of them between 10 % and 80 % of its tokens{span}; at"
        f" least {MIN_POINTS} are needed there, over a factor of {MIN_SPAN:g}"
        + ("" if curve.learning_rates is None else ", where tokens count by their learning rate")
    )


def _tokens_for_half(end: _End) -> str:
    """Return after how many more tokens half of what is left is gained."""
    if end.tokens_for_half > MOST_TOKENS * end.tokens:
        return f"more than {MOST_TOKENS:g} times the tokens so far"
    return f"about {_rounded(end.tokens_for_half)} more tokens"


def _rounded(tokens: float) -> str:
    """Return a number of tokens with two digits."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.2g} {name}" if tokens < 99.5 * size else f"{tokens / size:.0f} {name}"
    return f"{tokens:.0f}"


def _warnings(
    curve: LearningCurve,
    student: StudentResult | None,
    teacher: str,
    verdict: Verdict,
    reached: float,
    expected: PredictedLoss,
) -> list[str]:
    """Return what to keep in mind about the losses and the verdict."""
    others = None if student is None else other_teachers([student], teacher)
    warnings = [] if others is None else [f"{others}: unless both are one model, the verdict is wrong"]
    if student is None and verdict != "below what the width allows":
        warnings.append(
            f"the loss is taken as KL(teacher ‖ student) in nats per token on held-out text: {LOSS_REQUIREMENTS}"
        )
    if student is None and curve.learning_rates is None and verdict in VERDICTS_AT_THE_END:
        warnings.append(
            "the curve has no learning rate: if it decayed over more than the last fifth of the training, the loss may"
            " be flat because of that"
        )
    if verdict != "below what the width allows" and reached < expected.low:
        warnings.append(
            f"the loss is below the 95 % interval of students of this width, which starts at {expected.low:.4g}: check"
            " it"
        )
    return warnings
