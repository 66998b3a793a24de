"""`StudentResult`: the learning curve, the floor and the checkpoint of one distilled student."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar

from tl_distill_floor.annotations import StudentStatus
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.results.record_files import JsonRecord
from tl_distill_floor.sources.model_names import same_model
from tl_distill_floor.storage.versioned import load_record, resolve_file, save_record
from tl_distill_floor.theory.learning_curve import with_misfit

STUDENT_FILE = "student.json"


@dataclass(frozen=True, repr=False)
class StudentResult(JsonRecord):
    """A distilled student. Losses are KL(teacher ‖ student) on held-out text, in nats per token, at temperature 1."""

    FILE_NAME: ClassVar[str] = STUDENT_FILE
    KIND: ClassVar[str] = "student"
    COMMAND: ClassVar[str] = "tl-floor distill"

    name: str
    """Name of the student's directory."""
    teacher: str
    """Name of the teacher."""
    width: int
    """Dimensions of the student's residual stream."""
    depth: int
    """Layers of the student."""
    n_parameters: int
    """Parameters of the student."""
    tokens: tuple[int, ...]
    """Number of training tokens at each point of the learning curve."""
    losses: tuple[float, ...]
    """Held-out loss of the averaged weights at each point of the learning curve."""
    floor: float
    """L∞ of the fit L∞ + A · t^-b to the learning curve; the last loss if the curve does not show it."""
    interval: tuple[float, float]
    """95 % interval of `floor`, see `theory.learning_curve`; from 0 to the last loss if the curve does not show it."""
    status: StudentStatus
    """"saturated", "under-trained" or "diverged"; see `theory.learning_curve`."""
    heldout_tokens: int
    """Number of held-out tokens that the losses were measured on."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the training."""
    path: str | None = None
    """Directory of the student's Hugging Face checkpoint; None if it was not saved."""

    def __post_init__(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: a field has an impossible value.
        """
        if len(self.tokens) != len(self.losses) or not (self.tokens or self.status == "diverged"):
            raise ValueError("a student's learning curve needs one loss for each number of tokens")
        check_choice("status", self.status, StudentStatus)
        if min(self.width, self.depth, self.n_parameters, *self.tokens) < 1:
            raise ValueError("width, depth, n_parameters and tokens of a student must be at least 1")
        if min(self.floor, *self.losses, 0.0) < 0:
            raise ValueError("losses of a student must be at least 0")

    @property
    def loss(self) -> float:
        """Last held-out loss in nats per token; NaN if the training diverged before the first evaluation."""
        return self.losses[-1] if self.losses else math.nan

    @property
    def floor_is_known(self) -> bool:
        """Whether the learning curve shows the loss at which the training would saturate."""
        return self.status != "under-trained" or self.interval != (0.0, self.loss)

    def save(self, path: str | Path) -> Path:
        """Save the result as JSON. The path of the checkpoint is not stored, so that runs can be moved.

        Args:
            path: the file, or a directory that gets `student.json`.

        Returns:
            Path of the file.

        Raises:
            InputError: the file cannot be written.

        Example:
            >>> result.save("runs/tiny/students/width64")  # doctest: +SKIP
        """
        overrides = {"unit": "nats per token, KL(teacher ‖ student)", "path": None}
        return save_record(self, resolve_file(path, STUDENT_FILE), self.KIND, overrides)

    @classmethod
    def load(cls, path: str | Path) -> "StudentResult":
        """Load a result that `save` wrote; its checkpoint is expected in the same directory.

        The interval is widened as `theory.learning_curve.with_misfit` does: files of older versions have that of the
        fit alone.

        Args:
            path: the file, or its directory.

        Returns:
            The result.

        Raises:
            InputError: the file is missing, truncated, in another format, or of another version.

        Example:
            >>> result = StudentResult.load("runs/tiny/students/width64")  # doctest: +SKIP
        """
        file = resolve_file(path, STUDENT_FILE)
        student = load_record(cls, file, cls.KIND, cls.COMMAND, {"path": str(file.parent)})
        if student.status == "diverged":
            return student
        return dataclasses.replace(student, interval=with_misfit(student.interval, student.floor, student.loss))

    def __repr__(self) -> str:
        """Return the name, the shape, the loss and the status in one line."""
        return (
            f"StudentResult({self.name} of {self.teacher}: width {self.width:,}, {self.depth} layers,"
            f" loss {self.loss:.4g} nats, floor {self.floor:.4g}, {self.status})"
        )


def student_files(directory: str | Path, *, required: bool = False) -> list[Path]:
    """Return the paths of the `student.json` files of a run.

    Args:
        directory: the run directory.
        required: whether there must be a student.

    Returns:
        Paths in alphabetical order. Students that are still being saved are left out.

    Raises:
        InputError: there is no student, and `required` is True.

    Example:
        >>> student_files("runs/tiny")  # doctest: +SKIP
    """
    files = sorted(Path(directory).glob(f"students/[!.]*/{STUDENT_FILE}"))
    if required and not files:
        raise InputError(
            f"{directory} holds no students; distil some with tl-floor distill --out {quote(str(directory))}"
        )
    return files


def load_students(directory: str | Path, *, required: bool = False) -> list[StudentResult]:
    """Load the results of all students of a run.

    Args:
        directory: the run directory.
        required: whether there must be a student.

    Returns:
        The results, ordered by width and name.

    Raises:
        InputError: a file is damaged, or there is no student, and `required` is True.

    Example:
        >>> students = load_students("runs/tiny")  # doctest: +SKIP
    """
    students = [StudentResult.load(file) for file in student_files(directory, required=required)]
    return sorted(students, key=lambda student: (student.width, student.name))


def other_teachers(students: Sequence[StudentResult], teacher: str) -> str | None:
    """Return a statement that names the students of another teacher than that of a prediction; None if there are none.

    Args:
        students: the students.
        teacher: name of the teacher of the prediction. The name of a model in memory may be another one than that of
            the same model on the disk.
    """
    others = [student for student in students if not same_model(student.teacher, teacher)]
    if not others:
        return None
    names = ", ".join(student.name for student in others)
    teachers = ", ".join(sorted({student.teacher for student in others}))
    return f"the teacher of {names} is {teachers}, and the prediction is for {teacher}"
