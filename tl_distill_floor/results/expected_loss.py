"""The loss that a trained student is expected to reach, from students of other teachers and, if any, of its own."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64

from tl_distill_floor.results.student_loss import StudentLoss
from tl_distill_floor.theory.random_effects import Observations, RandomEffectsFit
from tl_distill_floor.theory.regression import PredictedLoss

LossPredictor: TypeAlias = Literal["encoded", "encoded and simulated"]
"""What the expected loss is computed from: `HeadFloor.encoded`, or the sum of that and the simulated floor of a
layer."""
EXPECTED_LOSS_FILE = "expected_loss.json"
WITHOUT_KNOWN_SHARE, WITH_KNOWN_SHARE = "without_known_share", "with_known_share"
"""Names of a predictor's two fits in that file."""
LOG_X = 1
"""Index of the term log x, whose coefficient differs from teacher to teacher."""
SMALLEST_LOSS = 1e-9
"""Losses below this are 0 up to rounding, nats per token."""
SMALLEST_SHARE = 1e-6
"""Known shares below this are replaced by it: their logarithm is needed."""


@dataclass(frozen=True)
class ExpectedLossFit:
    """How much more trained students lose than the predicted floors: a fit to the students of several teachers.

    The fit is log loss = a + b · log x + c · log k. Teachers differ in a and b.

    k is the known share: how much of the next token's entropy the teacher's context removes. At the same x, students
    lose more of a teacher that knows more.

    A trained student loses more than the floors say, since its layers are narrow one after the other and its training
    is not perfect. The students of other teachers show how much more, and how much this differs from teacher to
    teacher.

    Example:
        >>> losses = expected_loss_fit("encoded")
        >>> losses.at(0.1, 0.8).low < losses.at(0.1, 0.8).value
        True
    """

    fit: RandomEffectsFit
    """Fit of the logarithms."""
    log_error: float
    """Median standard error of log L∞ of its students, from their full intervals, for those whose error is not
    known."""
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
    fewest_tokens_per_dimension: float = 0.0
    """Smallest ratio of the vocabulary to the width of a teacher. With few tokens the logits need few dimensions."""

    def at(self, x: float, level: float, seen: Sequence[tuple[float, StudentLoss]] = ()) -> PredictedLoss:
        """Return the expected loss of a student, with the prediction interval for a new teacher.

        Args:
            x: what the loss is computed from, nats per token.
            level: probability of the two-sided interval.
            seen: x and loss of students of the same teacher, which narrow the interval.

        Returns:
            Nats per token; 0 if x is 0.

        Example:
            >>> expected_loss_fit("encoded").at(0.0, 0.95)
            PredictedLoss(value=0.0, low=0.0, high=0.0)
        """
        if x <= SMALLEST_LOSS:
            return PredictedLoss(0.0, 0.0, 0.0)
        used = [(seen_x, student) for seen_x, student in seen if min(seen_x, student.loss) > SMALLEST_LOSS]
        observations = Observations(
            self._terms([seen_x for seen_x, _ in used]),
            np.log([student.loss for _, student in used]),
            np.array([self.log_error if s.log_error is None else s.log_error for _, s in used]) ** 2,
        )
        predicted = self.fit.predict(self._terms([x]), level, seen=observations)
        return PredictedLoss(*(math.exp(float(part[0])) for part in predicted))

    def extrapolations(self, d_model: int, vocab_size: int, known_share: float | None) -> list[str]:
        """Return in what respects a teacher is outside the range of the fit's teachers.

        Args:
            d_model: its width, dimensions.
            vocab_size: tokens of its vocabulary.
            known_share: its known share; None if it is not known.

        Example:
            >>> expected_loss_fit("encoded").extrapolations(256, 16_000, 0.5)
            ['16,000 tokens of vocabulary (at most 8,000)']
        """
        respects = []
        if d_model > self.widest:
            respects.append(f"{d_model:,} dimensions (at most {self.widest:,} in the fit)")
        if vocab_size > self.largest_vocabulary:
            respects.append(f"{vocab_size:,} tokens of vocabulary (at most {self.largest_vocabulary:,})")
        if vocab_size < self.fewest_tokens_per_dimension * d_model:
            respects.append(
                f"{vocab_size / d_model:.2g} tokens of vocabulary per dimension (at least"
                f" {self.fewest_tokens_per_dimension:.2g})"
            )
        low, high = self.shares
        if known_share is not None and not low <= known_share <= high:
            respects.append(
                f"contexts that remove {known_share:.0%} of the next token's entropy ({low:.0%} to {high:.0%})"
            )
        return respects

    def _terms(self, x: Sequence[float]) -> Float64[np.ndarray, "student term"]:
        """Return the terms of the fit."""
        columns = [np.ones(len(x)), np.log(np.array(x, dtype=np.float64))]
        if self.known_share is not None:
            columns.append(np.full(len(x), math.log(max(self.known_share, SMALLEST_SHARE))))
        return np.stack(columns, axis=1)


