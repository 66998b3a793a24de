"""`Plan`: which student to train, what it will lose, and what that stands on."""

from dataclasses import dataclass

from tl_distill_floor.results.displayable import Displayable


@dataclass(frozen=True)
class Plan(Displayable):
    """A student that was chosen."""

    teacher: str
    width: int
    """Dimensions of its residual stream."""
    depth: int
    teacher_depth: int
    """Layers."""
    unit: str
    """Of the losses: "nats" (per token) or "mse"."""
    loss: float
    """What it is expected to lose: calibrated where students were measured, else the floor."""
    bound: float | None
    """Stays below this with 90 % confidence, as far as what it stands on holds; None where a text of one block says
    nothing of that."""
    calibrated: bool
    n_parameters: int
    teacher_parameters: int
    speed: float
    """Tokens a second of the forward pass, relative to the teacher, measured here."""
    features: int
    """Alive features of the teacher."""
    kept: int
    """Of them the student is expected to hold."""
    known: tuple[str, ...]
    """What was measured."""
    assumed: tuple[str, ...]
    """What was not."""

    @property
    def megabytes(self) -> float:
        """Weights in half precision."""
        return self.n_parameters * 2 / 1e6
