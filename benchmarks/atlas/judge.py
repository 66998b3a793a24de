"""Judge predictors of a student's loss on teachers that they were not fitted to.

    python benchmarks/atlas/judge.py

Reads the rows of the atlas (`*.json` next to this script). The loss of a student is L∞ of its learning curve; students
whose L∞ is not known within a factor of 3 are left out, and the others count by how well it is known. Every predictor
is fitted to all teachers but one, and predicts the students of that one. Errors are relative to the student's loss. The
intervals are those of a new teacher.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table
from students import Student, read_students

from tl_distill_floor.results.expected_loss import LOG_X
from tl_distill_floor.theory.random_effects import Observations, RandomEffectsFit, fit_random_effects

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the prediction intervals that are checked."""
WIDTH_LEVELS = (0.8, 0.9)
"""Those whose width is shown."""
FORM_OF_EXPECTED = "a · x^b · known share^c"
"""The form of the package's expected loss."""
EXPECTED = "encoded + simulated, middle layer"
"""Its predictor."""
MOST_PILOTS, PILOT_SHARES = 2, (0.25, 0.5)
"""Pilots of a student, at most, and the width of the widest, as shares of the student's."""
SMALLEST = 1e-6
"""Predictions below this are replaced by it, nats: their logarithm is needed."""
Terms = Callable[[Student, float], list[float]]
TERMS: dict[str, Terms] = {
    "none": lambda *_: [],
    "C · x": lambda *_: [1.0],
    "a · x^b": lambda _, x: [1.0, np.log(x)],
    "a · x^b · layers^c": lambda student, x: [1.0, np.log(x), np.log(student.n_layers)],
    "a · x^b · vocabulary^c": lambda student, x: [1.0, np.log(x), np.log(student.vocabulary)],
    "a · x^b, tied": lambda student, x: [1.0, np.log(x), float(student.is_tied)],
    "a · x^b · known share^c": lambda student, x: [1.0, np.log(x), np.log(student.known_share)],
}
"""The terms of the logarithm of the loss, by form. For the first two it is that of loss / x."""
FORMS_OF_RATIO = ("none", "C · x")


class Judged(NamedTuple):
    """How a predictor did on teachers that were left out."""

    predictor: str
    form: str
    median_error: float
    largest_error: float
    log_error: float
    """Root mean square of log(predicted / loss)."""
    r2: float
    """R² of the logarithms."""
    coverage: tuple[float, ...]
    """Share of the losses inside the interval of each of `LEVELS`."""
    factors: tuple[float, ...]
    """Median ratio of the upper to the lower end of the intervals of each of `WIDTH_LEVELS`."""


class PilotsJudged(NamedTuple):
    """How well students were predicted from narrower ones of the same teacher."""

    n_students: int
    """Students that were predicted."""
    median_error: float
    """Relative to the loss."""
    log_error: float
    """Root mean square of log(predicted / loss)."""
    coverage: float
    """Share of the losses inside their 80 % interval."""
    factor: float
    """Median ratio of the upper to the lower end of these intervals."""


def fit_form(form: str, predictor: str, students: Sequence[Student]) -> RandomEffectsFit:
    """Fit a form to students; teachers differ in the factor and, where it is fitted, in the exponent.

    Args:
        form: a key of `TERMS`.
        predictor: a key of a student's predictions.
        students: the students.
    """
    varying = None if form in FORMS_OF_RATIO else LOG_X
    return fit_random_effects(
        observations_of(form, predictor, students), [student.teacher for student in students], varying=varying
    )


def observations_of(form: str, predictor: str, students: Sequence[Student]) -> Observations:
    """Return the terms of each student, and the logarithm of its loss, or of loss / x for the forms of that ratio."""
    x = np.array([max(student.predictions[predictor], SMALLEST) for student in students])
    terms = np.array([TERMS[form](student, of_student) for student, of_student in zip(students, x, strict=True)])
    log_loss = np.log([student.loss for student in students]) - log_divisor(form, predictor, students)
    noise = np.array([student.log_error for student in students]) ** 2
    return Observations(terms.reshape(len(students), -1), log_loss, noise)


def log_divisor(form: str, predictor: str, students: Sequence[Student]) -> Float64[np.ndarray, " student"]:
    """Return log x for the forms of loss / x, and 0 for the others."""
    x = np.array([max(student.predictions[predictor], SMALLEST) for student in students])
    return np.log(x) if form in FORMS_OF_RATIO else np.zeros(len(students))


class LeftOut(NamedTuple):
    """Predictions of students by a fit to the other teachers, nats per token."""

    value: Float64[np.ndarray, " student"]
    low: Float64[np.ndarray, "level student"]
    """Lower ends of the prediction intervals."""
    high: Float64[np.ndarray, "level student"]


def predict_left_out(form: str, predictor: str, students: Sequence[Student], levels: Sequence[float]) -> LeftOut:
    """Predict the students of each teacher from the others.

    Args:
        form: a key of `TERMS`.
        predictor: a key of a student's predictions.
        students: the students.
        levels: probabilities of the intervals.
    """
    shape = (len(levels), len(students))
    result = LeftOut(np.empty(len(students)), np.empty(shape), np.empty(shape))
    for teacher in {student.teacher for student in students}:
        own = [student for student in students if student.teacher == teacher]
        left_out = np.array([student.teacher == teacher for student in students])
        fit = fit_form(form, predictor, [student for student in students if student.teacher != teacher])
        terms, divisor = observations_of(form, predictor, own).x, log_divisor(form, predictor, own)
        for i, level in enumerate(levels):
            value, low, high = (np.exp(part + divisor) for part in fit.predict(terms, level))
            result.value[left_out], result.low[i, left_out], result.high[i, left_out] = value, low, high
    return result


