"""`tl-floor plan`: choose which student to train."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_distill_floor.annotations import MemoryDtype, StudentStart
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import STARTS, DebugOption, DeviceOption, JsonOption, RunArgument
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.unused_options import refuse_unused
from tl_distill_floor.results.byte_sizes import parse_bytes

if TYPE_CHECKING:
    from tl_distill_floor.results.plan import Pilots, Plan

LIMITS, PILOTS, EXPORT = "Limits", "Pilots", "Export"
"""Panels of the help text."""


@report_errors
def plan(
    ctx: typer.Context,
    run: RunArgument,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Choose the narrowest student whose loss stays below this with 90 % confidence, in nats per token (in"
            " MSE if the run has costs in MSE and is not calibrated). Without it, the widest student within the other"
            " limits is chosen.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_width: Annotated[
        int | None, typer.Option(help="Largest width.", min=1, metavar="N", rich_help_panel=LIMITS)
    ] = None,
    max_params: Annotated[
        int | None, typer.Option(help="Largest number of parameters.", min=1, metavar="N", rich_help_panel=LIMITS)
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory of the weights and the KV cache of one sequence together, such as 2GB (2 · 10^9 bytes) or"
            " 2GiB (2 · 2^30 bytes).",
            metavar="SIZE",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    memory_dtype: Annotated[
        MemoryDtype, typer.Option(help="Dtype of the weights and the KV cache.", rich_help_panel=LIMITS)
    ] = "bf16",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens in the KV cache.",
            metavar="N",
            show_default="4096, or the teacher's context",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            help="Least speed of the student's forward pass, as a multiple of the teacher's, on this machine.",
            metavar="X",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    divisor: Annotated[
        int | None,
        typer.Option(help="The width is a multiple of this, such as 64.", min=1, metavar="N", rich_help_panel=LIMITS),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Layers of the student. What fewer layers cost is not predicted.",
            metavar="N",
            show_default="the teacher's",
        ),
    ] = None,
    pilots: Annotated[
        bool,
        typer.Option(
            "--pilots",
            help="Name three narrow students whose losses would narrow the interval most.",
            rich_help_panel=PILOTS,
        ),
    ] = False,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Distil these students into the run, unless it has them already, calibrate it, and plan again. Repeat"
            " the command to continue after an interruption.",
            rich_help_panel=PILOTS,
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens to train on, including repetitions of the text.",
            min=1,
            metavar="N",
            show_default="2000000",
            rich_help_panel=PILOTS,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to train on, given as in tl-floor distill.",
            show_default="the run's, if it is the built-in text",
            rich_help_panel=PILOTS,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Directory to create with the student's Hugging Face configuration and the teacher's tokenizer, for"
            " other trainers.",
            metavar="DIR",
            rich_help_panel=EXPORT,
        ),
    ] = None,
    start: Annotated[
        StudentStart | None,
        typer.Option(
            "--start",
            "--init",
            help=f"Write initial weights too: {STARTS}",
            show_default="no weights",
            rich_help_panel=EXPORT,
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Choose a student by its loss, size, memory and speed, and say what its expected loss is based on."""
    from tl_distill_floor.cli.run_directory import load_prediction
    from tl_distill_floor.display.plan_views import pilots_table, plan_table, trained_pilots_table

    if export is None:
        refuse_unused(ctx, ["start"], "without --export, the directory of the weights", "add --export DIR")
    if not pilots:
        refuse_unused(ctx, ["train"], "without --pilots, the students that it trains", "add --pilots")
    if not train:
        refuse_unused(ctx, ("tokens", "text"), "unless pilots are trained", "add --pilots --train")
    most_memory = None if max_memory is None else parse_bytes(max_memory)
    floor = load_prediction(run)
    with quiet_libraries():
        from tl_distill_floor.cli.pilots_option import TrainedPilots, plan_with_progress, train_and_plan
        from tl_distill_floor.distilling.planning.pilots import check_training_text, choose_pilots
        from tl_distill_floor.distilling.planning.plan import plan as choose_student
        from tl_distill_floor.distilling.students.export import check_export_directory, export_student
        from tl_distill_floor.sources.teachers import load_teacher

        if export is not None:
            check_export_directory(export)
        if train:
            check_training_text(floor, text)
        teacher = load_teacher(floor.model_name, device=device)

        choose = partial(
            choose_student,
            teacher=teacher,
            max_loss=max_loss,
            max_width=max_width,
            max_params=max_params,
            max_memory=most_memory,
            memory_dtype=memory_dtype,
            context=context,
            min_speedup=min_speedup,
            divisor=divisor,
            depth=depth,
        )
        trained: TrainedPilots | None = None
        if train:
            trained = train_and_plan(floor, choose, teacher, run, text, tokens, quiet=as_json)
        chosen = plan_with_progress(floor, choose, quiet=as_json) if trained is None else trained.plan
        suggested = choose_pilots(floor, teacher, width=chosen.width) if pilots and trained is None else None
        if export is not None:
            export_student(teacher, chosen, export, start=start)
    if as_json:
        print_json(_plan_json(chosen, suggested if trained is None else trained.pilots, trained is not None, export))
        return
    if trained is not None:
        print_result(trained_pilots_table(trained.pilots, trained.width, trained.now, trained.warnings))
    print_result(plan_table(chosen, run))
    if suggested is not None:
        print_result(pilots_table(suggested, chosen, run))
    if export is not None:
        print_result(f"Saved in {export}: the configuration" + (f" and {start} weights" if start else ""))


def _plan_json(plan: "Plan", pilots: "Pilots | None", were_trained: bool, export: Path | None) -> dict[str, object]:
    """Return a plan as one JSON object, with its pilots and the directory of the exported student if there are any."""
    with_pilots = {} if pilots is None else {"pilots": dataclasses.asdict(pilots), "trained": were_trained}
    with_export = {} if export is None else {"export": str(export)}
    return dataclasses.asdict(plan) | {"megabytes": plan.megabytes} | with_pilots | with_export
