"""`tl-floor`: the commands. Their modules, and torch with them, are imported only when a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_distill_floor.cli import student_commands
from tl_distill_floor.cli.errors import one_sentence
from tl_distill_floor.cli.options import (
    Architecture,
    AsJson,
    BatchSize,
    Context,
    Cost,
    Debug,
    Device,
    Dtype,
    Layer,
    Model,
    Resume,
    RunDirectory,
    Seed,
    Steps,
    Text,
    Tokens,
    Widths,
    Worth,
    default_out,
    short_name,
)
from tl_distill_floor.cli.probing import probe
from tl_distill_floor.cli.reporting import report

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

app = typer.Typer(
    name="tl-floor",
    help="Predict the loss floor of a distilled language model from its teacher's sparse autoencoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CODES = 200_000
"""Tokens whose codes are kept at the most."""


@app.command()
@one_sentence
def measure(
    model: Model = "tiny-prose",
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer after which the residual stream is read; several such as 4,8,12, or all, in one pass, with"
            " {layer} in --sae for its number."
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="release:sae_id of SAELens, a Hub repository, a SAELens directory, or a .pt or .safetensors."
        ),
    ] = None,
    text: Text = None,
    tokens: Tokens = 200_000,
    cost: Worth = Cost.fisher,
    samples: Annotated[int, typer.Option(help="Outputs sampled at each position for fisher.", min=1)] = 1,
    widths: Widths = None,
    steps: Steps = None,
    min_count: Annotated[int, typer.Option(help="Times that a feature must fire to be alive.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Directory of the results.", show_default="runs/MODEL")] = None,
    resume: Resume = False,
    as_json: AsJson = False,
    device: Device = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the teacher.")] = Dtype.fp32,
    context_size: Context = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Measure a teacher's features and predict the loss floor of its students."""
    from tl_distill_floor.cli.measuring import Run, parsed_layers, parsed_widths, run_measure, saes_of_layers

    layers = parsed_layers(layer, model, sae)
    named = (out / f"layer{n}" if out and len(layers) > 1 else out or default_out(model, n) for n in layers)
    runs = [Run(directory, resume=resume, quiet=as_json) for directory in named]
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    floors = run_measure(
        runs,
        model,
        saes_of_layers(sae, layers),
        text,
        layers=layers,
        cost=cost.value,
        n_samples=samples,
        n_tokens=tokens,
        n_codes=0 if steps == 0 else CODES,
        device=device,
        dtype=dtype.value,
        context_size=context_size,
        batch_size=batch_size,
        widths=parsed_widths(widths),
        min_count=min_count,
        seed=seed,
        **options,
    )
    if not floors:  # another process has them
        return
    if len(floors) == 1:
        show(floors[0], runs[0].directory, as_json)
    else:
        show_several(floors, [run.directory for run in runs], as_json)


