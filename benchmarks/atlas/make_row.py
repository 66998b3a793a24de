"""Make one row of the atlas from nothing: teacher, SAEs, students and predictions.

    python benchmarks/atlas/make_row.py gpt2-novels CORPUS OUT
    python benchmarks/atlas/make_row.py tiny-prose CORPUS OUT --existing
    python benchmarks/atlas/make_row.py llama-prose CORPUS OUT --device cuda --batch-size 64 \\
        --student-tokens 60000000 --generated-tokens 12000000

OUT is a working directory; every step that is finished there is skipped, and an interrupted one continues. The
results are written to `NAME.json` next to this script (or to `--result`). With `--existing`, the embedded teacher and
its SAE are used; only the SAE of the last layer and the students are trained. On a GPU, `--only students` and
`--only predictions` can run at the same time once the teacher is trained.
"""

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from generate_text import generate_sequences
from recipes import RECIPES, Recipe, short
from torch import Tensor
from train_teacher import pack, save_texts, train_teacher

from tl_distill_floor import (
    DistillConfig,
    LoadConfig,
    MeasureConfig,
    StudentSpec,
    distill_students,
    load_teacher,
    predict_floors,
    train_sae,
)
from tl_distill_floor.annotations import ProgressMessageCallback
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.sources.teacher import Teacher

Part = Literal["teacher", "students", "predictions"]
STUDENT_FIELDS = ("name", "width", "depth", "n_parameters", "tokens", "losses", "floor", "interval", "status")
"""Fields of a student that the atlas keeps."""
CHECKPOINT_SECONDS, SECONDS_BETWEEN_REPORTS = 30, 15


def train_saes(recipe: Recipe, layers: Sequence[int], teacher: str, text: Path, out: Path, device: str) -> list[Path]:
    """Train an SAE after each of the layers; return their directories."""
    directories = [out / f"sae-layer{layer}" for layer in layers]
    for layer, directory in zip(layers, directories, strict=True):
        if not directory.exists():
            train_sae(
                teacher,
                str(text),
                layer=layer,
                out=directory,
                n_tokens=recipe.sae_tokens,
                context_size=recipe.context_size,
                device=device,
                dtype="bf16",
                resume=True,
            )
            print(f"SAE of layer {layer}", flush=True)
    return directories


def student_text(recipe: Recipe, teacher: Teacher, text: Path, out: Path) -> str | Tensor:
    """Return what the students are trained on: the recipe's text, followed by text that the teacher generates.

    Without generated text, this is the file of the text; else token ids [sequence, position].
    """
    if not recipe.generated_tokens:
        return str(text)
    file, tokenizer, model = out / "generated.pt", teacher.model.tokenizer, teacher.model.original_model
    if not file.exists():
        ids = generate_sequences(model, tokenizer.bos_token_id, recipe.generated_tokens, recipe.context_size)
        torch.save(ids.to(torch.int32), file)
        print(f"generated {ids.numel():,} tokens", flush=True)
    generated = torch.load(file, weights_only=True).long()
    sequences = torch.cat([pack(tokenizer, read_documents(text), recipe.context_size), generated])
    ends = sequences == tokenizer.eos_token_id
    # Two of these tokens at the beginning or at the end would be read as padding.
    return sequences[~(ends[:, 1] | ends[:, -2:].all(dim=1))]


def read_documents(file: Path) -> list[str]:
    """Return the documents of a file that `save_texts` wrote."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_students(recipe: Recipe, teacher: str, texts: dict[str, Path], out: Path, device: str) -> list[StudentResult]:
    """Distil the students, all on the same batches; return their learning curves."""
    specs = [StudentSpec(width) for width in recipe.student_widths]
    students = load_students(out)
    if len(students) < len(specs):
        loaded = load_teacher(teacher, device=device)
        students = distill_students(
            loaded,
            specs,
            student_text(recipe, loaded, texts["train"], out),
            heldout=str(texts["heldout"]),
            out=out,
            config=DistillConfig(
                n_tokens=recipe.student_tokens, lr=1e-2, batch_size=recipe.student_batch_size, dtype="bf16"
            ),
            context_size=recipe.context_size,
            device=device,
            resume=True,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            progress=print_progress(),
        )
    return students


def print_progress() -> ProgressMessageCallback:
    """Return a progress callback that prints once in a while."""
    printed = 0.0

    def report(done: int, total: int, message: str) -> None:
        nonlocal printed
        if time.monotonic() > printed + SECONDS_BETWEEN_REPORTS:
            printed = time.monotonic()
            print(f"{done:,} of {total:,} tokens, {message}", flush=True)

    return report


def predict(
    teacher: str, saes: Sequence[str], text: str | None, widths: Sequence[int], device: str, force: bool
) -> dict[str, object]:
    """Return every prediction at the students' widths, in nats per token, from held-out text."""
    floors = predict_floors(
        teacher, saes, text, widths=widths, measuring=MeasureConfig(force=force), loading=LoadConfig(device=device)
    )
    head = floors[0].head
    assert head is not None
    return {
        "widths": list(head.widths),
        "head": list(head.floor),
        "head_standard_error": list(head.standard_error),
        "head_half_steps": list(head.half_steps),
        "head_encoded": list(head.encoded),
        "known_share": head.known_share,
        "layers": {
            floor.stats.hook_name: {
                "unexplained": floor.stats.fvu,
                "theorem": floor.theorem.tolist(),
                "independent": floor.independent.tolist(),
                "simulated": None if floor.simulated is None else floor.simulated.tolist(),
            }
            for floor in floors
        },
    }


