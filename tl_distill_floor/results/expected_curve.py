"""`ExpectedCurve`: the loss that trained students are expected to reach, at any width."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.expected_loss import LossPredictor, expected_loss_at, expected_loss_fit
from tl_distill_floor.results.head_floor import HEAD_ADVICE, HeadFloor
from tl_distill_floor.results.student_loss import StudentLoss
from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.regression import PredictedLoss


@dataclass(frozen=True, eq=False)
class ExpectedCurve:
    """Expected losses of trained students as a function of the width, in nats per token."""

    head: HeadFloor | None
    """Least loss that the rank of the logits allows; None if it was not computed."""
    simulated_at: Callable[[Number], float] | None
    """Simulated floor at a width, nats per token; None if nothing was simulated."""
    is_in_nats: bool
    """Whether the losses of the prediction are in nats."""

    @property
    def predictor(self) -> LossPredictor:
        """What the expected loss is computed from."""
        return "encoded" if self.simulated_at is None else "encoded and simulated"

    def has_head_at(self, width: Number) -> bool:
        """Return whether there is a head floor at a width."""
        return self.head is not None and float(width) >= self.head.widths[0]

    def is_known_at(self, width: Number) -> bool:
        """Return whether the loss of a trained student is predicted at a width: in nats, with a head floor."""
        return self.is_in_nats and self.has_head_at(width)

    def at(self, width: Number, level: float, losses: Mapping[int, StudentLoss]) -> PredictedLoss:
        """Return the loss that a trained student is expected to reach; see `FloorPrediction.expected_at`.

        Raises:
            InputError: losses are not in nats, or there is no head floor at this width.
        """
        if self.head is None or not self.is_in_nats:
            raise InputError(
                f"the loss of a trained student is predicted from costs in nats and the head floor; {HEAD_ADVICE}"
            )
        if float(width) >= self.head.d_model:  # the student can be its teacher
            return PredictedLoss(0.0, 0.0, 0.0)
        narrower = {seen: loss for seen, loss in losses.items() if seen < self.head.d_model}
        fit = expected_loss_fit(self.predictor, self.head.known_share)
        bound = self.head.floor_at(float(width))
        x_at, vocab_size = partial(self._x_at, self.head), self.head.vocab_size
        return expected_loss_at(fit, x_at, float(width), level, narrower, bound, vocab_size)

    def _x_at(self, head: HeadFloor, width: float) -> float:
        """Return what the expected loss is computed from, nats per token."""
        simulated = 0.0 if self.simulated_at is None else self.simulated_at(width)
        return head.encoded_at(width) + simulated
