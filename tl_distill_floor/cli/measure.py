"""`tl-floor measure`: measure a teacher's features and predict the loss floor of its students."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tl_distill_floor.annotations import FormattedSae
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import (
    BatchSizeOption,
    ContextSizeOption,
    CostOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    OutOption,
    ResumeOption,
    SaeFormatOption,
    SeedOption,
    StepsOption,
    TextOption,
    WidthsOption,
    default_run_directory,
    parse_widths,
    with_format,
)
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.processes import is_first_process, local_device
from tl_distill_floor.cli.progress import StagedProgress
from tl_distill_floor.cli.unused_options import is_given, refuse_unused
from tl_distill_floor.errors import InputError

if TYPE_CHECKING:
    from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
    from tl_distill_floor.predicting.config import PredictConfig
    from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction

DEFAULT_TOKENS, QUICK_TOKENS = 200_000, 50_000
"""Tokens that are read by default, with and without training."""
COST_TOKENS = 50_000
"""Tokens on which costs in nats are measured by default, about."""
N_CODES = 200_000
"""Tokens whose SAE codes are kept at most, for the simulated floor."""
SECONDS = {
    "measuring": 18.0, "reading last hidden states": 10.0, "head floor": 36.0, "simulating": 25.0,
    "removing features": 12.0, "measuring simulated students": 11.0,
}  # fmt: skip
"""Seconds that the stages of the default command take on two cores, which give the time that is left."""
HEAD_STAGES = ("reading last hidden states", "head floor")
"""Stages without an SAE."""


@report_errors
def measure(
    ctx: typer.Context,
    model: ModelArgument = "tiny-prose",
    layer: Annotated[
        str | None,
        typer.Option(
            help="Measure the residual stream after this layer, counted from 0. Several layers (4,8,12, or all) are"
            " measured in one pass; write {layer} in --sae in place of the layer's number.",
            show_default="the SAE's",
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="SAE of the teacher: RELEASE:SAE_ID of SAELens, a Hub repository, a SAELens directory, or a file of"
            " another format (.pt, .safetensors, .npz); tl-floor saes lists the known ones.",
            show_default="the known one",
        ),
    ] = None,
    sae_format: SaeFormatOption = None,
    no_sae: Annotated[
        bool,
        typer.Option(
            "--no-sae",
            help="Use no SAE: predict only the bound and the expected loss of students.",
        ),
    ] = False,
    text: TextOption = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens to read.",
            min=1,
            metavar="N",
            show_default=f"{DEFAULT_TOKENS:,}, or {QUICK_TOKENS:,} with --steps 0",
        ),
    ] = None,
    cost: CostOption = "fisher",
    cost_tokens: Annotated[
        int, typer.Option(help="Number of tokens on which costs in nats are measured, about.", min=1, metavar="N")
    ] = COST_TOKENS,
    samples: Annotated[int, typer.Option(help="Outputs that fisher samples at each position.", min=1, metavar="N")] = 1,
    widths: WidthsOption = None,
    steps: StepsOption = 1000,
    head: Annotated[
        bool, typer.Option(help="Compute the head floor too, an estimate of the least loss of any student.")
    ] = True,
    min_count: Annotated[
        int, typer.Option(help="A feature is alive if it fires on at least this many tokens.", min=1, metavar="N")
    ] = 1,
    out: OutOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "fp32",
    force: ForceOption = False,
    context_size: ContextSizeOption = None,
    batch_size: BatchSizeOption = 16,
    seed: SeedOption = 0,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Measure a teacher's SAE features and predict the loss floor of its students."""
    from tl_distill_floor.cli.layers import parse_layers, sae_of_each_layer
    from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
    from tl_distill_floor.predicting.config import PredictConfig
    from tl_distill_floor.sources.cached_activations import is_cached_activations

    n_tokens = tokens or (DEFAULT_TOKENS if steps or no_sae else QUICK_TOKENS)
    loading = LoadConfig(context_size=context_size, batch_size=batch_size, device=device, dtype=dtype)
    predicting = PredictConfig(steps=steps, head=head, min_count=min_count, seed=seed)
    if no_sae:
        refuse_unused(
            ctx,
            ("layer", "sae", "sae_format", "cost", "cost_tokens", "samples", "min_count", "head", "force", "resume"),
            "with --no-sae, which predicts from the head floor alone, without checkpoints",
        )
        measure_without_sae(
            out or default_run_directory(model, None),
            model,
            text,
            widths=parse_widths(widths),
            n_tokens=n_tokens,
            loading=loading,
            predicting=predicting,
            as_json=as_json,
        )
        return
    if cost == "energy":
        refuse_unused(ctx, ["cost_tokens"], "with --cost energy, which is measured on all tokens")
    if cost != "fisher":
        refuse_unused(ctx, ["samples"], f"with --cost {cost}, which samples no outputs")
    name = model
    if text is not None and is_cached_activations(Path(text)):
        no_teacher = ("dtype", "context_size", "cost_tokens", "samples")
        refuse_unused(ctx, no_teacher, "with cached activations, which are measured without a teacher")
        name = model if is_given(ctx, "model") else text
    layers = parse_layers(layer, model, sae)
    if out is None:
        directories = [default_run_directory(name, number) for number in layers]
    else:
        directories = [out / f"layer{number}" for number in layers] if len(layers) > 1 else [out]
    floors = measure_and_save(
        directories,
        model,
        [with_format(name, sae_format) for name in sae_of_each_layer(sae, layers)],
        text,
        layers=layers,
        widths=parse_widths(widths),
        measuring=MeasureConfig(
            cost=cost,
            n_samples=samples,
            n_tokens=n_tokens,
            n_cost_tokens=cost_tokens,
            n_codes=N_CODES if steps else 0,
            force=force,
        ),
        loading=loading,
        predicting=predicting,
        resume=resume,
        quiet=as_json,
    )
    print_floors(floors, directories, as_json)


