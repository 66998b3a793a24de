"""`Calibration`: how the losses of trained students follow a prediction, L = C · floor + B, beside null models."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from tl_distill_floor.results.displayable import Displayable
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.storage.versioned import load_record, resolve_file
from tl_distill_floor.theory.regression import LinearFit

CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration(Displayable):
    """Trained students against predictions. Losses are KL(teacher ‖ student), nats per token."""

    teacher: str
    stats: str
    """Digest of the statistics that the predictions stand on."""
    unit: str
    """Of the predictions: "nats" or "mse"."""
    widths: tuple[int, ...]
    losses: tuple[float, ...]
    """The floor of each student, L∞ of its learning curve, or the loss that was given."""
    statuses: tuple[str, ...]
    """"saturated", "under-trained", or "given"."""
    predictor: str
    """The one whose leave-one-width-out error is least: `theorem`, `independent` or `simulated`."""
    predictors: dict[str, LinearFit]
    nulls: dict[str, float]
    """Leave-one-width-out error of models that know nothing of features, by name."""
    at_teacher_width: float
    """What the line says of a student as wide as its teacher: B, and C times the teacher's own floor."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def fit(self) -> LinearFit:
        return self.predictors[self.predictor]

    @property
    def slope(self) -> float:
        """C."""
        return self.fit.slope

    @property
    def baseline(self) -> float:
        """B, nats per token."""
        return self.fit.baseline

    @property
    def r2(self) -> float:
        return self.fit.r2

    @property
    def loo_error(self) -> float:
        """Mean error of a width that the line was not fitted to, as a share of the mean loss."""
        return self.fit.loo_error

    def save(self, path: str | Path) -> Path:
        """Write JSON; a directory gets `calibration.json`."""
        head = {"format": "tl-distill-floor/calibration", "version": 1}
        stored = json.dumps({**head, **dataclasses.asdict(self)}, indent=1, allow_nan=False)
        return write_atomically(resolve_file(path, CALIBRATION_FILE), stored.encode())

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, truncated, foreign, or of another version.
        """
        return load_record(cls, resolve_file(path, CALIBRATION_FILE), "calibration", "tl-floor calibrate")
