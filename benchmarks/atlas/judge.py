"""Judge predictors on teachers that they were not fitted to.

    python benchmarks/atlas/judge.py

Reads the rows of the atlas (`*.json` next to this script). The loss of a student is L∞ of its learning curve where the
curve shows it; other students are left out. Every predictor is fitted to all teachers but one, and predicts the
students of that one. Errors are relative to the student's loss.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tl_distill_floor.theory.learning_curve import fit_learning_curve


class Student(NamedTuple):
    """A student of the atlas, and what was predicted at its width. Losses are in nats per token."""

    teacher: str
    width: int
    n_parameters: int
    reached: float
    loss: float
    interval: tuple[float, float]
    predictions: dict[str, float]


def read_students(directory: Path) -> list[Student]:
    """Return all students of the atlas whose floor is known."""
    students = []
    for file in sorted(directory.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        predicted = row["predictions"]
        layers = [layer for layer in predicted["layers"].values() if layer["simulated"] is not None]
        for student in row["students"]:
            if student["width"] not in predicted["widths"]:
                continue
            i = predicted["widths"].index(student["width"])
            fit = fit_learning_curve(student["tokens"], student["losses"])
            last = student["losses"][-1]
            known = fit.status != "under-trained" or fit.interval != (0.0, last)
            if not known or fit.floor <= 0:
                print(f"left out: {row['teacher']}, width {student['width']}: its floor is not known")
                continue
            predictions = {
                "head": predicted["head"][i],
                "head, encoded": predicted["head_encoded"][i],
                "theorem, middle layer": layers[0]["theorem"][i],
                "independent, middle layer": layers[0]["independent"][i],
                "simulated, middle layer": layers[0]["simulated"][i],
                "simulated, last layer": layers[-1]["simulated"][i],
                "simulated, largest": max(layer["simulated"][i] for layer in layers),
                "1/width": row["recipe"]["d_model"] / student["width"] - 1,
                "1/parameters": row["training"]["parameters"] / student["n_parameters"] - 1,
            }
            students.append(
                Student(
                    row["teacher"],
                    student["width"],
                    student["n_parameters"],
                    last,
                    fit.floor,
                    fit.interval,
                    predictions,
                )
            )
    return students


def factor(x: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit loss = C · x, by the mean of log(loss / x)."""
    c = np.exp(np.mean(np.log(loss / np.maximum(x, 1e-9))))
    return lambda new: c * new


def as_it_is(_x: np.ndarray, _loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit nothing."""
    return lambda new: new


def power(x: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit log loss = a + b · log x."""
    b, a = np.polyfit(np.log(np.maximum(x, 1e-9)), np.log(loss), 1)
    return lambda new: np.exp(a) * np.maximum(new, 1e-9) ** b


def linear(x: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit loss = C · x + B, weighted by 1 / loss, so that relative errors count."""
    c, b = np.polyfit(x, loss, 1, w=1 / loss)
    return lambda new: c * new + b


FITS = {"as it is": as_it_is, "factor": factor, "factor and baseline": linear, "power": power}


def main(directory: Path = Path(__file__).parent) -> None:
    """Print the students, and the errors of each predictor on teachers that were left out."""
    students = read_students(directory)
    console = Console(width=120)
    table = Table("teacher", "width", "reached", "L∞ (95 %)", "head", "L∞ / head", "encoded", "simulated, largest")
    for s in students:
        low, high = s.interval
        table.add_row(
            s.teacher,
            str(s.width),
            f"{s.reached:.3f}",
            f"{s.loss:.3f} ({low:.3f} to {high:.3f})",
            f"{s.predictions['head']:.4f}",
            f"{s.loss / s.predictions['head']:.2f}",
            f"{s.predictions['head, encoded']:.4f}",
            f"{s.predictions['simulated, largest']:.4f}",
        )
    console.print(table)
    teachers = sorted({s.teacher for s in students})
    loss = np.array([s.loss for s in students])
    below = [s for s in students if s.interval[1] < s.predictions["head"]]
    console.print(f"{len(students)} students of {len(teachers)} teachers; {len(below)} below the head floor")
    errors = Table("predictor", "fit", "median error", "largest error", "R² (log)")
    for name in students[0].predictions:
        x = np.array([s.predictions[name] for s in students])
        for fit_name, fit in FITS.items():
            predicted = np.full(len(students), np.nan)
            for teacher in teachers:
                left_out = np.array([s.teacher == teacher for s in students])
                predicted[left_out] = fit(x[~left_out], loss[~left_out])(x[left_out])
            error = np.abs(predicted - loss) / loss
            positive = np.maximum(predicted, 1e-9)
            r2 = 1 - np.var(np.log(positive) - np.log(loss)) / np.var(np.log(loss))
            errors.add_row(name, fit_name, f"{np.median(error):.0%}", f"{error.max():.0%}", f"{r2:.3f}")
    console.print(errors)


if __name__ == "__main__":
    typer.run(main)
