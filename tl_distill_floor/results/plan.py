"""`Plan`: a student to train, its expected loss, and what that prediction depends on."""

from dataclasses import dataclass
from typing import ClassVar

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.results.record_files import JsonRecord

PLAN_FILE = "plan.json"


@dataclass(frozen=True, repr=False)
class Plan(JsonRecord):
    """A student chosen for a loss or a size."""

    FILE_NAME: ClassVar[str] = PLAN_FILE
    KIND: ClassVar[str] = "plan"
    COMMAND: ClassVar[str] = "tl-floor plan"

    teacher: str
    """Name of the teacher."""
    width: int
    """Dimensions of the student's residual stream."""
    depth: int
    """Layers of the student."""
    teacher_depth: int
    """Layers of the teacher."""
    unit: CostUnit
    """Unit of the losses: "nats" (per token) or "mse"."""
    loss: float
    """Loss that a trained student is expected to reach; the feature floor if only that is known."""
    bound: float | None
    """Upper bound of the loss with 90 % confidence, given the assumptions; None if the text is one block, from which
    no interval can be estimated."""
    calibrated: bool
    """True if students of this teacher were trained, and `loss` uses them."""
    n_parameters: int
    """Parameters of the student."""
    teacher_parameters: int
    """Parameters of the teacher."""
    speed: float
    """Tokens per second of the student's forward pass divided by the teacher's, measured on this machine."""
    features: int | None
    """Number of alive features of the teacher; None if it was measured without an SAE."""
    kept: int | None
    """Number of these features that the student is expected to keep."""
    known: tuple[str, ...]
    """Statements about what was measured."""
    assumed: tuple[str, ...]
    """Statements about what was not measured."""

    @property
    def megabytes(self) -> float:
        """Size of the student's weights in half precision, in megabytes."""
        return self.n_parameters * 2 / 1e6

    def __repr__(self) -> str:
        """Return the teacher, the student's shape and its expected loss in one line."""
        return (
            f"Plan({self.teacher}: width {self.width:,}, {self.depth} of {self.teacher_depth} layers,"
            f" expected loss {self.loss:.4g} {self.unit})"
        )
