"""Make one row of the atlas from nothing: teacher, SAEs, students and predictions.

    python benchmarks/atlas/make_row.py gpt2-novels CORPUS OUT
    python benchmarks/atlas/make_row.py llama-prose CORPUS OUT --device cuda --batch-size 64 \\
        --student-tokens 60000000 --generated-tokens 12000000

OUT is a working directory; every step that is finished there is skipped, and an interrupted one continues. The
results are written to `NAME.json` next to this script (or to `--result`). The teachers of `tiny-prose` and `smollm2`
are not trained, but taken as they are.

On a GPU, several processes can work at the same time in one OUT once the teacher is made: `--only teacher`, which also
prepares the text, then at the same time `--only head`, `--only middle`, `--only last` (together, `--only predictions`)
and `--only students`; finally the command without `--only`, which writes the row. With `--stop-at`, the training of
the students ends at a given time, only their learning curves are kept, and `--only students` can also run several times
at once, with different `--widths`.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from known_teacher import describe_teacher
from predictions import PARTS, PredictionPart, join_predictions, predict_part
from recipes import RECIPES, Recipe, short
from texts import Text, load_texts, student_text
from timed_students import distill_until
from train_teacher import train_teacher

from tl_distill_floor import DistillConfig, StudentSpec, distill_students, load_teacher
from tl_distill_floor.annotations import ProgressMessageCallback
from tl_distill_floor.results.student import StudentResult, load_students

Part = Literal["teacher", "students", "predictions", PredictionPart]
STUDENT_FIELDS = ("name", "width", "depth", "n_parameters", "tokens", "losses", "floor", "interval", "status")
"""Fields of a student that the atlas keeps."""
CHECKPOINT_SECONDS, SECONDS_BETWEEN_REPORTS = 30, 15
POINTS_OF_TIMED_CURVE = 32
"""Points of the learning curve of a student whose training ends by time, if it reached the end of its plan."""


def train_students(
    recipe: Recipe, teacher: str, texts: dict[str, Text], out: Path, device: str, stop_at: float | None
) -> list[StudentResult]:
    """Distil the students if some are missing, all on the same batches; return the learning curves of all.

    Args:
        recipe: the recipe.
        teacher: name or directory of the teacher.
        texts: training and held-out text.
        out: working directory.
        device: torch device.
        stop_at: time at which the training ends, in seconds since 1970; None to train on all tokens.
    """
    known = {student.width for student in load_students(out)}
    specs = [StudentSpec(width) for width in recipe.student_widths]
    missing = [spec for spec in specs if spec.width not in known]
    if missing:
        loaded = load_teacher(teacher, device=device)
        text = student_text(recipe, loaded, texts["train"], out)
        config = DistillConfig(
            n_tokens=recipe.student_tokens,
            lr=recipe.student_lr,
            batch_size=recipe.student_batch_size,
            dtype="bf16",
            n_heldout_tokens=recipe.student_heldout_tokens,
        )
        if stop_at is None:
            distill_students(
                loaded,
                specs,
                text,
                heldout=texts["heldout"],
                out=out,
                config=config,
                context_size=recipe.context_size,
                device=device,
                resume=True,
                checkpoint_seconds=CHECKPOINT_SECONDS,
                progress=print_progress(),
            )
        else:
            distill_until(
                stop_at,
                loaded,
                missing,
                text,
                texts["heldout"],
                replace(config, n_evaluations=POINTS_OF_TIMED_CURVE),
                context_size=recipe.context_size,
                out=out,
                progress=print_progress(),
            )
    return [student for student in load_students(out) if student.width in recipe.student_widths]


def print_progress() -> ProgressMessageCallback:
    """Return a progress callback that prints once in a while."""
    printed = 0.0

    def report(done: int, total: int, message: str) -> None:
        nonlocal printed
        if time.monotonic() > printed + SECONDS_BETWEEN_REPORTS:
            printed = time.monotonic()
            print(f"{done:,} of {total:,} tokens, {message}", flush=True)

    return report


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
    only: Annotated[Part | None, typer.Option(help="Make this part only, and write no results.")] = None,
    student_tokens: Annotated[int | None, typer.Option(help="Training tokens of every student.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per training step of the students.")] = None,
    generated_tokens: Annotated[int, typer.Option(help="Tokens of training text that the teacher generates.")] = 0,
    widths: Annotated[str | None, typer.Option(help="Widths of the students, with commas.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the students.")] = None,
    sae_tokens: Annotated[int | None, typer.Option(help="Training tokens of every SAE.")] = None,
    stop_at: Annotated[
        float | None, typer.Option(help="Time at which the training of the students ends, seconds since 1970.")
    ] = None,
    rehearse: Annotated[bool, typer.Option(help="Train everything for a moment only.")] = False,
) -> None:
    """Make one row of the atlas."""
    recipe = short(RECIPES[name]) if rehearse else RECIPES[name]
    recipe = replace(
        recipe,
        student_widths=tuple(int(width) for width in widths.split(",")) if widths else recipe.student_widths,
        student_tokens=student_tokens or recipe.student_tokens,
        student_batch_size=batch_size or recipe.student_batch_size,
        student_lr=lr or recipe.student_lr,
        generated_tokens=generated_tokens or recipe.generated_tokens,
        sae_tokens=sae_tokens or recipe.sae_tokens,
    )
    directory = out / name
    teacher, training = recipe.teacher or str(directory), directory / "training.json"
    if recipe.teacher is None and not training.exists():
        train_teacher(recipe, corpus, directory, device)
    texts = load_texts(recipe, corpus, teacher, directory)
    if not training.exists():
        describe_teacher(recipe, texts["heldout"], training, device)
    if only == "teacher":
        if recipe.generated_tokens:
            student_text(recipe, load_teacher(teacher, device=device), texts["train"], out)
        return
    students, predicted = [], {}
    if only in (None, "students"):
        students = train_students(recipe, teacher, texts, out, device, stop_at)
    for part in PARTS:
        if only in (None, "predictions", part):
            predicted[part] = predict_part(part, name, recipe, teacher, texts, out, device)
    if only is not None:
        return
    row = {
        "teacher": name,
        "recipe": asdict(recipe),
        "unit": "nats per token, KL(teacher ‖ student)",
        "training": json.loads(training.read_text(encoding="utf-8")),
        "students": [student_row(student) for student in students],
        "predictions": join_predictions(recipe, predicted),
    }
    file = result or Path(__file__).parent / f"{name}.json"
    file.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {file}", flush=True)


if __name__ == "__main__":
    typer.run(main)
