"""Describe a teacher of the atlas that is not trained here."""

import json
from pathlib import Path

import typer
from recipes import Recipe
from texts import Text
from train_teacher import heldout_loss

from tl_distill_floor.measuring.token_stream import open_token_stream
from tl_distill_floor.sources.teachers import load_teacher

SEQUENCES_PER_READ = 256


def describe_teacher(recipe: Recipe, text: Text, file: Path, device: str) -> None:
    """Write what the row needs to know of a teacher that is not trained: its parameters and its held-out loss.

    Args:
        recipe: the recipe, whose `teacher` is described.
        text: held-out text.
        file: file to write, `training.json`.
        device: torch device.

    Raises:
        BadParameter: the teacher has another architecture than the recipe says.
    """
    assert recipe.teacher is not None
    teacher = load_teacher(recipe.teacher, device=device)
    model = teacher.model.original_model
    shape = (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size)
    if shape != (recipe.n_layers, recipe.d_model, recipe.vocab_size):
        raise typer.BadParameter(f"{recipe.teacher} has {shape} layers, dimensions and tokens, not those of the recipe")
    stream = open_token_stream(teacher, text, recipe.context_size, SEQUENCES_PER_READ)
    rows = stream.read_sequences(recipe.prediction_tokens)
    report = {
        "teacher": recipe.teacher,
        "is_trained_here": False,
        "parameters": int(teacher.model.n_params_total),
        "heldout_tokens": rows.numel(),
        "unit": "nats per token",
        "heldout_loss": round(heldout_loss(model, rows), 4),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(report, flush=True)
