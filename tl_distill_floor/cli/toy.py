"""`tl-floor toy`: train toy models of superposition and compare their floors with the predictions."""

from pathlib import Path
from typing import Annotated

import typer

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.options import OUTPUT, DebugOption, JsonOption, SeedOption, parse_widths
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.progress import progress_bar
from tl_distill_floor.cli.unused_options import refuse_unused

PAPER_FILE = Path("runs/toy-paper.json")


@report_errors
def toy(
    ctx: typer.Context,
    features: Annotated[int, typer.Option(help="Number of features.", min=2, metavar="N")] = 40,
    alpha: Annotated[float, typer.Option(help="Sparsity: the probability that a feature is inactive.")] = 0.9,
    widths: Annotated[str, typer.Option(help="Widths of the models.")] = "2,4,8,12,16",
    slope: Annotated[
        float, typer.Option(help="The importance of feature i is i to the power of minus this number.")
    ] = 1.0,
    teacher_width: Annotated[
        int | None,
        typer.Option(
            help="Distil the models from toy teachers of this width.", min=1, metavar="N", show_default="no teacher"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Models per width, each with its own seed.", min=1, metavar="N")] = 5,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1, metavar="N")] = 6000,
    paper: Annotated[
        bool, typer.Option("--paper", help="Run the paper's 48 configurations with 20 seeds each instead.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the results of --paper; configurations that it holds are not trained again.",
            show_default=str(PAPER_FILE),
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
    seed: SeedOption = 0,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Train toy models of superposition and compare the floors that they reach with every prediction."""
    from tl_distill_floor.display.toy_views import score_table, toy_table
    from tl_distill_floor.predicting.toy_experiments import (
        ToyConfiguration,
        paper_configurations,
        train_configuration,
        train_configurations,
    )
    from tl_distill_floor.storage.locks import lock_directory

    if paper:
        of_one = ("features", "alpha", "widths", "slope", "teacher_width", "seeds", "steps")
        refuse_unused(ctx, of_one, "with --paper, which has its own configurations", also_defaults=True)
    else:
        refuse_unused(ctx, ["out"], "without --paper, whose results it holds", "save what --json prints")
    file = out or PAPER_FILE
    with progress_bar("configurations" if paper else "steps", "training", quiet=as_json) as progress:
        if paper:
            with lock_directory(file.parent):
                results = train_configurations(paper_configurations(seed), file, progress)
        else:
            configuration = ToyConfiguration(
                n_features=features,
                alpha=alpha,
                widths=tuple(parse_widths(widths) or ()),
                slope=slope,
                teacher_width=teacher_width,
                n_seeds=seeds,
                steps=steps,
                seed=seed,
            )
            results = [train_configuration(configuration, progress)]
    if as_json:
        print_json([result | {"unit": "importance-weighted squared error"} for result in results])
        return
    for result in results if len(results) <= 4 else []:
        print_result(toy_table(result))
    if len(results) > 1:
        print_result(score_table(results))
