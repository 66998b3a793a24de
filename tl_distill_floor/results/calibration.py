"""`Calibration`: a linear fit of trained students' losses to the predicted floors, compared with null models."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tl_distill_floor.annotations import CostUnit, Predictor, StudentStatus
from tl_distill_floor.results.record_files import JsonRecord
from tl_distill_floor.results.student_loss import StudentLoss, falls_with_width, mean_loss
from tl_distill_floor.theory.regression import LinearFit

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, repr=False)
class Calibration(JsonRecord):
    """Linear fits of student losses to predicted floors, L = C · floor + B (Sarkar and Deka 2026, section 5).

    Losses are KL(teacher ‖ student) in nats per token.
    """

    FILE_NAME: ClassVar[str] = CALIBRATION_FILE
    KIND: ClassVar[str] = "calibration"
    COMMAND: ClassVar[str] = "tl-floor calibrate"

    teacher: str
    """Name of the teacher."""
    stats: str
    """Digest of the measurements that the predictions were computed from; see `FloorPrediction.digest`."""
    unit: CostUnit
    """Unit of the predictions: "nats" or "mse"."""
    widths: tuple[int, ...]
    """Width of each student, in dimensions."""
    losses: tuple[float, ...]
    """Loss of each student: L∞ of its learning curve, or the loss that the user gave."""
    statuses: tuple[StudentStatus | Literal["given"], ...]
    """How far each student was trained: "saturated", "under-trained", or "given" if the user gave its loss."""
    predictor: Predictor
    """The predictor with the smallest leave-one-width-out error."""
    predictors: dict[Predictor, LinearFit]
    """The fit of each predictor."""
    nulls: dict[str, float]
    """Leave-one-width-out error of each null model, which uses no features."""
    at_teacher_width: float
    """Loss that the fit predicts for a student as wide as its teacher: C times the floor at that width, plus B."""
    warnings: tuple[str, ...] = field(default=())
    """What to keep in mind when using the fit."""
    log_errors: tuple[float | None, ...] = ()
    """Standard error of the logarithm of each student's loss; None if the user gave it. Empty in older files."""
    depth: int | None = None
    """Layers of the students; None if the user gave their losses, and in older files."""

    def __post_init__(self) -> None:
        """Raise a ValueError if the fields of the students have different lengths."""
        lengths = {len(self.widths), len(self.losses), len(self.statuses), len(self.log_errors or self.losses)}
        if len(lengths) > 1:
            raise ValueError("widths, losses, statuses and log_errors of a calibration need one value for each student")

    @property
    def fit(self) -> LinearFit:
        """Linear fit of the best predictor."""
        return self.predictors[self.predictor]

    @property
    def student_losses(self) -> dict[int, StudentLoss]:
        """Mean loss of the students of each width; empty if the losses do not fall with the width."""
        by_width: dict[int, list[StudentLoss]] = {}
        log_errors = self.log_errors or (None,) * len(self.losses)
        for width, loss, error in zip(self.widths, self.losses, log_errors, strict=True):
            by_width.setdefault(width, []).append(StudentLoss(loss, error))
        losses = {width: mean_loss(students) for width, students in sorted(by_width.items())}
        return losses if falls_with_width(losses) else {}

    @property
    def slope(self) -> float:
        """Slope C of the best predictor's fit, in nats per token per unit of the prediction."""
        return self.fit.slope

    @property
    def baseline(self) -> float:
        """Intercept B of the best predictor's fit, in nats per token."""
        return self.fit.baseline

    @property
    def r2(self) -> float:
        """Share of the variance of the losses that the best predictor's fit explains."""
        return self.fit.r2

    @property
    def loo_error(self) -> float:
        """Mean absolute error at widths left out of the fit, as a share of the mean loss."""
        return self.fit.loo_error

    def __repr__(self) -> str:
        """Return the teacher, the fit and its error in one line."""
        return (
            f"Calibration({self.teacher}: loss = {self.slope:.3g} · {self.predictor} + {self.baseline:.3g} nats,"
            f" {len(self.widths)} students, leave-one-width-out error {self.loo_error:.1%})"
        )