@app.command()
@one_sentence
def compare(
    model: Model,
    sae: Annotated[list[str], typer.Option(help="An SAE; give two or more, each with its own --sae.")],
    layer: Layer = None,
    text: Text = None,
    tokens: Tokens = 200_000,
    cost: Worth = Cost.fisher,
    widths: Widths = None,
    steps: Steps = None,
    out: Annotated[Path | None, typer.Option(help="Directory.", show_default="runs/MODEL-compared")] = None,
    resume: Resume = False,
    as_json: AsJson = False,
    device: Device = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the teacher.")] = Dtype.fp32,
    context_size: Context = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Measure several SAEs of one teacher in one pass: which conclusions survive the choice of the SAE."""
    from tl_distill_floor.cli.measuring import Run, parsed_widths, run_measure
    from tl_distill_floor.errors import InputError

    if len(sae) < 2:
        raise InputError("comparing takes two SAEs or more; add another --sae, or use tl-floor measure")
    directory = out or Path("runs") / f"{short_name(model)}-compared"
    runs = [Run(directory / f"sae{number}", resume=resume, quiet=as_json) for number in range(len(sae))]
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    floors = run_measure(
        runs,
        model,
        list(sae),
        text,
        layers=[layer] * len(sae),
        cost=cost.value,
        n_tokens=tokens,
        n_codes=0 if steps == 0 else CODES,
        device=device,
        dtype=dtype.value,
        context_size=context_size,
        batch_size=batch_size,
        widths=parsed_widths(widths),
        seed=seed,
        **options,
    )
    if floors:
        show_several(floors, [run.directory for run in runs], as_json)


@app.command()
@one_sentence
def saes(
    model: Model,
    layer: Layer = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array and nothing else.")] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """List the SAEs that are known for a model."""
    import dataclasses

    from rich.console import Console

    from tl_distill_floor.display.floor_tables import saes_view
    from tl_distill_floor.errors import InputError
    from tl_distill_floor.sources.sae_directory import find_saes

    found = find_saes(model, layer)
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found]))
    elif found:
        Console().print(saes_view(model, found))
    else:
        where = "L" if layer is None else layer
        raise InputError(f"no SAE is known for {model}; train one: tl-floor train-sae {model} --layer {where}")


@app.command("train-sae")
@one_sentence
def train_sae(
    model: Model,
    layer: Annotated[int, typer.Option(help="Layer after which the residual stream is read.")],
    text: Text = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write.", show_default="MODEL-layerL-sae")] = None,
    features: Annotated[int | None, typer.Option(help="Features.", show_default="8 times the width", min=1)] = None,
    k: Annotated[int, typer.Option(help="Active features per token.", min=1)] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.", min=8192)] = 4_000_000,
    architecture: Annotated[Architecture, typer.Option(help="SAELens architecture.")] = Architecture.batchtopk,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    device: Device = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the teacher.")] = Dtype.fp32,
    context_size: Annotated[int, typer.Option(help="Tokens a sequence.", min=2)] = 256,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    resume: Resume = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Train an SAE where none exists, with SAELens's trainer, and save it as a SAELens directory."""
    from tl_distill_floor.cli.measuring import train

    train(
        model,
        text,
        layer=layer,
        out=out or Path(f"{short_name(model)}-layer{layer}-sae"),
        d_sae=features,
        k=k,
        n_tokens=tokens,
        architecture=architecture.value,
        lr=lr,
        device=device,
        dtype=dtype.value,
        context_size=context_size,
        batch_size=batch_size,
        seed=seed,
        resume=resume,
    )


@app.command()
@one_sentence
def toy(
    features: Annotated[int, typer.Option(help="Features of the task.", min=2)] = 40,
    alpha: Annotated[float, typer.Option(help="Sparsity: the probability that a feature is inactive.")] = 0.9,
    widths: Annotated[str, typer.Option(help="Widths of the models.")] = "2,4,8,12,16",
    slope: Annotated[float, typer.Option(help="Importances are i to the power of minus this.")] = 1.0,
    teacher_width: Annotated[int | None, typer.Option(help="Distil from toy teachers of this width.", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="Models a width.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 6000,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's 48 configurations with 20 seeds.")] = False,
    out: Annotated[Path, typer.Option(help="File of --paper's results; what it holds is not done again.")] = Path(
        "runs/toy-paper.json"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array and nothing else.")] = False,
    seed: Seed = 0,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Train toy models of superposition and compare the floors they reach with every prediction."""
    from tl_distill_floor.cli.measuring import parsed_widths, progress_bar
    from tl_distill_floor.cli.toy import show_toys
    from tl_distill_floor.predicting.toy_experiments import Configuration, paper_configurations, reached, run_all
    from tl_distill_floor.storage.locks import lock_directory

    with progress_bar(as_json, "configurations" if paper else "steps", "training") as progress:
        if paper:
            with lock_directory(out.parent):
                results = run_all(paper_configurations(seed), out, progress)
        else:
            sizes = tuple(parsed_widths(widths) or ())
            one = Configuration(features, alpha, sizes, slope, teacher_width, seeds, steps, seed)
            results = [reached(one, progress)]
    show_toys(results, as_json)


@app.command()
@one_sentence
def lost(
    run: RunDirectory,
    width: Annotated[
        int | None, typer.Option(help="Width of the student.", show_default="the narrowest of the prediction")
    ] = None,
    feature: Annotated[int | None, typer.Option(help="Show this feature alone, over the prediction's widths.")] = None,
    top: Annotated[int, typer.Option(help="How many of the lost features to describe.")] = 20,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Show which features a student of some width loses, what they fire on, and from which width on one survives."""
    from tl_distill_floor.cli.lost import loaded_run, show_feature, show_lost

    floor = loaded_run(run)
    if feature is None:
        show_lost(floor, width, top, as_json)
    else:
        show_feature(floor, feature, width, as_json)


for command in (student_commands.distill, student_commands.calibrate, student_commands.plan, probe, report):
    app.command()(command)


def show(floor: "FloorPrediction", directory: Path, as_json: bool) -> None:
    """The prediction on stdout: one JSON object, or a table and where it was saved."""
    from rich.console import Console

    from tl_distill_floor.display.as_json import floor_json
    from tl_distill_floor.display.floor_tables import floor_view

    if as_json:
        print(json.dumps(floor_json(floor)))
        return
    console = Console(highlight=False, markup=False)
    console.print(floor_view(floor))
    console.print(f"Saved in {directory}", style="dim")


def show_several(floors: "list[FloorPrediction]", directories: list[Path], as_json: bool) -> None:
    """Several predictions on stdout: one JSON object, or a table and where they were saved."""
    from rich.console import Console

    from tl_distill_floor.display.as_json import several_json
    from tl_distill_floor.display.comparison import several_view

    if as_json:
        print(json.dumps(several_json(floors)))
        return
    console = Console(highlight=False, markup=False)
    console.print(several_view(floors))
    console.print(f"Saved in {', '.join(str(directory) for directory in directories)}", style="dim")


def main() -> Any:
    """The entry point `tl-floor`."""
    return app()
