"""`tl-floor plan`: choose which student to train."""

import dataclasses
from typing import Annotated

import typer

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import DebugOption, JsonOption, RunArgument
from tl_distill_floor.cli.output import print_json, print_result


@report_errors
def plan(
    run: RunArgument,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Choose the narrowest student whose loss stays below this with 90 % confidence, in nats per token (in"
            " MSE if the run has costs in MSE and is not calibrated)."
        ),
    ] = None,
    max_width: Annotated[
        int | None, typer.Option(help="Or choose the widest student up to this width.", min=1, metavar="N")
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(help="Or choose the widest student with at most this many parameters.", min=1, metavar="N"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Layers of the student.", metavar="N", show_default="the teacher's")
    ] = None,
    pilots: Annotated[
        bool,
        typer.Option("--pilots", help="Name three narrow students whose losses would narrow the interval most."),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Choose a student by its loss or size, and say what its expected loss is based on."""
    from tl_distill_floor.cli.run_directory import load_prediction
    from tl_distill_floor.display.student_tables import pilots_table, plan_table

    floor = load_prediction(run)
    with quiet_libraries():
        from tl_distill_floor.distilling.pilots import choose_pilots
        from tl_distill_floor.distilling.plan import plan as choose_student
        from tl_distill_floor.distilling.plan import teacher_name
        from tl_distill_floor.sources.teachers import load_teacher

        teacher = load_teacher(teacher_name(floor)).model
        chosen = choose_student(
            floor, teacher, max_loss=max_loss, max_width=max_width, max_params=max_params, depth=depth
        )
        suggested = choose_pilots(floor, teacher, width=chosen.width) if pilots else None
    if as_json:
        also = {} if suggested is None else {"pilots": dataclasses.asdict(suggested)}
        print_json(dataclasses.asdict(chosen) | {"megabytes": chosen.megabytes} | also)
    else:
        print_result(plan_table(chosen, run))
        if suggested is not None:
            print_result(pilots_table(suggested, chosen, run))
