"""`tl-floor report`: one run, or several side by side, as one page that a colleague can open."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tl_distill_floor.cli.errors import one_sentence
from tl_distill_floor.cli.options import Debug
from tl_distill_floor.display.run_parts import run_parts

if TYPE_CHECKING:
    pass

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
        Image | None,
        typer.Option(help="Write every figure too, for papers, into figures/ beside the page (needs kaleido)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="RUN/report.html")] = None,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Write a run, or several side by side, as one self-contained HTML page."""
    from rich.console import Console

    from tl_distill_floor.display.figures import save_figure
    from tl_distill_floor.display.report import compared_figures, comparison_html, figures_of, report_html
    from tl_distill_floor.errors import InputError
    from tl_distill_floor.storage.atomic import write_atomically
    from tl_distill_floor.storage.locks import lock_directory

    if compare != (len(runs) > 1):
        raise InputError(f"{len(runs)} runs given; one makes a report, two or more a comparison with --compare")
    if compare and (width is not None or students is not None):
        raise InputError("--width and --students belong to the report of one run; leave them out with --compare")
    found = [run_parts(run, students, width, top) for run in runs]
    for run, parts in zip(runs, found, strict=True):
        if compare and parts.floor is None:
            reasons = f" ({'; '.join(parts.absent)})" if parts.absent else ""
            raise InputError(
                f"{run} holds no prediction to compare{reasons}; make one with tl-floor measure --out {run}"
            )
    page = comparison_html(found) if compare else report_html(found[0])
    file = out or runs[0] / ("comparison.html" if compare else REPORT_FILE)
    console = Console(highlight=False, markup=False)
    for reason in (reason for parts in found for reason in parts.absent):
        console.print(f"! left out: {reason}", style="yellow")
    with lock_directory(file.parent):
        write_atomically(file, page.encode())
        console.print(f"Saved {file} ({file.stat().st_size / 1e6:.1f} MB)")
        if figures is not None:
            drawn = compared_figures(found) if compare else figures_of(found[0])
            for name, figure in drawn.items():
                saved = save_figure(figure, file.parent / FIGURES / f"{name}.{figures.value}")
                console.print(f"Saved {saved}", style="dim")
