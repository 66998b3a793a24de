"""The options of a prediction from measured features."""

from dataclasses import dataclass

from tl_distill_floor.errors import set_integers
from tl_distill_floor.predicting.checks import check_steps

STEPS = 1000
"""Default training steps of the bottleneck students."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What is computed from the measured features of a teacher.

    Raises:
        InputError: an option is out of its range.

    Example:
        >>> PredictConfig(steps=0).head
        True
    """

    steps: int = STEPS
    """Training steps of the bottleneck students for `simulated`; 0 trains none. The logits of `bound` are trained for a
    fifth of these steps."""
    head: bool = True
    """Whether to compute `bound`, the head floor, if losses are in nats; see `head_floor`."""
    min_count: int = 1
    """A feature is alive if it fired on at least this many tokens."""
    seed: int = 0
    """Seed of the resampling, of the training, and of the choice of the held-out text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_steps(self.steps))
        set_integers(self, {"min_count": 1, "seed": 0})