def student_row(student: StudentResult) -> dict[str, object]:
    """Return what the atlas keeps of a student: losses are KL(teacher ‖ student) in nats per token."""
    row = {name: getattr(student, name) for name in STUDENT_FIELDS}
    return row | {"losses": [round(loss, 5) for loss in student.losses], "heldout_tokens": student.heldout_tokens}


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    corpus: Path,
    out: Path,
    result: Annotated[Path | None, typer.Option(help="File of the results.")] = None,
    device: str = "cpu",
    existing: Annotated[bool, typer.Option(help="Use the embedded teacher and its SAE.")] = False,
    only: Annotated[Part | None, typer.Option(help="Make this part only, and write no results.")] = None,
    student_tokens: Annotated[int | None, typer.Option(help="Training tokens of every student.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per training step of the students.")] = None,
    generated_tokens: Annotated[int, typer.Option(help="Tokens of training text that the teacher generates.")] = 0,
    widths: Annotated[str | None, typer.Option(help="Widths of the students, with commas.")] = None,
    rehearse: Annotated[bool, typer.Option(help="Train everything for a moment only.")] = False,
) -> None:
    """Make one row of the atlas."""
    recipe = short(RECIPES[name]) if rehearse else RECIPES[name]
    recipe = replace(
        recipe,
        student_widths=tuple(int(width) for width in widths.split(",")) if widths else recipe.student_widths,
        student_tokens=student_tokens or recipe.student_tokens,
        student_batch_size=batch_size or recipe.student_batch_size,
        generated_tokens=generated_tokens or recipe.generated_tokens,
    )
    directory = out / name
    if not existing and not (directory / "training.json").exists():
        train_teacher(recipe, corpus, directory, device)
    texts = save_texts(recipe, corpus, directory)
    teacher = name if existing else str(directory)
    if only == "teacher":
        student_text(recipe, load_teacher(teacher, device=device), texts["train"], out)
        return
    students, predictions = [], {}
    if only != "predictions":
        students = train_students(recipe, teacher, texts, out, device)
    if only != "students":
        predictions = make_predictions(name, recipe, teacher, texts, out, device, existing)
    if only is not None:
        return
    training = Path(__file__).parents[1] / "tiny_prose_training.json" if existing else directory / "training.json"
    row = {
        "teacher": name,
        "recipe": asdict(recipe),
        "unit": "nats per token, KL(teacher ‖ student)",
        "training": json.loads(training.read_text(encoding="utf-8")),
        "students": [student_row(student) for student in students],
        "predictions": predictions,
    }
    file = result or Path(__file__).parent / f"{name}.json"
    file.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {file}", flush=True)


def make_predictions(
    name: str, recipe: Recipe, teacher: str, texts: dict[str, Path], out: Path, device: str, existing: bool
) -> dict[str, object]:
    """Train the SAEs, and return every prediction at the students' widths; keep them in `predictions.json`."""
    file = out / "predictions.json"
    if not file.exists():
        layers = recipe.layers[1:] if existing else recipe.layers
        saes = [str(sae) for sae in train_saes(recipe, layers, teacher, texts["train"], out, device)]
        text = None if existing else str(texts["heldout"])
        saes = ["tiny-prose-sae", *saes] if existing else saes
        is_rehearsal = recipe.sae_tokens < RECIPES[name].sae_tokens  # whose SAEs are hardly trained
        predictions = predict(teacher, saes, text, recipe.student_widths, device, force=is_rehearsal)
        file.write_text(json.dumps(predictions, indent=1) + "\n", encoding="utf-8")
    predictions = json.loads(file.read_text(encoding="utf-8"))
    if predictions["widths"] != list(recipe.student_widths):
        raise typer.BadParameter(f"{file} is of widths {predictions['widths']}; delete it to predict again")
    return predictions


if __name__ == "__main__":
    typer.run(main)
