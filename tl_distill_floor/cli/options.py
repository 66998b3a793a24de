"""Arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Cost = StrEnum("Cost", ["fisher", "energy", "ablation"])
Dtype = StrEnum("Dtype", ["fp32", "bf16"])
Architecture = StrEnum("Architecture", ["batchtopk", "topk"])

Model = Annotated[
    str,
    typer.Argument(
        help="A TransformerLens or Hugging Face name, a model's directory, a .gguf file, tiny-prose, or smollm2-135m."
    ),
]
RunDirectory = Annotated[Path, typer.Argument(help="Directory that tl-floor measure saved its results in.")]
Layer = Annotated[int | None, typer.Option(help="Layer after which the residual stream is read.")]
Text = Annotated[
    str | None,
    typer.Option(help="A .txt or .jsonl file (also .gz), a Hugging Face dataset, or cached activations."),
]
Device = Annotated[str, typer.Option(help="torch device: cpu or cuda; auto spreads a large teacher over all.")]
Context = Annotated[int | None, typer.Option(help="Tokens a sequence.", show_default="as the SAE was trained")]
Tokens = Annotated[int, typer.Option(help="Tokens to read.", min=1)]
Worth = Annotated[
    Cost,
    typer.Option(
        help="What a feature is worth: fisher is KL in nats to second order, ablation the exact KL (slow), energy"
        " squared error."
    ),
]
Widths = Annotated[str | None, typer.Option(help="Student widths, such as 64,128,256.")]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Steps that the students behind simulated are trained for; 0 trains none.", show_default="1000", min=0
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
BatchSize = Annotated[int, typer.Option(help="Sequences a batch.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def short_name(model: str) -> str:
    """The last part of a name or path, without its suffix."""
    return Path(model).name.removesuffix(".gguf") or "model"


def default_out(model: str, layer: int | None) -> Path:
    return Path("runs") / (short_name(model) if layer is None else f"{short_name(model)}-layer{layer}")