@cache
def expected_loss_fit(predictor: LossPredictor, known_share: float | None = None) -> ExpectedLossFit:
    """Return the fit to the students that were trained for this package, see `benchmarks/atlas`.

    Args:
        predictor: what the expected loss is computed from.
        known_share: that of the teacher, see `HeadFloor.known_share`; None for a fit without it.

    Example:
        >>> expected_loss_fit("encoded").fit.n_groups >= 4
        True
    """
    stored = json.loads((files("tl_distill_floor.assets") / EXPECTED_LOSS_FILE).read_text(encoding="utf-8"))
    fit = stored["fits"][predictor][WITHOUT_KNOWN_SHARE if known_share is None else WITH_KNOWN_SHARE]
    shares = [teacher["known_share"] for teacher in stored["teachers"]]
    return ExpectedLossFit(
        fit=RandomEffectsFit(
            coefficients=tuple(fit["coefficients"]),
            covariance=tuple(tuple(row) for row in fit["covariance"]),
            intercept_variance=fit["intercept_variance"],
            residual_variance=fit["residual_variance"],
            n_groups=len(stored["teachers"]),
            n_group_terms=fit["n_teacher_terms"],
            varying=LOG_X,
            centre=fit["centre"],
            slope_variance=fit["slope_variance"],
        ),
        log_error=stored["log_error"],
        n_students=stored["n_students"],
        teachers=tuple(teacher["name"] for teacher in stored["teachers"]),
        widest=max(teacher["d_model"] for teacher in stored["teachers"]),
        largest_vocabulary=max(teacher["vocab_size"] for teacher in stored["teachers"]),
        head_steps=stored["head_steps"],
        shares=(min(shares), max(shares)),
        known_share=known_share,
        fewest_tokens_per_dimension=min(teacher["vocab_size"] / teacher["d_model"] for teacher in stored["teachers"]),
    )


def expected_loss_at(
    fit: ExpectedLossFit,
    x_at: Callable[[float], float],
    width: float,
    level: float,
    losses: Mapping[int, StudentLoss],
    bound: float,
    vocab_size: int,
) -> PredictedLoss:
    """Return the loss that a trained student is expected to reach, given those of students of the same teacher.

    Args:
        fit: the fit to students of other teachers.
        x_at: what the loss is computed from, at a width; nats per token.
        width: dimensions.
        level: probability of the two-sided interval.
        losses: losses of students of the same teacher by width.
        bound: least loss at the width, nats per token.
        vocab_size: tokens of the vocabulary. Equal probabilities lose at most its logarithm, so no loss is above it.

    Example:
        >>> fit = expected_loss_fit("encoded")
        >>> expected_loss_at(fit, lambda width: 1 / width, 8.0, 0.8, {}, bound=0.5, vocab_size=4096).low
        0.5
    """
    seen = [(x_at(float(seen_width)), loss) for seen_width, loss in losses.items()]
    most = math.log(vocab_size)
    return PredictedLoss(*(max(min(part, most), bound) for part in fit.at(x_at(width), level, seen)))


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
