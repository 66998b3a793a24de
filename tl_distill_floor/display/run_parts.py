"""The parts of a run directory, as far as they can be read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TypeVar

from tl_distill_floor.distilling.planning.calibrate import check_students_teacher
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.lost_features import lost_features
from tl_distill_floor.results.calibration import CALIBRATION_FILE, Calibration
from tl_distill_floor.results.floor_files import FLOOR_FILE, holds_head_only
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.head_floor import HEAD_FILE
from tl_distill_floor.results.lost_features import LostFeatures
from tl_distill_floor.results.probes import PROBES_FILE, Probes
from tl_distill_floor.results.sparse_probes import SPARSE_PROBES_FILE, SparseProbes
from tl_distill_floor.results.student import StudentResult, student_files

Part = TypeVar("Part")
AnyProbes = TypeVar("AnyProbes", Probes, SparseProbes)


@dataclass(frozen=True)
class RunParts:
    """The contents of one run directory."""

    name: str
    """The directory."""
    floor: FloorPrediction | None = None
    """The prediction, with its calibration and its head floor if there are any; it may have no features."""
    students: tuple[StudentResult, ...] = ()
    """Students in rising order of width."""
    probes: Probes | None = None
    lost: LostFeatures | None = None
    """Features that a student of one width loses; None without a prediction from features."""
    unreadable: tuple[str, ...] = ()
    """For each part that is damaged or of another prediction, one sentence that says why it was left out."""
    sparse_probes: SparseProbes | None = None

    @property
    def features(self) -> FeatureFloorPrediction | None:
        """The prediction, if it has features."""
        return None if self.floor is None or self.floor.stats is None else self.floor.with_features()


def load_run_parts(
    directory: Path, *, students: Path | None = None, width: int | None = None, top: int = 20
) -> RunParts:
    """Load everything that a run directory holds; damaged parts are left out and named in `unreadable`.

    Args:
        directory: the run directory.
        students: directory of the run in which the students were distilled; `directory` if None.
        width: student width for the lost features; the narrowest width of the prediction if None.
        top: number of lost features with details.

    Raises:
        InputError: the directory holds no part of a run, `students` holds none, `width` or `top` is below 1, or a
            width is given for a run without features.
    """
    unreadable: list[str] = []

    def load_part(load: Callable[[Path], Part], file: Path) -> Part | None:
        try:
            return load(file) if file.exists() else None
        except InputError as error:
            unreadable.append(str(error))
            return None

    file = directory / (HEAD_FILE if holds_head_only(directory) else FLOOR_FILE)
    floor = load_part(lambda _: FloorPrediction.load(directory, with_calibration=False), file)
    calibration = load_part(Calibration.load, directory / CALIBRATION_FILE)
    if floor is not None and calibration is not None:
        floor = floor.calibrated_by(calibration)
        if floor.calibration is None:
            unreadable.append(f"{directory / CALIBRATION_FILE} is of another prediction; run tl-floor calibrate again")
    files = student_files(students or directory, required=students is not None)
    loaded = [load_part(StudentResult.load, file) for file in files]
    results = sorted((r for r in loaded if r is not None), key=lambda result: (result.width, result.name))
    try:
        if floor is not None:
            check_students_teacher(floor, results)
    except InputError as error:
        unreadable.append(str(error))
        results = []

    def load_probes(load: Callable[[Path], AnyProbes], file: Path, command: str) -> AnyProbes | None:
        probes = load_part(load, file)
        if floor is None or probes is None or probes.stats == floor.digest:
            return probes
        unreadable.append(f"{file} is of another prediction; run {command} again")
        return None

    probes = load_probes(Probes.load, directory / PROBES_FILE, "tl-floor probe")
    sparse_probes = load_probes(SparseProbes.load, directory / SPARSE_PROBES_FILE, "tl-floor probe --sparse")
    if floor is None and not results and probes is None and sparse_probes is None:
        reasons = f" ({'; '.join(unreadable)})" if unreadable else ""
        raise InputError(
            f"there is no run at {directory}; make one with tl-floor measure --out {quote(str(directory))}{reasons}"
        )
    if width is not None and floor is not None and floor.stats is None:
        raise InputError(f"{directory} was measured without an SAE, so no lost features are listed; leave out --width")
    lost = None if floor is None or floor.stats is None else lost_features(floor, width, top)
    return RunParts(str(directory), floor, tuple(results), probes, lost, tuple(unreadable), sparse_probes)