def judge(form: str, predictor: str, students: Sequence[Student]) -> Judged:
    """Return how well a form predicts the students of each teacher from the others."""
    loss = np.array([student.loss for student in students])
    value, low, high = predict_left_out(form, predictor, students, LEVELS)
    errors, log_errors = np.abs(value - loss) / loss, np.log(value / loss)
    return Judged(
        predictor,
        form,
        float(np.median(errors)),
        float(errors.max()),
        float(np.sqrt((log_errors**2).mean())),
        float(1 - (log_errors**2).mean() / np.log(loss).var()),
        tuple(float(((low[i] <= loss) & (loss <= high[i])).mean()) for i in range(len(LEVELS))),
        tuple(float(np.median(high[i] / low[i])) for i, level in enumerate(LEVELS) if level in WIDTH_LEVELS),
    )


def judge_pilots(
    form: str, predictor: str, students: Sequence[Student], n_pilots: int, widest_share: float
) -> PilotsJudged:
    """Predict the students of each teacher from narrower ones, its pilots, and from the other teachers.

    Students with fewer than `MOST_PILOTS` possible pilots are left out, so that the same ones are judged with any
    number of pilots.

    Args:
        form: a key of `TERMS`, none of loss / x.
        predictor: a key of a student's predictions.
        students: the students.
        n_pilots: number of pilots; the widest possible ones are taken.
        widest_share: width of the widest possible pilot, as a share of the student's.
    """
    log_errors, widths = [], []
    for teacher in {student.teacher for student in students}:
        own = sorted((s for s in students if s.teacher == teacher), key=lambda student: student.width)
        fit = fit_form(form, predictor, [student for student in students if student.teacher != teacher])
        observations = observations_of(form, predictor, own)
        for i, student in enumerate(own):
            possible = [j for j, pilot in enumerate(own) if pilot.width <= widest_share * student.width]
            if len(possible) < MOST_PILOTS:
                continue
            pilots = possible[len(possible) - n_pilots :]
            noise = np.array([own[j].log_error_as_pilot for j in pilots]) ** 2
            seen = Observations(observations.x[pilots], observations.y[pilots], noise)
            predicted = fit.predict(observations.x[i : i + 1], 0.8, seen=seen)
            log_errors.append(float(predicted.value[0] - observations.y[i]))
            widths.append(float(predicted.high[0] - predicted.low[0]))
    errors, half_widths = np.array(log_errors), np.array(widths) / 2
    return PilotsJudged(
        len(errors),
        float(np.median(np.abs(np.expm1(errors)))),
        float(np.sqrt((errors**2).mean())),
        float((np.abs(errors) <= half_widths).mean()),
        float(np.exp(np.median(widths))),
    )


def pilots_table(form: str, predictor: str, students: Sequence[Student]) -> Table:
    """Return a table of the errors with 0 to 2 pilots."""
    columns = ("pilots", "at most as wide", "students", "median error", "log error", "in 80 %", "high/low of 80 %")
    table = Table(*columns, box=None, title=predictor)
    for share in PILOT_SHARES:
        for n_pilots in range(MOST_PILOTS + 1):
            judged = judge_pilots(form, predictor, students, n_pilots, share)
            errors = (f"{judged.median_error:.0%}", f"{judged.log_error:.3f}")
            interval = (f"{judged.coverage:.0%}", f"{judged.factor:.2f}")
            table.add_row(str(n_pilots), f"{share:.0%}", str(judged.n_students), *errors, *interval)
    return table


def students_table(students: Sequence[Student]) -> Table:
    """Return a table of the students."""
    table = Table(
        "teacher", "width", "reached", "L∞ (95 %)", "head", "L∞ / head", "simulated: middle", "last", box=None
    )
    for s in students:
        low, high = s.interval
        table.add_row(
            s.teacher,
            str(s.width),
            f"{s.reached:.3f}",
            f"{s.loss:.3f} ({low:.3f} to {high:.3f})",
            f"{s.predictions['head']:.4f}",
            f"{s.loss / s.predictions['head']:.2f}",
            f"{s.predictions['simulated, middle layer']:.4f}",
            f"{s.predictions['simulated, last layer']:.4f}",
        )
    return table


def main(directory: Path = Path(__file__).parent, most: int = 40) -> None:
    """Print the students, and the errors of each predictor on teachers that were left out."""
    students, left_out = read_students(directory)
    console = Console(width=150)
    console.print(students_table(students), *left_out, sep="\n")
    below = [s for s in students if s.loss < s.predictions["head"]]
    n_teachers = len({s.teacher for s in students})
    console.print(f"{len(students)} students of {n_teachers} teachers; {len(below)} below the head floor")
    left = [1 - s.loss / s.reached for s in students]
    console.print(f"L∞ is {np.median(left):.0%} below what was reached (median; {min(left):.0%} to {max(left):.0%})")
    rows = [judge(form, predictor, students) for predictor in students[0].predictions for form in TERMS]
    coverage = [f"{level:.0%}" for level in LEVELS]
    widths = [f"high/low of {level:.0%}" for level in WIDTH_LEVELS]
    table = Table("predictor", "form", "median error", "largest", "log error", "R² (log)", *coverage, *widths, box=None)
    for row in sorted(rows, key=lambda row: row.log_error)[:most]:
        errors = (f"{row.median_error:.0%}", f"{row.largest_error:.0%}", f"{row.log_error:.3f}", f"{row.r2:.3f}")
        covered = (f"{share:.0%}" for share in row.coverage)
        table.add_row(row.predictor, row.form, *errors, *covered, *(f"{factor:.2f}" for factor in row.factors))
    console.print(table)
    console.print(pilots_table(FORM_OF_EXPECTED, EXPECTED, students))


if __name__ == "__main__":
    typer.run(main)
