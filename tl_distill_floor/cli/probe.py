"""`tl-floor probe`: measure what a student of each width still represents."""

import dataclasses
from collections.abc import Callable
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tl_distill_floor.annotations import FeatureSelection, Pooling
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
from tl_distill_floor.cli.unused_options import refuse_unused
from tl_distill_floor.probing.config import ProbeConfig, SparseProbeConfig

if TYPE_CHECKING:
    from tl_distill_floor.results.probes import Probes
    from tl_distill_floor.results.sparse_probes import SparseProbes

PROBES, SPARSE, FEATURES = "Probes of labels", "Sparse probes", "Decoding of features"
"""Panels of the help text."""


@report_errors
def probe(
    ctx: typer.Context,
    run: RunArgument,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Labelled text: a .jsonl, .json or .csv file (also .gz), a .parquet or .arrow file, a saved"
            " dataset, or a Hugging Face dataset; each row is a text with a label, or a list of words with a label"
            " for each.",
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
    sparse: Annotated[
        int | None,
        typer.Option(
            help="Instead, find the K features of the SAE that each label rests on, and the widths that lose them.",
            min=1,
            metavar="K",
            rich_help_panel=SPARSE,
        ),
    ] = None,
    selection: Annotated[
        FeatureSelection,
        typer.Option(
            help="Select features by the difference of their means with and without the class, or by their correlation"
            " with it.",
            rich_help_panel=SPARSE,
        ),
    ] = SparseProbeConfig.selection,
    controls: Annotated[
        int,
        typer.Option(
            help="Shuffles of the labels, and random choices of features, for each split.",
            min=1,
            metavar="N",
            rich_help_panel=SPARSE,
        ),
    ] = SparseProbeConfig.n_controls,
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
    ] = ProbeConfig.n_feature_tokens,
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
    from tl_distill_floor.results.student import load_students
    from tl_distill_floor.storage.io_errors import COPY_ADVICE
    from tl_distill_floor.storage.locks import lock_directory

    if sparse is None:
        refuse_unused(ctx, ("selection", "controls"), "without --sparse", "add --sparse K, such as --sparse 8")
    else:
        refuse_unused(ctx, ("text", "feature_tokens"), "with --sparse, which decodes no features")
    if feature_tokens == 0:
        refuse_unused(ctx, ["text"], "with --feature-tokens 0, which decodes no features")
    with (
        lock_directory(run, COPY_ADVICE),
        quiet_libraries(),
        progress_bar("probes", "probing", quiet=as_json) as progress,
    ):
        from tl_distill_floor.probing.probe_run import probe_run
        from tl_distill_floor.probing.sparse_probe import sparse_probe

        fit: Callable[..., Probes | SparseProbes]
        if sparse is None:
            fit = partial(
                probe_run,
                text=text,
                config=ProbeConfig(
                    pool=pool,
                    per_class=per_class,
                    n_splits=splits,
                    bottleneck_steps=steps,
                    n_feature_tokens=feature_tokens,
                    seed=seed,
                    batch_size=batch_size,
                ),
            )
        else:
            fit = partial(
                sparse_probe,
                config=SparseProbeConfig(
                    k=sparse,
                    selection=selection,
                    n_controls=controls,
                    pool=pool,
                    per_class=per_class,
                    n_splits=splits,
                    bottleneck_steps=steps,
                    seed=seed,
                    batch_size=batch_size,
                ),
            )
        probes = fit(
            load_floor(run),
            None,
            with_format(sae, sae_format),
            labelled,
            labels=label,
            students=load_students(students or run, required=students is not None),
            widths=parse_widths(widths),
            device=device,
            progress=progress,
        )
        probes.save(run)
    if as_json:
        print_json(dataclasses.asdict(probes))
    else:
        from tl_distill_floor.display.views import table_of

        print_result(table_of(probes), f"Saved in {run}. Next: tl-floor report {quote(str(run))}")
