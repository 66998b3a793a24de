"""`tl-floor distill`: distil students of several widths."""

import dataclasses
from contextlib import nullcontext
from shlex import quote
from typing import Annotated

import typer

from tl_distill_floor.annotations import Divergence, OptimizerName, ScheduleName, StudentStart
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import (
    COMPUTATION,
    STARTS,
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MatchedActivation,
    ModelArgument,
    OutOption,
    ResumeOption,
    SeedOption,
    TrainingTextOption,
    default_run_directory,
    parse_widths,
    with_format,
)
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.processes import is_first_process, local_device
from tl_distill_floor.cli.progress import progress_bar
from tl_distill_floor.cli.unused_options import refuse_unused

EVALUATION, LOSS, OPTIMIZATION, MATCHING = "Evaluation", "Loss", "Optimization", "Hook matching"
"""Panels of the help text."""
DEFAULT_DIVISORS = (8, 4, 2)
"""The teacher's width divided by these gives the default widths."""


@report_errors
def distill(
    ctx: typer.Context,
    model: ModelArgument = "tiny-prose",
    widths: Annotated[
        str | None,
        typer.Option(
            help="Student widths (d_model), such as 64,128,256.", show_default="1/8, 1/4 and 1/2 of the teacher's"
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Layers of the students.", metavar="N", show_default="the teacher's")
    ] = None,
    start: Annotated[StudentStart, typer.Option(help=f"Initial weights: {STARTS}", metavar="START")] = "svd",
    text: TrainingTextOption = None,
    tokens: Annotated[
        int, typer.Option(help="Number of tokens to train on, including repetitions of the text.", min=1, metavar="N")
    ] = 2_000_000,
    heldout: Annotated[
        str | None,
        typer.Option(
            help="Text to evaluate on, given as in --text.",
            show_default="the last part of --text",
            rich_help_panel=EVALUATION,
        ),
    ] = None,
    heldout_tokens: Annotated[
        int, typer.Option(help="Number of tokens to evaluate on.", min=1, metavar="N", rich_help_panel=EVALUATION)
    ] = 32_768,
    evaluations: Annotated[
        int, typer.Option(help="Points of the learning curve.", min=1, metavar="N", rich_help_panel=EVALUATION)
    ] = 24,
    early_stop: Annotated[
        bool,
        typer.Option(
            help="Stop training a student when its loss has reached the floor of its learning curve.",
            rich_help_panel=EVALUATION,
        ),
    ] = True,
    divergence: Annotated[
        Divergence,
        typer.Option(
            help="forward-kl is KL(teacher ‖ student), reverse-kl is KL(student ‖ teacher).", rich_help_panel=LOSS
        ),
    ] = "forward-kl",
    temperature: Annotated[
        float, typer.Option(help="Temperature of both models' outputs during training.", rich_help_panel=LOSS)
    ] = 1.0,
    cross_entropy: Annotated[
        float,
        typer.Option(help="Share of the next token's cross-entropy in the loss, from 0 to 1.", rich_help_panel=LOSS),
    ] = 0.0,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=OPTIMIZATION)] = 3e-3,
    optimizer: Annotated[
        OptimizerName,
        typer.Option(
            help="muon trains the matrices of the layers with Muon and the rest with AdamW.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = "muon",
    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="Schedule of the learning rate; constant decays to 0 in the last fifth of the training.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = "constant",
    accumulate: Annotated[
        int,
        typer.Option(
            help="Split each batch into this many parts, to save memory.",
            min=1,
            metavar="N",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = 1,
    match: Annotated[
        MatchedActivation,
        typer.Option(
            help="Train the students to predict the teacher's residual stream too: all of it (activation), or the"
            " part that is predicted to fit into the width (kept).",
            rich_help_panel=MATCHING,
        ),
    ] = "none",
    match_layer: Annotated[
        int | None,
        typer.Option(
            help="Layer of the teacher to match.", metavar="N", show_default="the run's", rich_help_panel=MATCHING
        ),
    ] = None,
    match_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the matching loss relative to the divergence.", show_default="20", rich_help_panel=MATCHING
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="SAE of --match kept, given as in tl-floor measure.",
            show_default="the known one",
            rich_help_panel=MATCHING,
        ),
    ] = None,
    sae_format: Annotated[
        str | None,
        typer.Option(
            help="What the keys of an --sae file mean, given as in tl-floor measure.",
            show_default="recognised",
            metavar="NAME_OR_JSON",
            rich_help_panel=MATCHING,
        ),
    ] = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "fp32",
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Let each process of torchrun hold only a part of the weights of teacher and students (FSDP)."
            " Always on under accelerate launch --use_fsdp.",
            rich_help_panel=COMPUTATION,
        ),
    ] = False,
    context_size: Annotated[
        int | None,
        typer.Option(help="Tokens per sequence.", metavar="N", show_default="256", rich_help_panel=COMPUTATION),
    ] = None,
    batch_size: BatchSizeOption = 16,
    seed: SeedOption = 0,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Distil students of several widths, and estimate the loss at which each one saturates."""
    if match != "kept":
        where = "unless the students match the part of the activation that features reconstruct"
        refuse_unused(ctx, ("sae", "sae_format"), where, "add --match kept")
    if match == "none":
        refuse_unused(ctx, ("match_layer", "match_weight"), "without --match", "add --match activation or --match kept")
    if cross_entropy == 1:
        refuse_unused(ctx, ("divergence", "temperature"), "with --cross-entropy 1, which leaves out the divergence")
    first, directory = is_first_process(), out or default_run_directory(model)
    quiet = as_json or not first
    asked_widths = parse_widths(widths)
    with quiet_libraries(), progress_bar("tokens", "distilling", quiet=quiet) as progress:
        from tl_distill_floor.cli.match_options import match_hook_points
        from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
        from tl_distill_floor.distilling.training.distill import distill_students
        from tl_distill_floor.distilling.training.losses import Objective
        from tl_distill_floor.distilling.training.sharding import launched_with_fsdp
        from tl_distill_floor.sources.teachers import load_teacher, load_teacher_shell
        from tl_distill_floor.storage.locks import lock_directory

        config = DistillConfig(
            n_tokens=tokens,
            n_heldout_tokens=heldout_tokens,
            n_evaluations=evaluations,
            lr=lr,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=optimizer,
            schedule=schedule,
            objective=Objective(divergence, temperature, cross_entropy),
            dtype=dtype,
            early_stop=early_stop,
            seed=seed,
        )
        device = local_device(device)
        shard = shard or launched_with_fsdp()
        # A sharded teacher is loaded by `distill_students`, in the first process only.
        teacher = load_teacher_shell(model, dtype=dtype) if shard else load_teacher(model, device=device, dtype=dtype)
        teacher_width = int(teacher.model.cfg.d_model)
        specs = match_hook_points(
            [
                StudentSpec(width, depth, start, seed)
                for width in asked_widths or [max(1, teacher_width // divisor) for divisor in DEFAULT_DIVISORS]
            ],
            teacher,
            directory,
            match=match,
            layer=match_layer,
            weight=match_weight,
            has_weights=not shard,
            sae=with_format(sae, sae_format),
            device=device,
        )
        with lock_directory(directory) if first else nullcontext():
            students = distill_students(
                model if shard else teacher,
                specs,
                text,
                out=directory,
                heldout=heldout,
                config=config,
                context_size=context_size,
                device=device,
                dtype=dtype,
                shard=shard,
                resume=resume,
                progress=progress,
            )
    if not first:
        return
    if as_json:
        print_json([dataclasses.asdict(student) | {"unit": "nats"} for student in students])
        return
    from tl_distill_floor.display.student_views import students_table

    note = f"Saved in {directory / 'students'}. Next: tl-floor calibrate {quote(str(directory))}"
    print_result(students_table(students), note)
