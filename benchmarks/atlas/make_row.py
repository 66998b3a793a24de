"""Make one row of the atlas from nothing: teacher, SAEs, students and predictions.

    python benchmarks/atlas/make_row.py gpt2-novels CORPUS OUT
    python benchmarks/atlas/make_row.py tiny-prose CORPUS OUT --existing

OUT is a working directory; every step that is finished there is skipped, and an interrupted one continues. The
results are written to `NAME.json` next to this script (or to `--result`). With `--existing`, the embedded teacher and
SAE and the students of `students_tiny_prose.json` are used; only the SAE of the last layer is trained.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from recipes import RECIPES, Recipe, short
from train_teacher import save_texts, train_teacher

from tl_distill_floor import DistillConfig, StudentSpec, distill_students, predict_floors, train_sae
from tl_distill_floor.annotations import ProgressMessageCallback
from tl_distill_floor.results.student import StudentResult, load_students

STUDENT_FIELDS = ("name", "width", "depth", "n_parameters", "tokens", "losses", "floor", "interval", "status")
"""Fields of a student that the atlas keeps."""


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


def train_students(recipe: Recipe, teacher: Path, out: Path, device: str) -> list[StudentResult]:
    """Distil the students, all on the same batches; return their learning curves."""
    specs = [StudentSpec(width) for width in recipe.student_widths]
    students = load_students(out)
    if len(students) < len(specs):
        config = DistillConfig(n_tokens=recipe.student_tokens, lr=1e-2, batch_size=8, dtype="bf16")
        students = distill_students(
            str(teacher),
            specs,
            str(teacher / "train.jsonl.gz"),
            heldout=str(teacher / "heldout.jsonl.gz"),
            out=out,
            config=config,
            context_size=recipe.context_size,
            device=device,
            resume=True,
            checkpoint_seconds=120,
            progress=print_every_minute(),
        )
    return students


def print_every_minute() -> ProgressMessageCallback:
    """Return a progress callback that prints at most once a minute."""
    printed = 0.0

    def report(done: int, total: int, message: str) -> None:
        nonlocal printed
        if time.monotonic() > printed + 60:
            printed = time.monotonic()
            print(f"{done:,} of {total:,} tokens, {message}", flush=True)

    return report


def predict(
    teacher: str, saes: Sequence[str], text: str | None, widths: Sequence[int], device: str
) -> dict[str, object]:
    """Return every prediction at the students' widths, in nats per token, from held-out text."""
    floors = predict_floors(teacher, saes, text, widths=widths, device=device)
    head = floors[0].head
    assert head is not None
    return {
        "widths": list(head.widths),
        "head": list(head.floor),
        "head_standard_error": list(head.standard_error),
        "head_half_steps": list(head.half_steps),
        "head_encoded": list(head.encoded),
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


def existing_row() -> dict[str, object]:
    """Return the row of the embedded teacher but for its predictions, from the students that are stored here."""
    students = json.loads((Path(__file__).parents[1] / "students_tiny_prose.json").read_text(encoding="utf-8"))
    training = json.loads((Path(__file__).parents[1] / "tiny_prose_training.json").read_text(encoding="utf-8"))
    fields = [field for field in STUDENT_FIELDS if field not in ("floor", "interval", "status")]
    rows = [{field: student[field] for field in (*fields, "heldout_tokens")} for student in students["students"]]
    return {"training": training, "students": rows}


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
    existing: Annotated[bool, typer.Option(help="Use the embedded teacher, its SAE and its stored students.")] = False,
    rehearse: Annotated[bool, typer.Option(help="Train everything for a moment only.")] = False,
) -> None:
    """Make one row of the atlas."""
    recipe = short(RECIPES[name]) if rehearse else RECIPES[name]
    if existing:
        made = existing_row()
        text = save_texts(recipe, corpus, out)["train"]
        (last,) = train_saes(recipe, recipe.layers[1:], name, text, out, device)
        predictions = predict(name, ["tiny-prose-sae", str(last)], None, recipe.student_widths, device)
    else:
        teacher = out / name
        if not (teacher / "training.json").exists():
            train_teacher(recipe, corpus, teacher, device)
        students = train_students(recipe, teacher, out, device)
        saes = train_saes(recipe, recipe.layers, str(teacher), teacher / "train.jsonl.gz", out, device)
        heldout = str(teacher / "heldout.jsonl.gz")
        predictions = predict(str(teacher), [str(sae) for sae in saes], heldout, recipe.student_widths, device)
        made = {
            "training": json.loads((teacher / "training.json").read_text()),
            "students": [student_row(student) for student in students],
        }
    row = {
        "teacher": name,
        "recipe": asdict(recipe),
        "unit": "nats per token, KL(teacher ‖ student)",
        **made,
        "predictions": predictions,
    }
    file = result or Path(__file__).parent / f"{name}.json"
    file.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {file}", flush=True)


if __name__ == "__main__":
    typer.run(main)
