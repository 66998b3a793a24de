"""`tl-floor report`: write one run, or a comparison of several, as an HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from tl_distill_floor.annotations import FigureFormat
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.options import OUTPUT, DebugOption, PromotedOption, StudentsOption
from tl_distill_floor.cli.output import print_result
from tl_distill_floor.cli.unused_options import refuse_unused
from tl_distill_floor.errors import InputError


@report_errors
def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Run directory; two or more with --compare.")],
    compare: Annotated[bool, typer.Option("--compare", help="Compare several runs.")] = False,
    students: StudentsOption = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Width whose lost features are listed.", metavar="N", show_default="the narrowest of the prediction"
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of lost features to list.", min=1, metavar="N")] = 20,
    promoted: PromotedOption = False,
    figures: Annotated[
        FigureFormat | None,
        typer.Option(
            help="Also save each figure in this format, in the directory figures next to the page (needs kaleido).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.", show_default="RUN/report.html", rich_help_panel=OUTPUT)
    ] = None,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Write a run, or a comparison of several runs, as one self-contained HTML page."""
    from rich.text import Text

    from tl_distill_floor.cli.promoted_option import compute_and_save_promoted_tokens
    from tl_distill_floor.cli.run_directory import load_floor
    from tl_distill_floor.display.report import write_comparison, write_report
    from tl_distill_floor.predicting.lost_features import lost_features

    if compare and len(runs) == 1:
        raise InputError("a comparison needs two or more runs; name another run, or leave out --compare")
    if not compare and len(runs) > 1:
        raise InputError(f"a report is of one run, got {len(runs)}; add --compare to compare them")
    if compare:
        of_one_run = ("students", "width", "top", "promoted")
        refuse_unused(ctx, of_one_run, "with --compare, which shows neither students nor lost features")
        written = write_comparison(runs, out, figures=figures)
    else:
        if promoted:
            floor = load_floor(runs[0])
            compute_and_save_promoted_tokens(runs[0], floor, lost_features(floor, width, top).lost[:top])
        written = write_report(runs[0], out, students=students, width=width, top=top, figures=figures)
    for reason in written.unreadable:
        print_result(Text(f"! left out: {reason}", style="yellow"))
    print_result(f"Saved {written.path} ({written.path.stat().st_size / 1e6:.1f} MB)")
    for figure in written.figures:
        print_result(Text(f"Saved {figure}", style="dim"))
