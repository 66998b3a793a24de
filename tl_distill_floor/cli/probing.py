"""`tl-floor probe`: what can still be read off a student, and what was forecast of that."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tl_distill_floor.cli.errors import one_sentence
from tl_distill_floor.cli.options import AsJson, BatchSize, Debug, Device, RunDirectory, Seed, Widths

Pool = StrEnum("Pool", ["mean", "last"])


@one_sentence
def probe(
    run: RunDirectory,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="LabelledText text: a .jsonl file (also .gz) with a text and a label a line, or words and a label for"
            " each; or a Hugging Face dataset.",
            show_default="embedded passages",
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Field that is a label; may be given several times.", show_default="label")
    ] = None,
    sae: Annotated[str | None, typer.Option(help="SAE that the run was measured with, as of measure.")] = None,
    students: Annotated[
        Path | None, typer.Option(help="Directory of the run that the students were distilled in.", show_default="RUN")
    ] = None,
    widths: Widths = None,
    pool: Annotated[Pool, typer.Option(help="What of a text is probed for labels of texts.")] = Pool.mean,
    per_class: Annotated[int, typer.Option(help="Items of a class at the most.", min=2)] = 1000,
    splits: Annotated[int, typer.Option(help="Splits of the documents, each with probes of its own.", min=1)] = 5,
    text: Annotated[
        str | None, typer.Option(help="Text on which features are read off, as of measure.", show_default="embedded")
    ] = None,
    feature_tokens: Annotated[int, typer.Option(help="Tokens of it; 0 reads no features off.", min=0)] = 60_000,
    steps: Annotated[int, typer.Option(help="Steps of the bottleneck students; 0 trains none.", min=0)] = 1000,
    as_json: AsJson = False,
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Probe what survives a width: labels of texts and words, and the teacher's own features."""
    from rich.console import Console

    from tl_distill_floor.cli.lost import loaded_run
    from tl_distill_floor.cli.measuring import parsed_widths, progress_bar, quiet_libraries
    from tl_distill_floor.display.probe_tables import probes_view
    from tl_distill_floor.results.student import load_students
    from tl_distill_floor.storage.io_errors import COPY_ADVICE
    from tl_distill_floor.storage.locks import lock_directory

    with lock_directory(run, COPY_ADVICE), quiet_libraries(), progress_bar(as_json, "probes", "probing") as progress:
        from tl_distill_floor.probing.probe_run import ProbeConfig, probe_run

        floor = loaded_run(run)
        probing = ProbeConfig(pool.value, per_class, splits, steps, feature_tokens, seed, batch_size)
        probes = probe_run(
            floor,
            None,
            sae,
            labelled,
            labels=label,
            students=load_students(students or run),
            widths=parsed_widths(widths),
            text=text,
            config=probing,
            device=device,
            progress=progress,
        )
        probes.save(run)
    if as_json:
        print(json.dumps(dataclasses.asdict(probes)))
        return
    console = Console(highlight=False, markup=False)
    console.print(probes_view(probes))
    console.print(f"Saved in {run}. Next: tl-floor report {run}", style="dim")
