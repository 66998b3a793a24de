"""The loss that a trained student is expected to reach, from students of other teachers and, if any, of its own."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64

from tl_distill_floor.theory.random_intercept import RandomInterceptFit
from tl_distill_floor.theory.regression import PredictedLoss

LossPredictor: TypeAlias = Literal["head", "head and simulated"]
"""What the expected loss is computed from: "head" is the loss of the head floor whose coordinates are encoded; "head
and simulated" is the sum of that and the simulated floor of a layer."""
EXPECTED_LOSS_FILE = "expected_loss.json"
WITH_KNOWN_SHARE = ", known share"
"""Added to the name of a predictor in that file: its fit with the term of the known share."""
SMALLEST_LOSS = 1e-9
"""Losses below this are 0 up to rounding, nats per token."""
SMALLEST_SHARE = 1e-6
"""Known shares below this are replaced by it: their logarithm is needed."""


@dataclass(frozen=True)
class StudentLosses:
    """Fit of log loss = a + b · log x + c · log k + u to the students of several teachers, where u is of the teacher.

    k is the known share: how much of the next token's entropy the teacher's context removes. At the same x, students
    lose more of a teacher that knows more.

    A trained student loses more than the floors say, since its layers are narrow one after the other and its training
    is not perfect. The students of other teachers show how much more, and how much this differs from teacher to
    teacher.

    Example:
        >>> losses = student_losses("head")
        >>> losses.at(0.1, 0.8).low < losses.at(0.1, 0.8).value
        True
    """

    fit: RandomInterceptFit
    """Fit of the logarithms."""
    n_students: int
    """Number of students."""
    teachers: tuple[str, ...]
    """Names of their teachers."""
    widest: int
    """Width of the widest teacher, dimensions."""
    largest_vocabulary: int
    """Tokens of the largest vocabulary."""
    head_steps: int
    """Training steps of the head floors."""
    shares: tuple[float, float]
    """Smallest and largest known share of the teachers."""
    known_share: float | None = None
    """Known share of the teacher whose students are predicted; None in a fit without this term."""

    def at(self, x: float, level: float, seen: Sequence[tuple[float, float]] = ()) -> PredictedLoss:
        """Return the expected loss of a student, with the prediction interval of a teacher that was not fitted.

        Args:
            x: what the loss is computed from, nats per token.
            level: probability of the two-sided interval.
            seen: (x, loss) of students of the same teacher, which narrow the interval.

        Returns:
            Nats per token; 0 if x is 0.

        Example:
            >>> student_losses("head").at(0.0, 0.95)
            PredictedLoss(value=0.0, low=0.0, high=0.0)
        """
        if x <= SMALLEST_LOSS:
            return PredictedLoss(0.0, 0.0, 0.0)
        seen = [(seen_x, loss) for seen_x, loss in seen if seen_x > SMALLEST_LOSS and loss > SMALLEST_LOSS]
        predicted = self.fit.predict(
            self._terms([x]), level, seen_x=self._terms([s[0] for s in seen]), seen_y=np.log([s[1] for s in seen])
        )
        return PredictedLoss(*(math.exp(float(part[0])) for part in predicted))

    def _terms(self, x: Sequence[float]) -> Float64[np.ndarray, "student term"]:
        """Return the terms of the fit."""
        columns = [np.ones(len(x)), np.log(np.array(x, dtype=np.float64))]
        if self.known_share is not None:
            columns.append(np.full(len(x), math.log(max(self.known_share, SMALLEST_SHARE))))
        return np.stack(columns, axis=1)


@cache
def student_losses(predictor: LossPredictor, known_share: float | None = None) -> StudentLosses:
    """Return the fit to the students that were trained for this package, see `benchmarks/atlas`.

    Args:
        predictor: what the expected loss is computed from.
        known_share: that of the teacher, see `HeadFloor.known_share`; None for a fit without it.

    Example:
        >>> student_losses("head").fit.n_groups >= 4
        True
    """
    stored = json.loads((files("tl_distill_floor.assets") / EXPECTED_LOSS_FILE).read_text(encoding="utf-8"))
    fit = stored["fits"][predictor if known_share is None else predictor + WITH_KNOWN_SHARE]
    shares = [teacher["known_share"] for teacher in stored["teachers"]]
    return StudentLosses(
        fit=RandomInterceptFit(
            coefficients=tuple(fit["coefficients"]),
            covariance=tuple(tuple(row) for row in fit["covariance"]),
            between=fit["between"],
            within=fit["within"],
            n_groups=len(stored["teachers"]),
            n_observations=stored["n_students"],
            n_group_terms=fit["n_teacher_terms"],
        ),
        n_students=stored["n_students"],
        teachers=tuple(teacher["name"] for teacher in stored["teachers"]),
        widest=max(teacher["d_model"] for teacher in stored["teachers"]),
        largest_vocabulary=max(teacher["vocab_size"] for teacher in stored["teachers"]),
        head_steps=stored["head_steps"],
        shares=(min(shares), max(shares)),
        known_share=known_share,
    )


def upper_bound(expected_at: Callable[[int, float], PredictedLoss], width: int, confidence: float) -> float:
    """Return the loss that a trained student stays below with some probability, nats per token.

    Args:
        expected_at: the expected loss and its two-sided interval, at a width and a level.
        width: dimensions.
        confidence: the probability.

    Raises:
        ValueError: `confidence` is outside (0, 1).

    Example:
        >>> upper_bound(lambda width, level: PredictedLoss(0.2, 0.1, 0.3), 64, confidence=0.9)
        0.3
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be inside (0, 1), got {confidence}")
    # The ends of a two-sided interval of 80 % are one-sided bounds of 90 %, above and below.
    loss = expected_at(width, abs(2 * confidence - 1))
    return loss.high if confidence >= 0.5 else loss.low


def narrowest(least: int, most: int, is_enough: Callable[[int], bool]) -> int:
    """Return the narrowest width that is enough, by bisection; the widest if no narrower one is.

    Args:
        least: narrowest width.
        most: widest width.
        is_enough: whether a width is enough; every wider one is then enough too.

    Example:
        >>> narrowest(1, 512, lambda width: width >= 100)
        100
    """
    too_narrow, wide_enough = least - 1, max(most, least)
    while wide_enough - too_narrow > 1:
        middle = (too_narrow + wide_enough) // 2
        if is_enough(middle):
            wide_enough = middle
        else:
            too_narrow = middle
    return wide_enough
