"""Judge the fits to the atlas on teachers that are not part of it.

    python benchmarks/atlas/judge_new.py

Reads the rows in `new/`, which `make_row.py --result` wrote, and predicts their students from those of the atlas.
Losses are in nats per token.
"""

from pathlib import Path

import numpy as np
import typer
from judge import EXPECTED, FORM_OF_EXPECTED, fit_form, log_divisor, observations_of
from rich.console import Console
from rich.table import Table
from students import Student, read_students

PREDICTORS = (
    (EXPECTED, FORM_OF_EXPECTED),
    (EXPECTED, "a · x^b"),
    ("head, encoded", FORM_OF_EXPECTED),
    ("head, encoded", "a · x^b · vocabulary^c"),
    ("1/width − 1/d_model", "a · x^b"),
)
"""Predictors and forms that are compared."""
LEVELS = (0.8, 0.9)
"""Probabilities of the prediction intervals."""


def errors_table(students: list[Student], new: list[Student]) -> Table:
    """Return a table of the errors of each predictor on the students of each new teacher."""
    inside = [f"in {level:.0%}" for level in LEVELS]
    table = Table("teacher", "predictor", "form", "mean log error", "median error", *inside, box=None)
    for teacher in sorted({student.teacher for student in new}):
        own = [student for student in new if student.teacher == teacher]
        log_loss = np.log([student.loss for student in own])
        for predictor, form in PREDICTORS:
            fit = fit_form(form, predictor, students)
            terms, divisor = observations_of(form, predictor, own).x, log_divisor(form, predictor, own)
            predicted = [fit.predict(terms, level) for level in LEVELS]
            errors = predicted[0].value + divisor - log_loss
            counts = [
                int(((part.low + divisor <= log_loss) & (log_loss <= part.high + divisor)).sum()) for part in predicted
            ]
            table.add_row(
                teacher, predictor, form, f"{errors.mean():+.2f}", f"{np.median(np.abs(np.expm1(errors))):.0%}",
                *(f"{count} of {len(own)}" for count in counts),
            )  # fmt: skip
    return table


def students_table(students: list[Student], new: list[Student]) -> Table:
    """Return a table of the expected and the measured losses."""
    fit = fit_form(FORM_OF_EXPECTED, EXPECTED, students)
    table = Table("teacher", "width", "reached", "L∞ (95 %)", "expected (80 %)", "head floor", box=None)
    for student in new:
        predicted = fit.predict(observations_of(FORM_OF_EXPECTED, EXPECTED, [student]).x, LEVELS[0])
        value, low, high = (float(np.exp(part[0])) for part in predicted)
        table.add_row(
            student.teacher, str(student.width), f"{student.reached:.3f}",
            f"{student.loss:.3f} ({student.interval[0]:.3f} to {student.interval[1]:.3f})",
            f"{value:.3f} ({low:.3f} to {high:.3f})", f"{student.predictions['head']:.4f}",
        )  # fmt: skip
    return table


def main(directory: Path = Path(__file__).parent / "new") -> None:
    """Print the students of the new teachers, and the errors of the predictions."""
    students, _ = read_students(Path(__file__).parent)
    new, left_out = read_students(directory)
    console = Console(width=150)
    shares = {student.teacher: student.known_share for student in new}
    console.print(*(f"{teacher}: known share {share:.2f}" for teacher, share in shares.items()), *left_out, sep="\n")
    console.print(students_table(students, new), errors_table(students, new))


if __name__ == "__main__":
    typer.run(main)
