"""Train the SAEs of a recipe, and predict the losses of its students: three parts that can run at the same time."""

import json
from pathlib import Path
from typing import Literal

import typer
from recipes import RECIPES, Recipe
from texts import Text

from tl_distill_floor import LoadConfig, MeasureConfig, PredictConfig, head_floor, predict_floors, train_sae
from tl_distill_floor.predicting.head_floor import N_TOKENS, head_steps

PredictionPart = Literal["head", "middle", "last"]
"""The head floor, and the SAEs after the middle and after the last layer with what their features predict."""
PARTS: tuple[PredictionPart, ...] = ("head", "middle", "last")


def predict_part(
    part: PredictionPart, name: str, recipe: Recipe, teacher: str, texts: dict[str, Text], out: Path, device: str
) -> Path:
    """Write one part of the predictions as JSON, after training the SAE that it needs.

    Args:
        part: which part.
        name: name of the recipe, of which `recipe` may be a short version.
        recipe: the recipe.
        teacher: name or directory of the teacher.
        texts: training and held-out text.
        out: working directory; finished steps are skipped, and an interrupted SAE continues.
        device: torch device.

    Returns:
        The file.
    """
    file = out / f"predictions-{part}.json"
    if file.exists():
        return file
    out.mkdir(parents=True, exist_ok=True)
    if part == "head":
        predicted: object = _predict_head(recipe, teacher, texts["heldout"], device)
    else:
        layer = recipe.layers[PARTS.index(part) - 1]
        sae = recipe.middle_sae if part == "middle" else None
        sae = sae or str(_train_sae(recipe, layer, teacher, texts["train"], out, device))
        is_rehearsal = recipe.sae_tokens < RECIPES[name].sae_tokens  # whose SAE is hardly trained
        force = is_rehearsal or recipe.teacher is not None  # which may have features that few tokens do not show
        predicted = _predict_layer(recipe, teacher, sae, texts["heldout"], device, force=force)
    file.write_text(json.dumps(predicted, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {file.name}", flush=True)
    return file


def join_predictions(recipe: Recipe, files: dict[PredictionPart, Path]) -> dict[str, object]:
    """Return the predictions of all parts as one record.

    Args:
        recipe: the recipe.
        files: the file of each part.

    Raises:
        BadParameter: a part was predicted at other widths than the recipe's.
    """
    parts = {part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items()}
    for part, file in files.items():
        if parts[part].pop("widths") != list(recipe.student_widths):
            raise typer.BadParameter(f"{file} is of other widths; delete it to predict again")
    layers = {parts[part].pop("hook_name"): parts[part] for part in ("middle", "last")}
    return {"widths": list(recipe.student_widths), **parts["head"], "layers": layers}


def _train_sae(recipe: Recipe, layer: int, teacher: str, text: Text, out: Path, device: str) -> Path:
    """Train an SAE after a layer; return its directory."""
    directory = out / f"sae-layer{layer}"
    if not directory.exists():
        train_sae(
            teacher,
            text,
            layer=layer,
            out=directory,
            n_tokens=recipe.sae_tokens,
            context_size=recipe.context_size,
            device=device,
            dtype="bf16",
            resume=True,
        )
        print(f"SAE of layer {layer}", flush=True)
    return directory


def _predict_head(recipe: Recipe, teacher: str, text: Text, device: str) -> dict[str, object]:
    """Return the head floor at the students' widths, and the known share of the teacher."""
    head = head_floor(
        teacher,
        text,
        widths=recipe.student_widths,
        steps=head_steps(recipe.prediction_steps),
        n_tokens=min(recipe.prediction_tokens, N_TOKENS),
        context_size=recipe.context_size,
        device=device,
    )
    print(*head.warnings, sep="\n", flush=True)
    return {
        "widths": list(head.widths),
        "head": list(head.floor),
        "head_standard_error": list(head.standard_error),
        "head_half_steps": list(head.half_steps),
        "head_encoded": list(head.encoded),
        "known_share": head.known_share,
    }


def _predict_layer(
    recipe: Recipe, teacher: str, sae: str, text: Text, device: str, *, force: bool
) -> dict[str, object]:
    """Return what the features of an SAE predict at the students' widths."""
    (floor,) = predict_floors(
        teacher,
        [sae],
        text,
        widths=recipe.student_widths,
        measuring=MeasureConfig(force=force, n_tokens=recipe.prediction_tokens),
        loading=LoadConfig(device=device),
        predicting=PredictConfig(steps=recipe.prediction_steps, head=False),
    )
    print(*floor.warnings, sep="\n", flush=True)
    return {
        "widths": floor.widths.tolist(),
        "hook_name": floor.stats.hook_name,
        "unexplained": floor.stats.fvu,
        "theorem": floor.theorem.tolist(),
        "independent": floor.independent.tolist(),
        "simulated": None if floor.simulated is None else floor.simulated.tolist(),
    }
