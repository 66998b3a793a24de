"""`tl-floor report`: one run, or several side by side, as one page that a colleague can open."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tl_distill_floor.cli.options import Debug
from tl_distill_floor.cli.outcome import one_sentence

if TYPE_CHECKING:
    from tl_distill_floor.present.report import RunParts

REPORT_FILE, FIGURES = "report.html", "figures"
Image = StrEnum("Image", ["svg", "png", "pdf"])
T = TypeVar("T")


@one_sentence
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directory of a run; with --compare two or more.")],
    compare: Annotated[bool, typer.Option("--compare", help="Put several runs side by side.")] = False,
    students: Annotated[
        Path | None, typer.Option(help="Directory of the run that the students were distilled in.", show_default="RUN")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Width whose lost features are shown.", show_default="the narrowest")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the lost features are shown.", min=1)] = 20,
    figures: Annotated[
        Image | None, typer.Option(help="Write every figure too, for papers, into RUN/figures (needs kaleido).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="RUN/report.html")] = None,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Write a run, or several side by side, as one self-contained HTML page."""
    from rich.console import Console

    from tl_distill_floor.errors import InputError
    from tl_distill_floor.files import write_atomically
    from tl_distill_floor.present.report import comparison_html, report_html

    if compare != (len(runs) > 1):
        raise InputError(f"{len(runs)} runs given; one makes a report, two or more a comparison with --compare")
    found = [run_parts(run, students, width, top) for run in runs]
    if compare:
        without = [str(run) for run, parts in zip(runs, found, strict=True) if parts.floor is None]
        if without:
            raise InputError(f"{', '.join(without)} holds no prediction to compare ({'; '.join(found[0].absent)})")
    page = comparison_html(found) if compare else report_html(found[0])
    file = write_atomically(out or runs[0] / ("comparison.html" if compare else REPORT_FILE), page.encode())
    console = Console()
    for reason in found[0].absent:
        console.print(f"! left out: {reason}", style="yellow", highlight=False)
    console.print(f"Saved {file} ({file.stat().st_size / 1e6:.1f} MB)", highlight=False)
    if figures is not None:
        folder = runs[0] / FIGURES
        for name in write_figures(found[0], folder, figures.value):
            console.print(f"Saved {folder / name}", style="dim", highlight=False)


def run_parts(directory: Path, students: Path | None = None, width: int | None = None, top: int = 20) -> "RunParts":
    """What a run directory holds; a part that is missing or damaged is named and left out.

    Raises:
        InputError: it holds nothing, or the width is below 1.
    """
    from tl_distill_floor.calibration import CALIBRATION_FILE, Calibration
    from tl_distill_floor.cli.lost import lost_features
    from tl_distill_floor.errors import InputError
    from tl_distill_floor.prediction import FloorPrediction
    from tl_distill_floor.present.report import RunParts
    from tl_distill_floor.probe_result import PROBES_FILE, Probes
    from tl_distill_floor.records import FLOOR_FILE
    from tl_distill_floor.student_result import StudentResult, student_files

    absent: list[str] = []

    def read(load: Callable[[Path], T], file: Path) -> T | None:
        try:
            return load(file) if file.exists() else None
        except InputError as error:
            absent.append(str(error))
            return None

    floor = read(lambda file: FloorPrediction.load(file.parent), directory / FLOOR_FILE)
    if floor is not None and (directory / CALIBRATION_FILE).exists() and floor.calibration is None:
        read(Calibration.load, directory / CALIBRATION_FILE)
        absent.append(f"{directory / CALIBRATION_FILE} is of another prediction; run tl-floor calibrate {directory}")
    results = [read(StudentResult.load, file) for file in student_files(students or directory)]
    distilled = sorted((r for r in results if r is not None), key=lambda result: (result.width, result.name))
    probes = read(Probes.load, directory / PROBES_FILE)
    if floor is None and not distilled and probes is None:
        raise InputError(
            f"there is no run at {directory}; make one with tl-floor measure --out {directory}"
            + (f" ({'; '.join(absent)})" if absent else "")
        )
    lost = None if floor is None else lost_features(floor, width, top)
    return RunParts(str(directory), floor, tuple(distilled), probes, lost, tuple(absent))


def write_figures(parts: "RunParts", folder: Path, suffix: str) -> list[str]:
    """Every figure of the report as a file of its own; their names.

    Raises:
        InputError: there is nothing to draw with, or the directory cannot be written.
    """
    from tl_distill_floor.present.plots import save_figure
    from tl_distill_floor.present.report import figures_of

    return [save_figure(figure, folder / f"{name}.{suffix}").name for name, figure in figures_of(parts).items()]
