"""`Plan`: a student to train, its expected loss, what that depends on, and other students within the limits.

`Pilots`: narrow students to train before it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from tl_distill_floor.annotations import CostUnit, MemoryDtype, PlanRule
from tl_distill_floor.errors import set_integers
from tl_distill_floor.results.record_files import JsonRecord
from tl_distill_floor.theory.regression import PredictedLoss

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Limits:
    """The limits that a planned student is within; None for no limit.

    Raises:
        InputError: a limit that is a number of things, which can be given as 2e9, is not an integer.
    """

    max_loss: float | None = None
    """Loss that the student does not exceed with 90 % confidence, in the unit of the plan."""
    max_width: int | None = None
    """Largest width, dimensions."""
    max_params: int | None = None
    """Largest number of parameters."""
    max_memory: int | None = None
    """Most bytes of weights and KV cache together."""
    min_speedup: float | None = None
    """Least tokens per second of the student's forward pass, divided by the teacher's."""
    divisor: int | None = None
    """The width is a multiple of this."""

    def __post_init__(self) -> None:
        set_integers(self, {"max_width": None, "max_params": None, "max_memory": None, "divisor": None})


@dataclass(frozen=True)
class Candidate:
    """A student within the limits of a plan."""

    width: int
    """Dimensions of the residual stream."""
    n_parameters: int
    """Number of parameters."""
    weight_bytes: int
    """Bytes of the weights in the plan's dtype."""
    cache_bytes: int | None
    """Bytes of the KV cache in the plan's dtype, at its context length and a batch of 1; None if it is not known."""
    speed: float
    """Tokens per second of the forward pass divided by the teacher's, on this machine."""
    speed_is_measured: bool
    """False if `speed` is interpolated between the widths that were timed."""
    loss: float
    """Loss that a trained student is expected to reach, in the unit of the plan."""
    upper_bound: float | None
    """Upper bound of the loss with 90 % confidence; None if no interval is known."""
    least_loss: float | None
    """Head floor, nats per token: about the least loss of any student of this width; None if it was not computed."""

    @property
    def memory(self) -> int:
        """Bytes of the weights and, if it is known, of the KV cache."""
        return self.weight_bytes + (self.cache_bytes or 0)


@dataclass(frozen=True, repr=False)
class Plan(JsonRecord):
    """A student chosen for a loss or a size. Fields with a default are missing in files of older versions."""

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
    upper_bound: float | None
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
    rule: PlanRule | None = None
    """Which student was chosen: "narrowest", the narrowest one that meets the largest loss; or "widest", the widest one
    within the limits, if no loss was given. None if it is not known."""
    limits: Limits = field(default_factory=Limits)
    """The limits that were given."""
    memory_dtype: MemoryDtype = "bf16"
    """Dtype of the weights and the KV cache that the memory is computed for."""
    context: int | None = None
    """Tokens in the KV cache; None if the memory was not computed."""
    candidates: tuple[Candidate, ...] = ()
    """Students within the limits, in rising order of width; the chosen one is among them."""

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was chosen; None in a plan without candidates."""
        return next((candidate for candidate in self.candidates if candidate.width == self.width), None)

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
