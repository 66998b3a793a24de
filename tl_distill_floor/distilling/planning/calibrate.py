"""`calibrate`: fit predicted floors to the losses of trained students."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import curve_fit

from tl_distill_floor.annotations import Predictor, StudentStatus
from tl_distill_floor.distilling.training.learning_rates import fitted_with_rates
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.reloading import check_teacher_of_students
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.expected_loss import SMALLEST_LOSS
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.student import StudentResult, other_teachers
from tl_distill_floor.results.student_loss import StudentLoss, as_student_losses, refuse_impossible
from tl_distill_floor.theory.learning_curve import log_error
from tl_distill_floor.theory.regression import LinearFit, fit_line, leave_one_out_error

PLAIN = dataclasses.asdict(Objective())
"""Objective of students whose losses are compared."""
MIN_WIDTHS = 3
"""Fewest widths for a linear fit with a leave-one-width-out error."""
MIN_WIDTHS_FOR_POWER_LAW = 5
"""Fewest widths for a power law with an offset, which has three parameters."""


class ObservedLoss(NamedTuple):
    """Loss of one trained student."""

    width: int
    """Dimensions."""
    loss: float
    """Floor of the learning curve, or the loss that was given; nats per token."""
    status: StudentStatus | Literal["given"]
    """How its training ended; "given" if only the loss was given."""
    n_parameters: int | None
    """Number of parameters; None if only the loss was given."""
    log_error: float | None
    """Standard error of the logarithm of the loss; None if only the loss was given."""


def calibrate(
    floor: FloorPrediction, students: Sequence[StudentResult] | Mapping[int, StudentLoss | float]
) -> Calibration:
    """Fit L = C · floor + B to the losses at which trained students saturate (Sarkar and Deka 2026, sec. 5).

    Every predictor is fitted. The best one predicts the loss of each width most accurately from the fit to the other
    widths. Null models that use no features are judged in the same way: linear fits to 1/width and to the logarithm of
    the parameters, and, with at least five widths, the power law with an offset of distillation scaling laws (Busbridge
    et al. 2025, eq. 8, for one teacher and saturated data).

    Args:
        floor: prediction for the students' teacher.
        students: results of `distill`; or {width: loss in nats per token}, numbers or `StudentLoss`. Of results, those
            that diverged, lose nothing or less than their width allows, have another depth than most, or are copies of
            others are left out with a warning.

    Returns:
        The fit of every predictor, and the errors of the null models. Losses that do not fall with the width are
        fitted too, with a warning. `plan` does not use a calibration whose C is not above 0.

    Raises:
        InputError: there are fewer than three widths, a width is below 1, above the teacher's or, without an SAE, below
            the narrowest that was measured, or a student has another teacher or a schedule that is not known; or a loss
            that is given is below what its width allows, or above that of equal probabilities.

    Example:
        >>> calibration = calibrate(floor, {64: 0.41, 128: 0.22, 256: 0.13})  # doctest: +SKIP
        >>> calibration.slope, calibration.baseline, calibration.loo_error  # doctest: +SKIP
    """
    observed, warnings = _observed_losses(floor, students)
    _check_widths(observed, floor.d_model)
    widths = np.array([student.width for student in observed])
    losses = np.array([student.loss for student in observed])
    n_widths = len(set(widths.tolist()))
    if n_widths < MIN_WIDTHS:
        raise InputError(
            f"calibrating needs students of at least {MIN_WIDTHS} widths, got {n_widths}"
            f"{''.join(f' ({warning})' for warning in warnings)}; distil more with tl-floor distill --widths"
        )
    fits = _fits(floor, widths, losses)
    best = min(fits, key=lambda predictor: (not fits[predictor].rises, fits[predictor].loo_error))
    warnings += _rise_warnings(observed)
    if not fits[best].rises:
        warnings.append(
            f"the losses do not fall where the predicted floor falls (C is {fits[best].slope:.3g}), so nothing is"
            " predicted from them; train the wider students longer"
        )
    return Calibration(
        teacher=floor.model_name,
        stats=floor.digest,
        unit=floor.unit,
        widths=tuple(widths.tolist()),
        losses=tuple(losses.tolist()),
        statuses=tuple(student.status for student in observed),
        predictor=best,
        predictors=fits,
        nulls=_null_errors(widths.astype(float), losses, [student.n_parameters for student in observed]),
        at_teacher_width=fits[best].at(floor.predicted(best, floor.d_model)).value,
        warnings=tuple(warnings),
        log_errors=tuple(student.log_error for student in observed),
        depth=None if isinstance(students, Mapping) else _depth_of(students),
    )


def _check_widths(observed: Sequence[ObservedLoss], d_model: int) -> None:
    """Raise an InputError if a student's width is below 1 or above its teacher's."""
    wrong = [str(student.width) for student in observed if not 1 <= student.width <= d_model]
    if wrong:
        raise InputError(
            f"a student's width must be from 1 to its teacher's {d_model} dimensions, got {', '.join(wrong)}; leave"
            " these students out"
        )


def _rise_warnings(observed: Sequence[ObservedLoss]) -> list[str]:
    """Return a warning if students lose as much as those of the next smaller width, or more."""
    losses: dict[int, list[float]] = {}
    for student in observed:
        losses.setdefault(student.width, []).append(student.loss)
    means = {width: float(np.mean(of_width)) for width, of_width in sorted(losses.items())}
    rises = [
        f"from {means[narrow]:.4g} at width {narrow} to {means[wide]:.4g} at width {wide}"
        for narrow, wide in pairwise(means)
        if means[wide] >= means[narrow]
    ]
    if not rises:
        return []
    return [f"losses rise with the width, {', '.join(rises)}; train the wider students longer"]


def _fits(
    floor: FloorPrediction, widths: np.ndarray, losses: Float64[np.ndarray, " student"]
) -> dict[Predictor, LinearFit]:
    """Return the linear fit of every predictor that `floor` has."""
    # Without features the head floor is the only predictor. It refuses widths below the narrowest that was measured.
    has_head = floor.head is not None and (floor.stats is None or int(widths.min()) >= floor.head.widths[0])
    is_known: dict[Predictor, bool] = {
        "theorem": floor.stats is not None,
        "independent": floor.stats is not None,
        "simulated": floor.simulated is not None,
        "head": has_head,
    }
    predictions = {
        name: np.array([floor.predicted(name, int(width)) for width in widths])
        for name, known in is_known.items()
        if known
    }
    return {name: fit_line(prediction, losses, widths) for name, prediction in predictions.items()}


def _observed_losses(
    floor: FloorPrediction, students: Sequence[StudentResult] | Mapping[int, StudentLoss | float]
) -> tuple[list[ObservedLoss], list[str]]:
    """Return (losses in ascending order of width, warnings)."""
    if isinstance(students, Mapping):
        given = as_student_losses(students)
        if floor.head is not None and floor.unit == "nats":
            _check_given(floor.head, given)
        return [ObservedLoss(w, s.loss, "given", None, s.log_error) for w, s in given.items()], []
    if not all(isinstance(student, StudentResult) for student in students):
        raise InputError("students must be results of distill, or losses as {width: loss in nats per token}")
    check_students_teacher(floor, students)
    used, warnings = _usable(floor, students)
    _warn_of_settings(used, warnings)
    if too_low := [student.name for student in used if student.floor < _least_loss(floor, student.width)]:
        warnings.append(
            "their curves are extrapolated to less than their widths allow, so the least loss of these widths is used:"
            f" {', '.join(too_low)}; train longer"
        )
    observed = [
        ObservedLoss(
            width=student.width,
            loss=max(student.floor, _least_loss(floor, student.width)),
            status=student.status,
            n_parameters=student.n_parameters,
            log_error=log_error(student.floor, student.interval),
        )
        for student in used
    ]
    return observed, warnings


def _least_loss(floor: FloorPrediction, width: int) -> float:
    """Return the least loss of students of a width, nats per token; 0 if no head floor tells."""
    head = floor.head
    return 0.0 if head is None or floor.unit != "nats" or width >= head.d_model else head.least_at(width)


def _usable(floor: FloorPrediction, students: Sequence[StudentResult]) -> tuple[list[StudentResult], list[str]]:
    """Return (the students that a fit can use, in ascending order of width; warnings about the others)."""
    depth = _depth_of(students)
    reasons: dict[str, list[str]] = {}
    used: list[StudentResult] = []
    for student in sorted(map(fitted_with_rates, students), key=lambda student: student.width):
        reason = _reason_to_leave_out(floor, student, depth)
        if any(_are_copies(student, other) for other in used):
            reason = "they are copies of others"
        if reason is None:
            used.append(student)
        else:
            reasons.setdefault(reason, []).append(student.name)
    return used, [f"left out because {reason}: {', '.join(names)}" for reason, names in reasons.items()]


def _reason_to_leave_out(floor: FloorPrediction, student: StudentResult, depth: int) -> str | None:
    """Return why a student cannot be used in a fit; None if it can."""
    if student.status == "diverged":
        return "they diverged"
    if student.depth != depth:
        return f"they have other numbers of layers than {depth}"
    if student.loss <= SMALLEST_LOSS:
        return "they equal their teacher"
    if student.floor <= 0:
        return "their learning curves do not bend yet (train longer)"
    if student.loss < _least_loss(floor, student.width):
        return "they lose less than their width allows (is the held-out text part of their training?)"
    return None


def _are_copies(student: StudentResult, other: StudentResult) -> bool:
    """Return whether two students have the same learning curve, as a directory and its copy have."""
    return (student.width, student.tokens, student.losses) == (other.width, other.tokens, other.losses)


def _depth_of(students: Sequence[StudentResult]) -> int:
    """Return the number of layers of most students; the larger one of two that are equally frequent."""
    depths = [student.depth for student in students]
    return max(depths, key=lambda depth: (depths.count(depth), depth), default=0)


def _warn_of_settings(students: Sequence[StudentResult], warnings: list[str]) -> None:
    """Add warnings about students whose loss is not that at the end of a training on KL(teacher ‖ student)."""
    under_trained = [student.name for student in students if student.status == "under-trained"]
    if under_trained:
        warnings.append(f"not saturated, so their floors are extrapolated or not known: {', '.join(under_trained)}")
    not_known = [student.name for student in students if not student.floor_is_known]
    if not_known:
        warnings.append(
            f"their floors are not known, so the losses that they reached are used: {', '.join(not_known)}; train"
            " longer"
        )
    other = [student.name for student in students if (student.settings.get("objective") or PLAIN) != PLAIN]
    if other:
        warnings.append(f"trained on another loss than KL(teacher ‖ student) at temperature 1: {', '.join(other)}")


def _check_given(head: HeadFloor, losses: Mapping[int, StudentLoss]) -> None:
    """Raise an InputError if a loss that the user gave is impossible at its width."""
    for width, loss in losses.items():
        if width < head.d_model:
            refuse_impossible({width: loss}, head.least_at, head.vocab_size)


def check_students_teacher(floor: FloorPrediction, students: Sequence[StudentResult]) -> None:
    """Raise an InputError if a student has another teacher than the prediction.

    That is: one of another name, or other weights, if the run in which the student was distilled has a measurement.
    """
    others = other_teachers(students, floor.model_name)
    if others is not None:
        raise InputError(f"{others}; give students of {floor.model_name}")
    check_teacher_of_students(floor, students)


def _null_errors(
    widths: Float64[np.ndarray, " student"],
    losses: Float64[np.ndarray, " student"],
    n_parameters: Sequence[int | None],
) -> dict[str, float]:
    """Return the leave-one-width-out error of every null model, as a share of the mean loss."""
    has_parameters = None not in n_parameters
    sizes = np.array(n_parameters, dtype=np.float64) if has_parameters else widths
    errors = {
        "1/width": leave_one_out_error(1.0 / widths, losses, widths),
        "log size" if has_parameters else "log width": leave_one_out_error(np.log(sizes), losses, widths),
    }
    if len(set(widths.tolist())) >= MIN_WIDTHS_FOR_POWER_LAW:
        power_law_error = _power_law_error(sizes, losses, widths)
        if power_law_error is not None:
            errors["power law"] = power_law_error
    return errors


def _power_law_error(
    sizes: Float64[np.ndarray, " student"],
    losses: Float64[np.ndarray, " student"],
    widths: Float64[np.ndarray, " student"],
) -> float | None:
    """Return the leave-one-width-out error of L = E + A · size^-b, or None if a fit does not converge."""
    scaled, errors = sizes / np.exp(np.log(sizes).mean()), []
    start = (0.5 * losses.min(), losses.mean(), 0.5)
    for width in np.unique(widths):
        left_out = widths == width
        try:
            parameters, _ = curve_fit(
                _power_law, scaled[~left_out], losses[~left_out], p0=start, bounds=(0, np.inf), maxfev=20_000
            )
        except RuntimeError:
            return None
        errors += np.abs(_power_law(scaled[left_out], *parameters) - losses[left_out]).tolist()
    return float(np.mean(errors)) / float(losses.mean())


def _power_law(
    size: Float64[np.ndarray, " student"], offset: float, amplitude: float, exponent: float
) -> Float64[np.ndarray, " student"]:
    losses: Float64[np.ndarray, " student"] = offset + amplitude * size**-exponent
    return losses
