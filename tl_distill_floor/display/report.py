"""`write_report` and `write_comparison`: one run, or several runs, as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import plotly.graph_objects as go

from tl_distill_floor.annotations import FigureFormat
from tl_distill_floor.display.figures import save_figure
from tl_distill_floor.display.report_sections import (
    comparison_figures,
    comparison_html,
    left_out,
    report_figures,
    report_html,
)
from tl_distill_floor.display.run_parts import load_run_parts
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.storage.locks import lock_directory

REPORT_FILE, COMPARISON_FILE, FIGURES_DIRECTORY = "report.html", "comparison.html", "figures"


@dataclass(frozen=True)
class WrittenReport:
    """The files of a report. It can be used as the path of the page, for example with `open`."""

    path: Path
    """The HTML page."""
    figures: tuple[Path, ...] = ()
    """Files of the figures, if they were asked for."""
    unreadable: tuple[str, ...] = ()
    """For each part of a run, or run of a comparison, that was left out, one sentence that says why."""

    def __fspath__(self) -> str:
        """Return the path of the page."""
        return str(self.path)


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    students: str | Path | None = None,
    width: int | None = None,
    top: int = 20,
    figures: FigureFormat | None = None,
) -> WrittenReport:
    """Write everything that a run directory holds as one HTML page.

    The page shows the floors, the students with their calibration, the probes, and the most costly lost features. It
    is self-contained: it loads nothing from elsewhere. Parts that are missing are named on the page; damaged ones are
    left out and named in the result.

    Args:
        run: run directory, as `tl-floor measure` or `FloorPrediction.save` writes it.
        out: HTML file; `report.html` in the run directory if None.
        students: run directory in which the students were distilled; `run` if None.
        width: student width, in dimensions, whose lost features are shown; the narrowest of the prediction if None.
        top: number of lost features to show.
        figures: also save every figure in this format, in the directory `figures` next to the page. It needs kaleido.

    Returns:
        WrittenReport: the path of the page, the paths of the figures, and the parts that were left out.

    Raises:
        InputError: the directory holds no run, `students` holds none, `width` or `top` is below 1, a width is given for
            a run without features, or a file cannot be written.

    Example:
        >>> from tl_distill_floor import write_report
        >>> write_report("runs/tiny-prose", figures="svg").path  # doctest: +SKIP
        PosixPath('runs/tiny-prose/report.html')
    """
    _check_format(figures)
    parts = load_run_parts(Path(run), students=None if students is None else Path(students), width=width, top=top)
    drawn = {} if figures is None else report_figures(parts)
    file = Path(run) / REPORT_FILE if out is None else Path(out)
    return _write(file, report_html(parts), drawn, figures, parts.unreadable)


def write_comparison(
    runs: Sequence[str | Path], out: str | Path | None = None, *, figures: FigureFormat | None = None
) -> WrittenReport:
    """Write a comparison of the predictions of several runs as one HTML page.

    The runs may differ in teacher, unit and widths.

    Args:
        runs: two or more run directories.
        out: HTML file; `comparison.html` in the first run directory if None.
        figures: also save every figure in this format, in the directory `figures` next to the page. It needs kaleido.

    Returns:
        WrittenReport: the path of the page, the paths of the figures, and the parts that were left out.

    Raises:
        InputError: fewer than two runs are given, one of them has no prediction, or a file cannot be written.

    Example:
        >>> from tl_distill_floor import write_comparison
        >>> write_comparison(["runs/layer-4", "runs/layer-8"], "layers.html").path  # doctest: +SKIP
        PosixPath('layers.html')
    """
    _check_format(figures)
    if len(runs) < 2:
        raise InputError(f"a comparison needs two or more runs, got {len(runs)}; name another run")
    loaded = [load_run_parts(Path(run)) for run in runs]
    for parts in loaded:
        if parts.floor is None:
            reasons = f" ({'; '.join(parts.unreadable)})" if parts.unreadable else ""
            raise InputError(
                f"{parts.name} has no prediction to compare{reasons}; make one with tl-floor measure --out"
                f" {quote(parts.name)}"
            )
    drawn = {} if figures is None else comparison_figures(loaded)
    file = Path(runs[0]) / COMPARISON_FILE if out is None else Path(out)
    return _write(file, comparison_html(loaded), drawn, figures, tuple(left_out(loaded)))


def _check_format(figures: str | None) -> None:
    """Raise an InputError unless `figures` is None or a format of `save_figure` for papers."""
    if figures is not None:
        check_choice("figures", figures, FigureFormat)


def _write(
    file: Path, page: str, drawn: Mapping[str, go.Figure], figure_format: str | None, unreadable: tuple[str, ...]
) -> WrittenReport:
    with lock_directory(file.parent):
        write_atomically(file, page.encode())
        figures = tuple(
            save_figure(figure, file.parent / FIGURES_DIRECTORY / f"{name}.{figure_format}")
            for name, figure in drawn.items()
        )
    return WrittenReport(file, figures, unreadable)
