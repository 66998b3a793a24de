"""`HeadFloor`: an estimate of the least loss of any student of a width, from the rank of its logits alone."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.expected_loss import (
    expected_loss_at,
    expected_loss_fit,
    narrowest,
    upper_bound,
)
from tl_distill_floor.results.record_files import JsonRecord
from tl_distill_floor.results.student_loss import StudentLoss, as_student_losses, refuse_impossible
from tl_distill_floor.results.teacher_fingerprint import TeacherFingerprint
from tl_distill_floor.theory.bootstrap import Z_95
from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.regression import PredictedLoss

HEAD_FILE = "head.json"
HEAD_ADVICE = "measure with --cost fisher and --steps 8 or more, and without --no-head"
"""What to type for a run that lacks a head floor."""

SINGLE_WIDTH_EXPONENT = -1.5
"""Exponent of the loss over the width if one width was computed. Up to 4 times this width, 80 % of the floors that
follow are 0.74 to 2.6 times the computed ones (103 pairs of widths of the atlas), those of a straight line 1.9 to 12.
"""


@dataclass(frozen=True, repr=False)
class HeadFloor(JsonRecord):
    """An estimate, from above, of the least loss of any student of a width: its logits have no higher rank than that.

    Losses are KL(teacher ‖ student) on held-out text, in nats per token.

    Sources: Yang et al. 2018 (arXiv 1711.03953), section 2, the softmax bottleneck; Godey et al. 2024
    (arXiv 2404.07647).

    Example:
        >>> head = head_floor("tiny-prose", widths=[16, 64])  # doctest: +SKIP
        >>> head.floor, head.width_for(max_loss=0.1)  # doctest: +SKIP
    """

    FILE_NAME: ClassVar[str] = HEAD_FILE
    KIND: ClassVar[str] = "head"
    COMMAND: ClassVar[str] = "tl-floor measure"

    model_name: str
    """Name of the teacher."""
    text_name: str
    """Name of the text."""
    d_model: int
    """Width of the teacher, in dimensions."""
    vocab_size: int
    """Tokens of the vocabulary."""
    widths: tuple[int, ...]
    """Student widths in rising order."""
    floor: tuple[float, ...]
    """Held-out loss of the best logits of each rank that were found; 0 at the teacher's width and above."""
    standard_error: tuple[float, ...]
    """Standard error of `floor` from the number of held-out sequences, see `ratio_standard_error`; of tokens if it is
    one sequence."""
    half_steps: tuple[float, ...]
    """`floor` after half of the training steps; the difference shows how much more training could lower it."""
    encoded: tuple[float, ...]
    """Held-out loss if the low-rank coordinates are computed by a small network from the teacher's last hidden state,
    and not chosen for each context; an upper bound on `floor`."""
    steps: int
    """Training steps."""
    n_train_tokens: int
    """Tokens that the logits were trained on."""
    n_heldout_tokens: int
    """Held-out tokens that the losses were measured on."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the computation."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind when using the head floor."""
    known_share: float | None = None
    """Share of the next token's entropy that the context removes, by the teacher's own probabilities; None in files of
    older versions."""
    fingerprint: str | None = None
    """What the teacher outputs for fixed token ids, as `TeacherFingerprint.to_text` writes it; None in files of older
    versions."""

    def __post_init__(self) -> None:
        """Raise a ValueError if a field has an impossible value."""
        columns = (self.floor, self.standard_error, self.half_steps, self.encoded)
        if not self.widths or any(len(column) != len(self.widths) for column in columns):
            raise ValueError("floor, standard_error, half_steps and encoded need one loss for each width")
        if min(self.widths) < 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError("widths must be integers above 0, each once, in rising order")
        if min(min(column) for column in columns) < 0 or (np.diff(self.floor) > 0).any():
            raise ValueError("losses must be at least 0, and floor must not rise with the width")
        if min(self.d_model, self.vocab_size, self.steps, self.n_train_tokens, self.n_heldout_tokens) < 1:
            raise ValueError("d_model, vocab_size, steps and numbers of tokens must be above 0")
        if any(loss > 0 for width, loss in zip(self.widths, self.floor, strict=True) if width >= self.d_model):
            raise ValueError("the floor must be 0 at the teacher's width and above")
        if self.known_share is not None and not 0 <= self.known_share <= 1:
            raise ValueError("the known share must be from 0 to 1")
        if self.fingerprint is not None:
            TeacherFingerprint.from_text(self.fingerprint)

    @property
    def n_tokens(self) -> int:
        """Tokens that were read."""
        return self.n_train_tokens + self.n_heldout_tokens

    @property
    def training_left(self) -> tuple[float, ...]:
        """Loss that the second half of the training steps removed at each width: about what more training would."""
        return tuple(max(0.0, half - full) for half, full in zip(self.half_steps, self.floor, strict=True))

    def floor_at(self, width: Number) -> float:
        """Return the head floor at any width from the narrowest one that was computed.

        Between the computed widths the log floor is interpolated over log width by a monotone cubic. Above the widest
        of them it continues the power law of the two widest, times a line that falls to 0 at the teacher's width, or at
        the first computed width whose floor is 0. One width alone is continued with the exponent -1.5.

        Args:
            width: dimensions.

        Returns:
            Nats per token.

        Raises:
            InputError: the width is below the narrowest computed one.

        Example:
            >>> head.floor_at(96)  # doctest: +SKIP
        """
        return self._at(width, self.floor)

    def least_at(self, width: Number) -> float:
        """Return the lower end of the head floor at any width: less its error, and what more training would remove.

        The head floor is estimated from above; the second half of the training steps shows a part of what is left.

        Args:
            width: dimensions.

        Returns:
            Nats per token.

        Example:
            >>> head.least_at(96) < head.floor_at(96)  # doctest: +SKIP
            True
        """
        width = float(width)
        lossy = [i for i, floor in enumerate(self.floor) if floor > 0]
        if not width >= self.widths[0] or not lossy:
            return 0.0
        nearest = min(lossy, key=lambda i: abs(math.log(self.widths[i] / width)))
        error = Z_95 * self.standard_error[nearest] + self.training_left[nearest]
        return self.floor_at(width) * max(0.0, 1.0 - error / self.floor[nearest])

    def encoded_at(self, width: Number) -> float:
        """Return `encoded` at any width, interpolated as `floor_at` does it.

        Args:
            width: dimensions.

        Returns:
            Nats per token.

        Raises:
            InputError: the width is below the narrowest computed one.

        Example:
            >>> head.encoded_at(96)  # doctest: +SKIP
        """
        return self._at(width, self.encoded)

    def expected_at(
        self, width: Number, level: float = 0.95, losses: Mapping[int, StudentLoss | float] | None = None
    ) -> PredictedLoss:
        """Return the loss that a trained student is expected to reach, from students of other teachers.

        Args:
            width: dimensions.
            level: probability of the two-sided interval.
            losses: losses of trained students of this teacher by width, nats per token, which narrow the interval;
                numbers, or `StudentLoss` with an error.

        Returns:
            Nats per token, with the prediction interval for a new teacher; at least the head floor, and at most that of
            equal probabilities.

        Raises:
            InputError: the width, or that of a loss, is below the narrowest computed one; the level is not inside
                [0, 1); or the losses are impossible, see `StudentLoss`.

        Example:
            >>> head.expected_at(96, level=0.8)  # doctest: +SKIP
        """
        seen = as_student_losses(losses or {})
        refuse_impossible(seen, self.least_at, self.vocab_size)
        fit, bound = expected_loss_fit("encoded", self.known_share), self.floor_at(width)
        return expected_loss_at(fit, self.encoded_at, float(width), level, seen, bound, self.vocab_size)

    def width_for(self, max_loss: Number, confidence: float | None = None) -> int:
        """Return the narrowest width whose head floor, or expected loss, is at most `max_loss`.

        Args:
            max_loss: nats per token, at least 0.
            confidence: probability with which a trained student stays below `max_loss`, inside (0, 1). If None, only
                the head floor is compared with it, which a trained student does not reach.

        Returns:
            Width in dimensions, at least the narrowest width that was computed.

        Raises:
            ValueError: `max_loss` is negative or NaN, or `confidence` is outside (0, 1).

        Example:
            >>> head.width_for(max_loss=0.1), head.width_for(max_loss=0.1, confidence=0.9)  # doctest: +SKIP
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss must be at least 0, in nats per token, got {max_loss}")
        if confidence is None:
            return narrowest(self.widths[0], self.d_model, lambda width: self.floor_at(width) <= float(max_loss))
        return narrowest(
            self.widths[0],
            self.d_model,
            lambda width: upper_bound(self.expected_at, width, confidence) <= float(max_loss),
        )

    def digest(self) -> str:
        """Return a hash of everything that a prediction depends on: 16 hexadecimal digits."""
        measured: tuple[object, ...] = (
            self.model_name, self.d_model, self.vocab_size, self.widths, self.floor, self.encoded
        )  # fmt: skip
        if self.known_share is not None:
            measured = (*measured, self.known_share)
        return hashlib.sha256(repr(measured).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        """Return the teacher, the widths and the range of the bounds in one line."""
        return (
            f"HeadFloor({self.model_name}: widths {self.widths[0]:,} to {self.widths[-1]:,}, least loss"
            f" {self.floor[0]:.4g} to {self.floor[-1]:.4g} nats per token)"
        )

    def _at(self, width: Number, losses: tuple[float, ...]) -> float:
        """Return the loss at any width from the losses at the computed widths."""
        width = float(width)
        if width >= self.d_model:
            return 0.0
        if not width >= self.widths[0]:
            raise InputError(
                f"the narrowest width of this head floor is {self.widths[0]}, got {width:g}; measure the teacher again,"
                f" with {width:g} among the --widths"
            )
        computed = dict(zip(self.widths, losses, strict=True))
        end = min([self.d_model, *(w for w, loss in computed.items() if loss <= 0)])  # from here on nothing is lost
        if width >= end:
            return 0.0
        known = {w: loss for w, loss in computed.items() if w < end}
        if width in known:
            return known[int(width)]
        *narrower, widest = known
        if width > widest:
            exponent = SINGLE_WIDTH_EXPONENT
            if narrower:
                exponent = math.log(known[widest] / known[narrower[-1]]) / math.log(widest / narrower[-1])
            return known[widest] * math.pow(width / widest, exponent) * (end - width) / (end - widest)
        from scipy.interpolate import PchipInterpolator

        return math.exp(PchipInterpolator(np.log(list(known)), np.log(list(known.values())))(math.log(width)))
