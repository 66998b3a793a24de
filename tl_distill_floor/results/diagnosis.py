"""`Diagnosis`: whether a student's loss is limited by its width or by its training."""

import math
from dataclasses import dataclass
from typing import ClassVar

from tl_distill_floor.annotations import Verdict
from tl_distill_floor.errors import check_choice
from tl_distill_floor.results.record_files import JsonRecord
from tl_distill_floor.theory.capacity import Number

DIAGNOSIS_FILE = "diagnosis.json"


@dataclass(frozen=True, repr=False)
class Diagnosis(JsonRecord):
    """What limits the loss of a student. Losses are KL(teacher ‖ student) in nats per token."""

    FILE_NAME: ClassVar[str] = DIAGNOSIS_FILE
    KIND: ClassVar[str] = "diagnosis"
    COMMAND: ClassVar[str] = "tl-floor diagnose"

    curve: str
    """Name of the learning curve."""
    teacher: str
    """Name of the teacher."""
    width: int
    """Dimensions of the student's residual stream."""
    verdict: Verdict
    """What limits the loss; see `diagnose`."""
    reason: str
    """Why, in one sentence."""
    reached: float
    """Last loss of the learning curve."""
    bound: float
    """Head floor: an estimate, from above, of the least loss of any student of this width."""
    expected: float
    """Loss that a trained student of this width is expected to reach."""
    expected_interval: tuple[float, float]
    """95 % prediction interval of `expected`, for a new teacher."""
    end: float | None
    """Loss at which the training would saturate; None if the learning curve does not show it. It is at least `bound`,
    or the lower end of the bound's error if `reached` is not above `bound`."""
    end_interval: tuple[float, float]
    """95 % interval of `end`, given the learning curve, its noise, by which it can reach above `reached`, and how far
    real learning curves are from power laws; from `bound` to `reached` if the curve does not show the end."""
    half_factor: float | None
    """Factor by which the tokens grow until half of what is left is gained, at the highest learning rate so far; None
    if the end is not known."""
    tokens: tuple[float, ...]
    """Tokens trained on at each point of the learning curve."""
    losses: tuple[float, ...]
    """Loss at each point of the learning curve."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind about the verdict."""

    def __post_init__(self) -> None:
        """Raise a ValueError if a field has an impossible value."""
        check_choice("verdict", self.verdict, Verdict)
        if not self.losses or len(self.tokens) != len(self.losses):
            raise ValueError("a diagnosis needs one loss for each number of tokens, and at least one")
        if min(self.reached, self.bound, self.expected, *self.end_interval, *self.losses) < 0:
            raise ValueError("losses must be at least 0")
        if (self.half_factor is None) != (self.end is None) or not (self.half_factor is None or self.half_factor > 1):
            raise ValueError("half_factor must be above 1, and is known if the end is")

    @property
    def left(self) -> float | None:
        """Share of the reached loss that more tokens would remove; None if the end is not known."""
        return None if self.end is None or self.reached <= 0 else max(0.0, 1.0 - self.end / self.reached)

    @property
    def tokens_for_half(self) -> float | None:
        """More tokens after which half of what is left is gained; None if the end is not known."""
        return None if self.half_factor is None else self.tokens[-1] * (self.half_factor - 1.0)

    @property
    def sentence(self) -> str:
        """The verdict and its reason in one line."""
        return f"{self.verdict}: {self.reason}"

    def loss_at(self, tokens: Number) -> float | None:
        """Return the expected loss after some number of tokens, at least those trained on so far.

        What is left falls by a power law, by half when the tokens grow by `half_factor`.

        Args:
            tokens: tokens trained on.

        Returns:
            Nats per token; None if the end is not known.

        Example:
            >>> diagnosis.loss_at(2 * diagnosis.tokens[-1])  # doctest: +SKIP
        """
        if self.end is None or self.half_factor is None:
            return None
        halvings = math.log(float(tokens) / self.tokens[-1]) / math.log(self.half_factor)
        return self.end + (self.reached - self.end) * float(0.5**halvings)

    def __repr__(self) -> str:
        """Return the student, its loss and the verdict in one line."""
        return f"Diagnosis({self.curve}, width {self.width:,}: loss {self.reached:.4g} nats, {self.verdict})"
