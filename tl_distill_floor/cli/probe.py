"""`tl-floor probe`: measure what a student of each width still represents."""

import dataclasses
from typing import Annotated

import typer

from tl_distill_floor.annotations import Pooling
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import (
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SaeFormatOption,
    SeedOption,
    StudentsOption,
    parse_widths,
    with_format,
)
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.progress import progress_bar

PROBES, FEATURES = "Probes of labels", "Decoding of features"


@report_errors
def probe(
    run: RunArgument,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Labelled text: a .jsonl file (also .gz) or a Hugging Face dataset; each row is a text with a label,"
            " or a list of words with a label for each.",
            show_default="built-in passages",
            rich_help_panel=PROBES,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of the field with the label; repeat the option for several labels.",
            show_default="label",
            rich_help_panel=PROBES,
        ),
    ] = None,
    pool: Annotated[
        Pooling,
        typer.Option(
            help="For labels of texts, probe the mean activation of a text or that of its last token.",
            rich_help_panel=PROBES,
        ),
    ] = "mean",
    per_class: Annotated[
        int, typer.Option(help="Items per class at most.", min=2, metavar="N", rich_help_panel=PROBES)
    ] = 1000,
    splits: Annotated[
        int,
        typer.Option(
            help="Random splits of the documents into training and test sets.",
            min=1,
            metavar="N",
            rich_help_panel=PROBES,
        ),
    ] = 5,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text on which features are decoded, given as in tl-floor measure.",
            show_default="built-in text",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    feature_tokens: Annotated[
        int,
        typer.Option(
            help="Number of tokens on which features are decoded; 0 decodes none.",
            min=0,
            metavar="N",
            rich_help_panel=FEATURES,
        ),
    ] = 60_000,
    sae: Annotated[
        str | None,
        typer.Option(
            help="SAE that the run was measured with, given as in tl-floor measure.", show_default="the known one"
        ),
    ] = None,
    sae_format: SaeFormatOption = None,
    students: StudentsOption = None,
    widths: Annotated[
        str | None,
        typer.Option(
            help="Widths for which the probes are predicted, such as 64,128,256.",
            show_default="the students', or the prediction's",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Training steps of the bottleneck students; 0 skips them.", min=0, metavar="N")
    ] = 1000,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    batch_size: BatchSizeOption = 16,
    seed: SeedOption = 0,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Probe the teacher and its students for labels of texts and words, and for the teacher's SAE features."""
    from tl_distill_floor.cli.run_directory import load_floor
    from tl_distill_floor.display.probe_tables import probes_table
    from tl_distill_floor.results.student import load_students
    from tl_distill_floor.storage.io_errors import COPY_ADVICE
    from tl_distill_floor.storage.locks import lock_directory

    with (
        lock_directory(run, COPY_ADVICE),
        quiet_libraries(),
        progress_bar("probes", "probing", quiet=as_json) as progress,
    ):
        from tl_distill_floor.probing.config import ProbeConfig
        from tl_distill_floor.probing.probe_run import probe_run

        floor = load_floor(run)
        config = ProbeConfig(pool, per_class, splits, steps, feature_tokens, seed, batch_size)
        probes = probe_run(
            floor,
            None,
            with_format(sae, sae_format),
            labelled,
            labels=label,
            students=load_students(students or run),
            widths=parse_widths(widths),
            text=text,
            config=config,
            device=device,
            progress=progress,
        )
        probes.save(run)
    if as_json:
        print_json(dataclasses.asdict(probes))
    else:
        print_result(probes_table(probes), f"Saved in {run}. Next: tl-floor report {run}")
