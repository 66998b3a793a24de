"""`Pilots`: narrow students to train before a wide one."""

from dataclasses import dataclass

from tl_distill_floor.theory.regression import PredictedLoss


@dataclass(frozen=True)
class Pilots:
    """Narrow students to train before a wide one."""

    widths: tuple[int, ...]
    """Widths of the pilots, dimensions."""
    cost: float
    """Parameters of all pilots divided by those of the student; on the same tokens, about the share of its training."""
    before: PredictedLoss
    """Expected loss of the student and its 80 % interval, nats per token."""
    after: PredictedLoss
    """The same once the pilots are trained, if they lose what is expected of them."""
