"""Read the students of the atlas, with everything that may predict their losses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_distill_floor.theory.learning_curve import LearningCurveFit, fit_learning_curve, log_error

LARGEST_INTERVAL = 3.0
"""A student whose L∞ is not known within this factor is left out."""


@dataclass(frozen=True)
class Student:
    """A student of the atlas, and what was predicted at its width. Losses are in nats per token."""

    teacher: str
    width: int
    reached: float
    """Last held-out loss of its training."""
    loss: float
    """L∞ of its learning curve."""
    interval: tuple[float, float]
    """95 % interval of `loss`."""
    log_error: float
    """Standard error of the logarithm of `loss`, from the fit of the learning curve alone."""
    log_error_as_pilot: float
    """The same from `interval`, as the package counts the students of a user."""
    n_layers: int
    vocabulary: int
    is_tied: bool
    known_share: float
    """Share of the next token's entropy that the teacher's context removes."""
    predictions: dict[str, float]
    """Predicted losses, up to a factor."""


def read_students(directory: Path) -> tuple[list[Student], list[str]]:
    """Return the students of the atlas whose L∞ is known, and a sentence about each of the others.

    Args:
        directory: where the rows are.
    """
    students, left_out = [], []
    for file in sorted(directory.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        for student in row["students"]:
            fit = fit_learning_curve(student["tokens"], student["losses"])
            if not _is_known(fit):
                low, high = fit.fit_interval
                interval = f"{fit.floor:.3f} ({low:.3f} to {high:.3f}), reached {student['losses'][-1]:.3f}"
                left_out.append(f"{row['teacher']}, width {student['width']}: L∞ is not known, {interval}")
                continue
            students.append(_student(row, student, fit))
    return students, left_out


def _is_known(fit: LearningCurveFit) -> bool:
    """Return whether the interval of the fit is narrow enough."""
    low, high = fit.fit_interval
    return fit.floor > 0 and low * LARGEST_INTERVAL >= high


def _student(row: dict[str, Any], student: dict[str, Any], fit: LearningCurveFit) -> Student:
    recipe, predicted = row["recipe"], row["predictions"]
    i, width, d_model = predicted["widths"].index(student["width"]), student["width"], recipe["d_model"]
    middle, last = (layer for _, layer in sorted(predicted["layers"].items(), key=lambda item: _layer(item[0])))
    head, encoded = predicted["head"][i], predicted["head_encoded"][i]
    simulated = [middle["simulated"][i], last["simulated"][i]]
    parts = np.array([head, *simulated])
    return Student(
        teacher=row["teacher"],
        width=width,
        reached=student["losses"][-1],
        loss=fit.floor,
        interval=fit.interval,
        log_error=log_error(fit.floor, fit.fit_interval),
        log_error_as_pilot=log_error(fit.floor, fit.interval),
        n_layers=recipe["n_layers"],
        vocabulary=recipe["vocab_size"],
        is_tied=recipe["tied"],
        known_share=predicted["known_share"],
        predictions={
            "head": head,
            "head, encoded": encoded,
            "theorem, middle layer": middle["theorem"][i],
            "independent, middle layer": middle["independent"][i],
            "independent, last layer": last["independent"][i],
            "simulated, middle layer": simulated[0],
            "simulated, last layer": simulated[1],
            "simulated, largest": max(simulated),
            "head + simulated": float(parts.sum()),
            "head and simulated, root of squares": float(np.sqrt((parts**2).sum())),
            "head + simulated, middle layer": head + simulated[0],
            "head + simulated, last layer": head + simulated[1],
            "encoded + simulated, middle layer": encoded + simulated[0],
            "encoded + simulated, last layer": encoded + simulated[1],
            "encoded + simulated, largest": encoded + max(simulated),
            "1/width − 1/d_model": 1 / width - 1 / d_model,
            "1/parameters": 1 / student["n_parameters"] - 1 / row["training"]["parameters"],
        },
    )


def _layer(hook_name: str) -> int:
    """Return the layer of a hook point such as blocks.3.hook_resid_post."""
    return int(hook_name.split(".")[1])
