"""TODO: one line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.lost_features import LostFeatures
from tl_distill_floor.results.probes import Probes
from tl_distill_floor.results.student import StudentResult

T = TypeVar("T")


@dataclass(frozen=True)
class RunParts:
    """What one run directory holds; what it does not is None, or empty, and said in `absent`."""

    name: str
    floor: FloorPrediction | None = None
    students: tuple[StudentResult, ...] = ()
    probes: Probes | None = None
    lost: LostFeatures | None = None
    absent: tuple[str, ...] = field(default=())
    """What could not be read, and why."""


def run_parts(directory: Path, students: Path | None = None, width: int | None = None, top: int = 20) -> "RunParts":
    """What a run directory holds; a part that is missing or damaged is named and left out.

    Raises:
        InputError: it holds nothing, or the width is below 1.
    """
    from tl_distill_floor.errors import InputError
    from tl_distill_floor.predicting.lost_features import lost_features
    from tl_distill_floor.results.calibration import CALIBRATION_FILE, Calibration
    from tl_distill_floor.results.floor_prediction import FLOOR_FILE, FloorPrediction
    from tl_distill_floor.results.probes import PROBES_FILE, Probes
    from tl_distill_floor.results.student import StudentResult, student_files

    absent: list[str] = []

    def read(load: Callable[[Path], T], file: Path) -> T | None:
        try:
            return load(file) if file.exists() else None
        except InputError as error:
            absent.append(str(error))
            return None

    floor = read(lambda file: FloorPrediction.load(file, with_calibration=False), directory / FLOOR_FILE)
    calibration = read(Calibration.load, directory / CALIBRATION_FILE)
    if floor is not None and calibration is not None:
        floor = floor.calibrated_by(calibration)
        if floor.calibration is None:
            absent.append(f"{directory / CALIBRATION_FILE} is of another prediction; tl-floor calibrate makes it anew")
    results = [read(StudentResult.load, file) for file in student_files(students or directory)]
    distilled = sorted((r for r in results if r is not None), key=lambda result: (result.width, result.name))
    probes = read(Probes.load, directory / PROBES_FILE)
    if floor is not None and probes is not None and probes.stats != floor.stats.digest():
        absent.append(f"{directory / PROBES_FILE} is of another prediction; tl-floor probe makes it anew")
        probes = None
    if floor is None and not distilled and probes is None:
        raise InputError(
            f"there is no run at {directory}; make one with tl-floor measure --out {directory}"
            + (f" ({'; '.join(absent)})" if absent else "")
        )
    lost = None if floor is None else lost_features(floor, width, top)
    return RunParts(str(directory), floor, tuple(distilled), probes, lost, tuple(absent))