def measure_without_sae(
    directory: Path,
    model: str,
    text: str | None,
    *,
    widths: Sequence[int] | None,
    n_tokens: int,
    loading: "LoadConfig",
    predicting: "PredictConfig",
    as_json: bool,
) -> None:
    """Predict from the head floor of a teacher alone, save the prediction in a run directory and print it.

    Args:
        directory: run directory.
        model: teacher.
        text: text to read.
        widths: student widths.
        n_tokens: tokens to read.
        loading: how the teacher is loaded and the text is read.
        predicting: the steps of a measurement with an SAE, and the seed.
        as_json: print JSON, and show no progress.
    """
    from tl_distill_floor.cli.run_directory import lock_for_measuring
    from tl_distill_floor.display.as_json import floor_json
    from tl_distill_floor.display.head_views import prediction_table

    with lock_for_measuring(directory, resume=False), quiet_libraries():
        from tl_distill_floor.predicting.without_sae import predict_without_sae
        from tl_distill_floor.results.feature_stats import STATS_FILE

        if (directory / STATS_FILE).exists():
            raise InputError(
                f"{directory} holds a measurement with an SAE, which --no-sae would replace; name another directory"
                " with --out"
            )

        floor = predict_without_sae(
            model,
            text,
            widths=widths,
            n_tokens=n_tokens,
            loading=loading,
            predicting=predicting,
            progress_bar=StagedProgress({stage: SECONDS[stage] for stage in HEAD_STAGES}, quiet=as_json),
        )
        floor.save(directory)
    if as_json:
        print_json(floor_json(floor))
    else:
        command = f"tl-floor distill {quote(model)} --out {quote(str(directory))}"
        print_result(prediction_table(floor), f"Saved in {directory}. Next: {command}")


def _stages(measuring: "MeasureConfig", predicting: "PredictConfig") -> dict[str, float]:
    """Return the stages of a measurement, with about how many seconds each takes."""
    from tl_distill_floor.predicting.config import STEPS

    steps, in_nats = predicting.steps / STEPS, measuring.cost != "energy"
    with_head = predicting.head and in_nats and steps > 0
    amount_of_work = {
        "measuring": measuring.n_tokens / DEFAULT_TOKENS,
        "reading last hidden states": float(with_head),
        "head floor": with_head * steps,
        "simulating": steps,
        "removing features": float(in_nats),
        "measuring simulated students": float(in_nats and steps > 0),
    }
    return {stage: SECONDS[stage] * amount for stage, amount in amount_of_work.items() if amount}


