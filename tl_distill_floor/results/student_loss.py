"""`StudentLoss`: the loss of a trained student with its error, and checks of losses that a user gives."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np

from tl_distill_floor.errors import InputError, as_integer

LOSS_ADVICE = "check that it is KL(teacher ‖ student) at temperature 1, in nats, as the mean over held-out tokens"
"""What to check in a loss that is not possible."""


class StudentLoss(NamedTuple):
    """Loss of a trained student, and how well it is known."""

    loss: float
    """L∞ of its learning curve, nats per token."""
    log_error: float | None = None
    """Standard error of log L∞; None if it is not known, then that of a typical student is assumed."""


def as_student_loss(loss: StudentLoss | float) -> StudentLoss:
    """Return a loss with its error, which is not known if the loss is a number.

    Args:
        loss: nats per token.

    Raises:
        InputError: the loss is not a finite number above 0, or its error is negative or not finite.

    Example:
        >>> as_student_loss(0.2)
        StudentLoss(loss=0.2, log_error=None)
    """
    student = loss if isinstance(loss, StudentLoss) else StudentLoss(loss)
    value, error = student
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"a student's loss must be a number above 0, in nats per token, got {value!r:.40}")
    if error is not None and not (isinstance(error, Real) and 0 <= error < math.inf):
        raise InputError(f"the log_error of a student's loss must be a number of at least 0, got {error!r:.40}")
    return StudentLoss(float(value), error if error is None else float(error))


def as_student_losses(losses: Mapping[int, StudentLoss | float]) -> dict[int, StudentLoss]:
    """Return the losses of students by width, in rising order of width.

    Args:
        losses: loss of a student of each width, nats per token. A width may be a string of digits, as in JSON.

    Raises:
        InputError: a width is not an integer above 0, or is given twice, or see `as_student_loss`.

    Example:
        >>> as_student_losses({64: 0.2, 16: StudentLoss(0.9, 0.03)})
        {16: StudentLoss(loss=0.9, log_error=0.03), 64: StudentLoss(loss=0.2, log_error=None)}
    """
    if not isinstance(losses, Mapping):
        raise InputError(f"losses must be given as {{width: loss in nats per token}}, got a {type(losses).__name__}")
    by_width = {}
    for given, loss in losses.items():
        is_text = isinstance(given, str) and given.isdecimal()
        width = as_integer("a student's width", int(given) if is_text else given, 1)
        if width in by_width:
            raise InputError(f"there are two losses at width {width}; give their mean")
        by_width[width] = as_student_loss(loss)
    return dict(sorted(by_width.items()))


def refuse_impossible(
    losses: Mapping[int, StudentLoss], least_at: Callable[[int], float], vocab_size: int | None
) -> None:
    """Raise an InputError if losses are below what the width allows, above equal probabilities, or rise with the width.

    Args:
        losses: losses of students of one teacher.
        least_at: the least loss at a width, nats per token.
        vocab_size: tokens of the vocabulary; None if it is not known.
    """
    most = math.inf if vocab_size is None else math.log(vocab_size)
    for width, student in losses.items():
        if student.loss > most:
            raise InputError(
                f"a loss of {student.loss:.4g} at width {width} is more than that of equal probabilities, {most:.3g}"
                f" nats; {LOSS_ADVICE}"
            )
        if student.loss < least_at(width):
            raise InputError(
                f"a loss of {student.loss:.4g} at width {width} is less than its logits allow, about"
                f" {least_at(width):.3g} nats; {LOSS_ADVICE}"
            )
    if not falls_with_width(losses):
        raise InputError(
            f"losses do not fall with the width ({_listed(losses)}); leave them out, or train the wider students longer"
        )


def falls_with_width(losses: Mapping[int, StudentLoss]) -> bool:
    """Return whether losses fall with the width, by the slope over log width; True for a single width.

    Example:
        >>> falls_with_width({8: StudentLoss(0.2), 16: StudentLoss(0.5)})
        False
    """
    if len(losses) < 2:
        return True
    x = np.log(list(losses))
    y = np.log([max(student.loss, 1e-12) for student in losses.values()])
    return float((x - x.mean()) @ y) < 0


def mean_loss(students: Sequence[StudentLoss]) -> StudentLoss:
    """Return the mean loss of students of the same width, and its error if all of theirs are known.

    Students of one width learn alike, so an extrapolation is wrong in the same way for all of them: their errors are
    added, as a mean over more students does not reduce them.

    Args:
        students: at least one.

    Example:
        >>> round(mean_loss([StudentLoss(0.1, 0.3), StudentLoss(0.3, 0.4)]).log_error, 3)
        0.375
    """
    total = sum(student.loss for student in students)
    errors = [student.log_error * student.loss for student in students if student.log_error is not None]
    is_known = len(errors) == len(students) and total > 0
    return StudentLoss(total / len(students), sum(errors) / total if is_known else None)


def _listed(losses: Mapping[int, StudentLoss]) -> str:
    """Return losses and widths as one line."""
    return ", ".join(f"{student.loss:.4g} at {width}" for width, student in losses.items())
