"""`tl-floor distill`, `calibrate` and `plan`: real students, held against the prediction, and chosen by it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tl_distill_floor.cli.errors import one_sentence
from tl_distill_floor.cli.options import (
    AsJson,
    BatchSize,
    Debug,
    Device,
    Dtype,
    Model,
    Resume,
    RunDirectory,
    Seed,
    Text,
    Widths,
    default_out,
)

Start = StrEnum("Start", ["random", "teacher-slice", "svd"])
Optimizer = StrEnum("Optimizer", ["muon", "adamw"])
Schedule = StrEnum("Schedule", ["constant", "cosine"])
Divergence = StrEnum("Divergence", ["forward-kl", "reverse-kl"])
Matched = StrEnum("Matched", ["none", "activation", "kept"])


@one_sentence
def distill(
    model: Model = "tiny-prose",
    widths: Widths = None,
    text: Text = None,
    heldout: Annotated[
        str | None, typer.Option(help="Text to judge on, as --text.", show_default="what follows in --text")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to train on, repetitions included.", min=1)] = 2_000_000,
    heldout_tokens: Annotated[int, typer.Option(help="Tokens to judge on, at every evaluation.", min=1)] = 32_768,
    evaluations: Annotated[int, typer.Option(help="Points of the learning curve.", min=1)] = 24,
    depth: Annotated[int | None, typer.Option(help="Layers of the students.", show_default="the teacher's")] = None,
    start: Annotated[Start, typer.Option(help="Weights that students start from.")] = Start.svd,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    optimizer: Annotated[Optimizer, typer.Option(help="muon is for the layers' matrices.")] = Optimizer.muon,
    schedule: Annotated[Schedule, typer.Option(help="constant falls to 0 in the last fifth.")] = Schedule.constant,
    divergence: Annotated[Divergence, typer.Option(help="forward-kl is KL(teacher ‖ student).")] = Divergence[
        "forward-kl"
    ],
    temperature: Annotated[float, typer.Option(help="Of both sides' logits, in training.")] = 1.0,
    cross_entropy: Annotated[float, typer.Option(help="Share of the next token's cross-entropy in the loss.")] = 0.0,
    match: Annotated[
        Matched,
        typer.Option(help="Match the residual stream too: activation all of it, kept what the width can hold of it."),
    ] = Matched.none,
    match_layer: Annotated[
        int | None, typer.Option(help="Layer of the teacher that is matched.", show_default="the run's")
    ] = None,
    match_weight: Annotated[
        float | None, typer.Option(help="Of the matching loss beside the divergence.", show_default="20")
    ] = None,
    sae: Annotated[str | None, typer.Option(help="SAE of --match kept, as of measure.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the results.", show_default="runs/MODEL")] = None,
    early_stop: Annotated[bool, typer.Option(help="Stop a student that has reached its floor.")] = True,
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is run in, to save memory.", min=1)] = 1,
    resume: Resume = False,
    as_json: AsJson = False,
    device: Device = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the teacher, and of the students' forward passes.")] = Dtype.fp32,
    context_size: Annotated[int | None, typer.Option(help="Tokens a sequence.", show_default="256")] = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Distil students of several widths together, and say where the loss of each saturates."""
    from tl_distill_floor.cli.distilling import run_distill
    from tl_distill_floor.cli.measuring import parsed_widths
    from tl_distill_floor.distilling.config import DistillConfig
    from tl_distill_floor.distilling.losses import Objective

    training = DistillConfig(
        n_tokens=tokens,
        n_heldout_tokens=heldout_tokens,
        n_evaluations=evaluations,
        lr=lr,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=optimizer.value,
        schedule=schedule.value,
        objective=Objective(divergence.value, temperature, cross_entropy),
        dtype=dtype.value,
        early_stop=early_stop,
        seed=seed,
    )
    run_distill(
        out or default_out(model, None),
        model,
        parsed_widths(widths),
        text,
        heldout=heldout,
        depth=depth,
        start=start.value,
        match={"what": match.value, "layer": match_layer, "weight": match_weight, "sae": sae},
        config=training,
        as_json=as_json,
        resume=resume,
        device=device,
        dtype=dtype.value,
        context_size=context_size,
    )


@one_sentence
def calibrate(
    run: RunDirectory,
    students: Annotated[
        Path | None, typer.Option(help="Directory of the run that the students were distilled in.", show_default="RUN")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Hold the prediction against the students that were distilled, and fit the student's own loss to it."""
    from tl_distill_floor.cli.distilling import run_calibrate

    run_calibrate(run, students or run, as_json)


@one_sentence
def plan(
    run: RunDirectory,
    max_loss: Annotated[
        float | None, typer.Option(help="The loss that can be borne, nats per token: the narrowest student below it.")
    ] = None,
    max_width: Annotated[int | None, typer.Option(help="Or the widest student, in dimensions.", min=1)] = None,
    max_params: Annotated[int | None, typer.Option(help="Or the largest, in parameters.", min=1)] = None,
    depth: Annotated[int | None, typer.Option(help="Layers of the student.", show_default="the teacher's")] = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Say which student to train, what it will lose, and what is known and what assumed of that."""
    from tl_distill_floor.cli.distilling import run_plan

    options: dict[str, Any] = {"max_loss": max_loss, "max_width": max_width, "max_params": max_params, "depth": depth}
    run_plan(run, as_json, **options)