def save_and_print_unfinished(
    floors: "list[FeatureFloorPrediction]", directories: Sequence[Path | None], *, quiet: bool
) -> None:
    """Save unfinished predictions, and print what is new: first the features, then the losses expected of students.

    Args:
        floors: the predictions.
        directories: run directory of each; None where nothing is saved.
        quiet: print nothing.
    """
    from tl_distill_floor.display.comparison import unfinished_comparison
    from tl_distill_floor.display.floor_tables import unfinished_students_table, unfinished_table
    from tl_distill_floor.storage.atomic import commit_together

    with commit_together():
        for directory, floor in zip(directories, floors, strict=True):
            if directory is not None:
                floor.save(directory)
    if quiet:
        return
    if floors[0].head is not None:  # the same for all SAEs
        print_result(unfinished_students_table(floors[0]))
    else:
        print_result(unfinished_table(floors[0]) if len(floors) == 1 else unfinished_comparison(floors))


def measure_and_save(
    directories: Sequence[Path],
    model: str,
    saes: Sequence[str | FormattedSae | None],
    text: str | None,
    *,
    layers: Sequence[int | None],
    widths: Sequence[int] | None,
    measuring: "MeasureConfig",
    loading: "LoadConfig",
    predicting: "PredictConfig",
    resume: bool,
    quiet: bool,
) -> "list[FeatureFloorPrediction]":
    """Measure SAEs in one pass over the teacher, and save each prediction in its run directory.

    The checkpoint of an interrupted measurement is removed when all predictions are saved.

    Args:
        directories: run directory of each SAE.
        model: teacher.
        saes: SAEs; None takes the one that is known for the layer.
        text: text to read.
        layers: layer of each SAE; None takes the SAE's own.
        widths: student widths.
        measuring: what is measured of each feature, and on how many tokens.
        loading: how the teacher is loaded and the text is read.
        predicting: what is computed from the features.
        resume: continue an interrupted measurement.
        quiet: show no progress.

    Returns:
        The prediction of each SAE; an empty list in all processes but the first.
    """
    from tl_distill_floor.cli.run_directory import PARTIAL_FILE, lock_for_measuring
    from tl_distill_floor.results.floor_files import holds_finished_floor
    from tl_distill_floor.storage.atomic import commit_together, remove_file

    first = is_first_process()
    checkpoints = [directory / PARTIAL_FILE for directory in directories]
    with ExitStack() as locks, quiet_libraries():
        for directory in directories if first else ():
            locks.enter_context(lock_for_measuring(directory, resume=resume))
        # A finished prediction stays until the new one is finished.
        new_directories = [None if holds_finished_floor(directory) else directory for directory in directories]
        from tl_distill_floor.measuring.processes import current_process_group
        from tl_distill_floor.predicting.predict import predict_floors
        from tl_distill_floor.sources.cached_activations import is_cached_activations

        floors = predict_floors(
            None if text is not None and is_cached_activations(Path(text)) else model,
            saes,
            text,
            layers=layers,
            widths=widths,
            measuring=measuring,
            loading=replace(loading, device=local_device(loading.device)),
            predicting=predicting,
            checkpoints=checkpoints,
            resume=resume,
            process_group=current_process_group(),
            progress_bar=StagedProgress(_stages(measuring, predicting), quiet=quiet or not first),
            on_unfinished=partial(save_and_print_unfinished, directories=new_directories, quiet=quiet),
        )
        if not first:
            return []
        with commit_together():
            for directory, floor in zip(directories, floors, strict=True):
                floor.save(directory)
        for checkpoint in checkpoints:
            remove_file(checkpoint)
    return floors


def print_floors(floors: "Sequence[FeatureFloorPrediction]", directories: Sequence[Path], as_json: bool) -> None:
    """Print one or several predictions, and where they are saved; nothing if there are none."""
    from tl_distill_floor.display.as_json import comparison_json, floor_json
    from tl_distill_floor.display.comparison import comparison_table
    from tl_distill_floor.display.floor_tables import floor_table

    if not floors:
        return
    if as_json:
        print_json(floor_json(floors[0]) if len(floors) == 1 else comparison_json(floors))
        return
    saved = ", ".join(map(str, directories))
    table = floor_table(floors[0]) if len(floors) == 1 else comparison_table(floors)
    print_result(table, f"Saved in {saved}. Next: tl-floor lost {quote(str(directories[0]))}")
