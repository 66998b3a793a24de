"""`StudentResult`: what became of one distilled student, and where it lies."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_distill_floor.results.displayable import Displayable
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.storage.versioned import load_record, resolve_file

STUDENT_FILE = "student.json"
STATUSES = ("saturated", "under-trained", "diverged")


@dataclass(frozen=True)
class StudentResult(Displayable):
    """A distilled student. Losses are KL(teacher ‖ student) on held-out text, nats per token, at temperature 1."""

    name: str
    """Of its directory beside the other students'."""
    teacher: str
    width: int
    """Dimensions of its residual stream."""
    depth: int
    n_parameters: int
    tokens: tuple[int, ...]
    """Tokens trained on at each point of the learning curve."""
    losses: tuple[float, ...]
    """Held-out loss at each point, of the running average of the weights."""
    floor: float
    """L∞ of L∞ + A · t^-b fitted to the learning curve."""
    interval: tuple[float, float]
    """95 %, of that fit."""
    status: str
    """"saturated", "under-trained" or "diverged"; see `theory.saturation`."""
    heldout_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was trained."""
    path: str | None = None
    """Directory of its Hugging Face checkpoint, where it was saved."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.losses) or not (self.tokens or self.status == "diverged"):
            raise ValueError("a student's curve needs a loss for every number of tokens")
        if self.status not in STATUSES:
            raise ValueError(f"a student is {', '.join(STATUSES)}, got {self.status!r}")
        if min(self.width, self.depth, self.n_parameters, *self.tokens) < 1 or min(self.floor, *self.losses, 0.0) < 0:
            raise ValueError("a student's sizes and tokens must be above 0, and no loss below")

    @property
    def loss(self) -> float:
        """The last held-out loss; not a number where it diverged before there was one."""
        return self.losses[-1] if self.losses else math.nan

    def save(self, path: str | Path) -> Path:
        """Write JSON; a directory gets `student.json`."""
        head = {"format": "tl-distill-floor/student", "version": 1, "unit": "nats per token, KL(teacher ‖ student)"}
        stored = {**head, **dataclasses.asdict(self), "path": None}
        return write_atomically(
            resolve_file(path, STUDENT_FILE), json.dumps(stored, indent=1, allow_nan=False).encode()
        )

    @classmethod
    def load(cls, path: str | Path) -> "StudentResult":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, truncated, foreign, or of another version.
        """
        file = resolve_file(path, STUDENT_FILE)
        return load_record(cls, file, "student", "tl-floor distill", {"path": str(file.parent)})


def student_files(directory: str | Path) -> list[Path]:
    """Where a run's students are described."""
    return sorted(Path(directory).glob(f"students/[!.]*/{STUDENT_FILE}"))  # hidden ones were not finished


def load_students(directory: str | Path) -> list[StudentResult]:
    """The students that lie in a run's directory, the narrowest first.

    Raises:
        InputError: one of them is damaged.
    """
    found = [StudentResult.load(file) for file in student_files(directory)]
    return sorted(found, key=lambda student: (student.width, student.name))
