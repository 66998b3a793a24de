"""Arguments and options that several commands share."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from tl_distill_floor.annotations import CostMethod, Dtype, FormattedSae
from tl_distill_floor.errors import InputError

MatchedActivation: TypeAlias = Literal["none", "activation", "kept"]
COMPUTATION, OUTPUT = "Computation", "Output"
"""Panels of the help text."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Teacher: a TransformerLens or Hugging Face model name, a model directory, a .gguf file, tiny-prose (built"
        " in), or smollm2-135m."
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="Run directory, written by tl-floor measure.")]
LayerOption = Annotated[int | None, typer.Option(help="Layer of the SAEs, counted from 0.", metavar="N")]
SaeFormatOption = Annotated[
    str | None,
    typer.Option(
        help="What the keys of an --sae file mean, if its format is not recognised: the name of a format, or a JSON"
        " object (or .json file) that names W_enc, W_dec and activation.",
        show_default="recognised",
        metavar="NAME_OR_JSON",
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        help="Text to read: a .txt, .jsonl, .json or .csv file (also .gz), a .parquet or .arrow file, a saved dataset"
        " (DIRECTORY or DIRECTORY:SPLIT), a Hugging Face dataset (NAME, NAME:CONFIG or NAME:CONFIG:SPLIT), or a"
        " directory of cached activations.",
        show_default="built-in text",
    ),
]
TokensOption = Annotated[int, typer.Option(help="Number of tokens to read.", min=1, metavar="N")]
TrainingTextOption = Annotated[
    str | None,
    typer.Option(
        help="Text to train on: a .txt, .jsonl, .json or .csv file (also .gz), a .parquet or .arrow file, a saved"
        " dataset, or a Hugging Face dataset.",
        show_default="built-in text",
    ),
]
CostOption = Annotated[
    CostMethod,
    typer.Option(
        help="Cost of removing a feature. fisher: KL in nats, to second order. ablation: the exact KL in nats (slow)."
        " energy: squared error of the activation."
    ),
]
WidthsOption = Annotated[
    str | None,
    typer.Option(help="Student widths (d_model), such as 64,128,256.", show_default="fractions of the teacher's"),
]
StepsOption = Annotated[
    int,
    typer.Option(
        help="Training steps of the bottleneck students behind the simulated floor; 0 skips them.", min=0, metavar="N"
    ),
]
PromotedOption = Annotated[
    bool,
    typer.Option(
        "--promoted",
        help="Load the teacher and the SAE if the run lacks the tokens that a shown feature promotes, and keep these in"
        " the run.",
    ),
]
STARTS = (
    "random; teacher-slice, the first rows and columns of the teacher's weights; or svd, the teacher's weights"
    " projected onto the leading singular directions of its embeddings."
)
"""Explanation of the initial weights of students."""
StudentsOption = Annotated[
    Path | None, typer.Option(help="Run directory in which the students were distilled.", show_default="RUN")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Run directory to write.", show_default="runs/MODEL", rich_help_panel=OUTPUT)
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue from the checkpoint of an interrupted run.", rich_help_panel=OUTPUT)
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Go on with an SAE that does not fit the activations.", rich_help_panel=COMPUTATION),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON and nothing else.", rich_help_panel=OUTPUT)
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="Torch device, such as cpu or cuda; auto spreads the layers of a large teacher over all devices.",
        rich_help_panel=COMPUTATION,
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="Dtype of the teacher's weights.", rich_help_panel=COMPUTATION)]
ContextSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens per sequence.", metavar="N", show_default="the SAE's training context", rich_help_panel=COMPUTATION
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option(help="Sequences per batch.", min=1, metavar="N", rich_help_panel=COMPUTATION)
]
SeedOption = Annotated[int, typer.Option(help="Random seed.", metavar="N", rich_help_panel=COMPUTATION)]


def parse_widths(widths: str | None) -> list[int] | None:
    """Parse student widths such as "64,128,256".

    Raises:
        InputError: the text is not a list of positive integers.
    """
    if widths is None:
        return None
    if not re.fullmatch(r"\s*[1-9]\d{0,8}(\s*,\s*[1-9]\d{0,8})*\s*", widths):
        raise InputError(f"widths must be positive integers separated by commas, got {widths!r}; try 64,128,256")
    return [int(width) for width in widths.split(",")]


def with_format(sae: str | None, sae_format: str | None) -> str | FormattedSae | None:
    """Return the name of an SAE with the format of its file, if one is given.

    Raises:
        InputError: a format is given, but no SAE.
    """
    if sae_format is None:
        return sae
    if sae is None:
        raise InputError("--sae-format explains the file of --sae; name it with --sae")
    return FormattedSae(sae, sae_format)


def short_name(model: str) -> str:
    """Return the last part of a model's name or path, without `.gguf`; of "." the directory's name."""
    return Path(os.path.abspath(model)).name.removesuffix(".gguf") or "model"


def default_run_directory(model: str, layer: int | None = None) -> Path:
    """Return the run directory of a model, and of a layer if there is one: `runs/MODEL-layerL`."""
    return Path("runs") / (short_name(model) if layer is None else f"{short_name(model)}-layer{layer}")
