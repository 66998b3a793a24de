"""`tl-floor diagnose`: tell whether a student is limited by its width or by its training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tl_distill_floor.annotations import LossUnit
from tl_distill_floor.cli.errors import report_errors
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.options import OUTPUT, DebugOption, DeviceOption, JsonOption
from tl_distill_floor.cli.output import print_json, print_result
from tl_distill_floor.cli.progress import progress_bar
from tl_distill_floor.cli.unused_options import refuse_unused
from tl_distill_floor.errors import InputError

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction
    from tl_distill_floor.results.student import StudentResult
    from tl_distill_floor.sources.learning_curves import LearningCurve

CURVE, TEACHER = "Learning curve", "Teacher"
"""Panels of the help text."""
STUDENTS = "students"
"""Directory of the students in a run directory."""


@report_errors
def diagnose(
    ctx: typer.Context,
    curve: Annotated[
        Path,
        typer.Argument(
            help="Learning curve: trainer_state.json of the Hugging Face Trainer or its directory, a .csv file (also as"
            " exported by Weights & Biases or TensorBoard), a .jsonl file, a student of tl-floor distill, or a run"
            " directory with students."
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Argument(help="Run directory of tl-floor measure for the teacher.", show_default="that of the students"),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Width of the student (d_model).",
            min=1,
            metavar="N",
            show_default="that of the student, or of config.json next to the curve",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Column of KL(teacher ‖ student) on held-out text, such as eval_loss.",
            metavar="COLUMN",
            show_default="the only one",
            rich_help_panel=CURVE,
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Column of the tokens trained on.",
            metavar="COLUMN",
            show_default="the only one",
            rich_help_panel=CURVE,
        ),
    ] = None,
    tokens_per_step: Annotated[
        float | None,
        typer.Option(
            help="Tokens per step, if the curve counts steps: sequence length × sequences per step of all processes.",
            metavar="N",
            rich_help_panel=CURVE,
        ),
    ] = None,
    unit: Annotated[LossUnit, typer.Option(help="Unit of the loss, per token.", rich_help_panel=CURVE)] = "nats",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Teacher, in place of RUN; its head floor at this width is computed, without an SAE (minutes).",
            metavar="MODEL",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text on which --teacher is measured, given as in tl-floor measure.",
            show_default="built-in text",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    device: DeviceOption = "cpu",
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Save the curve with the bound and the expected loss as a .svg, .png, .pdf or .html file.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    """Tell whether a student's loss is limited by its width or by too few training tokens.

    A run directory with several students gives one verdict for each.
    """
    from tl_distill_floor.display.diagnosis_views import (
        diagnoses_table,
        diagnosis_figure,
        diagnosis_json,
        diagnosis_table,
    )
    from tl_distill_floor.display.figures import save_figure
    from tl_distill_floor.distilling.planning.diagnose import diagnose as diagnose_curve
    from tl_distill_floor.sources.learning_curves import load_learning_curve

    if teacher is not None and run is not None:
        raise InputError("RUN and --teacher name the same thing; leave one of them out")
    if teacher is None:
        where = "without --teacher: the prediction of the run is used, and nothing is measured"
        refuse_unused(ctx, ("text", "device"), where, "add --teacher MODEL")
    students, left_out = _load_students(curve)
    if students:
        columns = ("loss", "tokens", "tokens_per_step", "unit")
        refuse_unused(ctx, columns, "on students of tl-floor distill, whose curves are stored with their units")
    if figure is not None and len(students) > 1:
        raise InputError(f"{curve} has {len(students)} students; save the figure of one: {curve}/students/NAME")
    curves: Sequence[LearningCurve | StudentResult] = students
    if not students:
        curves = [load_learning_curve(curve, loss=loss, tokens=tokens, tokens_per_step=tokens_per_step, unit=unit)]
    if teacher is None:
        floor = _load_run(curve, run, has_students=bool(students))
    else:
        floor = _measure_head(teacher, text, [_width_of(item, width) for item in curves], device, quiet=as_json)
    diagnoses = [diagnose_curve(item, floor, width) for item in curves]
    if figure is not None:
        save_figure(diagnosis_figure(diagnoses[0]), figure)
    if as_json:
        objects = [diagnosis_json(diagnosis) for diagnosis in diagnoses]
        print_json(objects if _holds_students(curve) else objects[0])
        return
    notes = left_out + ([] if figure is None else [f"Saved {figure}"])
    table = diagnosis_table(diagnoses[0]) if len(diagnoses) == 1 else diagnoses_table(diagnoses)
    print_result(table, "\n".join(notes) or None)


def _holds_students(directory: Path) -> bool:
    """Return whether a path is a run directory with students."""
    return (directory / STUDENTS).is_dir()


def _load_students(path: Path) -> "tuple[list[StudentResult], list[str]]":
    """Load the students of a run directory, or one student; and a note on each that has no learning curve.

    Raises:
        InputError: no student of the run has a learning curve, or a file is damaged.
    """
    from tl_distill_floor.results.student import STUDENT_FILE, StudentResult, load_students

    if path.name == STUDENT_FILE or (path / STUDENT_FILE).is_file():
        return [StudentResult.load(path)], []
    if not _holds_students(path):
        return [], []
    students = load_students(path)
    notes = [f"Left out: {student.name}, which diverged before its first evaluation" for student in students
             if not student.tokens]  # fmt: skip
    with_curve = [student for student in students if student.tokens]
    if not with_curve:
        raise InputError(
            f"no student in {path} has a learning curve; distil some with tl-floor distill --out {quote(str(path))}"
        )
    return with_curve, notes


def _load_run(curve: Path, run: Path | None, *, has_students: bool) -> "FloorPrediction":
    """Load the prediction that a curve is compared with: that of RUN, or of the students' own run directory.

    Raises:
        InputError: no run is named or known, or it cannot be loaded.
    """
    from tl_distill_floor.cli.run_directory import load_prediction

    if run is None and not has_students:
        raise InputError("name the run directory of tl-floor measure after the curve, or the teacher with --teacher")
    if run is None:
        run = curve if _holds_students(curve) else (curve.parent if curve.is_file() else curve).resolve().parents[1]
    return load_prediction(run)


def _width_of(item: "LearningCurve | StudentResult", width: int | None) -> int:
    """Return the width of a student, before anything slow is computed.

    Raises:
        InputError: it is not known.
    """
    known = width or item.width
    if known is None:
        raise InputError(f"{item.name} does not say how wide the student is; set --width")
    return known


def _measure_head(
    teacher: str, text: str | None, widths: Sequence[int], device: str, *, quiet: bool
) -> "FloorPrediction":
    """Compute the head floor of a teacher at the widths of its students."""
    with quiet_libraries():
        from tl_distill_floor.predicting.head_floor import head_floor
        from tl_distill_floor.results.floor_prediction import FloorPrediction

        bar = partial(progress_bar, quiet=quiet)
        head = head_floor(teacher, text, widths=sorted(set(widths)), device=device, progress_bar=bar)
        return FloorPrediction.from_head(head)
