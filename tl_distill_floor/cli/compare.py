"""`tl-floor compare`: measure several SAEs of one teacher."""

from pathlib import Path
from typing import Annotated

import typer

from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.measure import N_CODES, measure_and_save, print_floors
from tl_distill_floor.cli.options import (
    OUTPUT,
    BatchSizeOption,
    ContextSizeOption,
    CostOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    LayerOption,
    ModelArgument,
    ResumeOption,
    SaeFormatOption,
    SeedOption,
    StepsOption,
    TextOption,
    TokensOption,
    WidthsOption,
    parse_widths,
    short_name,
    with_format,
)
from tl_distill_floor.errors import InputError


@report_errors
def compare(
    model: ModelArgument,
    sae: Annotated[
        list[str], typer.Option(help="SAE of the teacher, as in tl-floor measure; repeat the option for each SAE.")
    ],
    sae_format: SaeFormatOption = None,
    layer: LayerOption = None,
    text: TextOption = None,
    tokens: TokensOption = 200_000,
    cost: CostOption = "fisher",
    widths: WidthsOption = None,
    steps: StepsOption = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write; it gets a run directory for each SAE.",
            show_default="runs/MODEL-compared",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
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
    """Measure several SAEs of one teacher in one pass, to see which results depend on the SAE."""
    from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
    from tl_distill_floor.predicting.config import PredictConfig

    if len(sae) < 2:
        raise InputError("compare needs at least two SAEs; add another --sae, or use tl-floor measure")
    parent = out or Path("runs") / f"{short_name(model)}-compared"
    directories = [parent / f"sae{number}" for number in range(len(sae))]
    floors = measure_and_save(
        directories,
        model,
        [with_format(name, sae_format) for name in sae],
        text,
        layers=[layer] * len(sae),
        widths=parse_widths(widths),
        measuring=MeasureConfig(cost=cost, n_tokens=tokens, n_codes=N_CODES if steps else 0, force=force),
        loading=LoadConfig(context_size=context_size, batch_size=batch_size, device=device, dtype=dtype),
        predicting=PredictConfig(steps=steps, head=False, seed=seed),  # the head floor does not depend on the SAE
        resume=resume,
        quiet=as_json,
    )
    print_floors(floors, directories, as_json)
