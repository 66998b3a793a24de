"""`tl-floor train-sae`: train an SAE on a teacher's activations."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from tl_distill_floor.annotations import SaeArchitecture
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import (
    COMPUTATION,
    OUTPUT,
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    ResumeOption,
    SeedOption,
    TrainingTextOption,
    short_name,
)
from tl_distill_floor.cli.output import print_result
from tl_distill_floor.cli.progress import progress_bar


@report_errors
def train_sae(
    model: ModelArgument,
    layer: Annotated[
        int, typer.Option(help="Train on the residual stream after this layer, counted from 0.", metavar="N")
    ],
    text: TrainingTextOption = None,
    features: Annotated[
        int | None,
        typer.Option(help="Number of features.", show_default="8 times the teacher's width", min=1, metavar="N"),
    ] = None,
    k: Annotated[int, typer.Option(help="Active features per token.", min=1, metavar="N")] = 32,
    tokens: Annotated[int, typer.Option(help="Number of tokens to train on.", min=8192, metavar="N")] = 4_000_000,
    architecture: Annotated[SaeArchitecture, typer.Option(help="SAELens architecture.")] = "batchtopk",
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write.", show_default="MODEL-layerN-sae", rich_help_panel=OUTPUT),
    ] = None,
    resume: ResumeOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "fp32",
    context_size: Annotated[
        int, typer.Option(help="Tokens per sequence.", min=2, metavar="N", rich_help_panel=COMPUTATION)
    ] = 256,
    batch_size: BatchSizeOption = 16,
    seed: SeedOption = 0,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Train an SAE with SAELens's trainer, for a model that has none, and save it as a SAELens directory."""
    directory = out or Path(f"{short_name(model)}-layer{layer}-sae")
    with quiet_libraries(), progress_bar("tokens", "training", quiet=False) as progress:
        from tl_distill_floor.sae_training.train_sae import train_sae as train

        train(
            model,
            text,
            layer=layer,
            out=directory,
            d_sae=features,
            k=k,
            n_tokens=tokens,
            architecture=architecture,
            lr=lr,
            device=device,
            dtype=dtype,
            context_size=context_size,
            batch_size=batch_size,
            seed=seed,
            resume=resume,
            progress=progress,
        )
    command = f"tl-floor measure {quote(model)} --layer {layer} --sae {quote(str(directory))}"
    print_result(f"Saved in {directory}.", f"Next: {command}")
