"""Compute the learning rates of a student from its schedule, and fit its learning curve with them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.theory.learning_curve import LearningCurveFit, fit_learning_curve
from tl_distill_floor.theory.rate_schedule import is_constant_until_decay

N_STEPS = 10_000
"""Steps by which a training is resolved; the learning rate depends on the share of the steps."""
SETTINGS = ("n_tokens", "schedule", "decay", "warmup")
"""Settings that the shape of a schedule depends on."""


def fit_student(config: DistillConfig, tokens: Sequence[int], losses: Sequence[float]) -> LearningCurveFit:
    """Fit the learning curve of a student, with its learning rates where they change the curve.

    Args:
        config: settings of the training.
        tokens: tokens trained on at each point, rising; at least one.
        losses: held-out loss at each point.
    """
    rates = learning_rates(config, tokens)
    return fit_learning_curve(np.array(tokens), np.array(losses), None if rates is None else np.array(rates))


def learning_rates(config: DistillConfig, tokens: Sequence[int]) -> tuple[float, ...] | None:
    """Return the learning rate at each point of a learning curve.

    Args:
        config: settings of the training.
        tokens: tokens trained on at each point, rising; at least one.

    Returns:
        Learning rates; None if they are constant from a short warm-up to a decay in the last fifth of the tokens, which
        learning curves are fitted with if no rates are given.
    """
    steps = [min(max(round(N_STEPS * count / config.n_tokens), 1), N_STEPS) - 1 for count in tokens]
    rates = tuple(config.lr_at(step, N_STEPS) for step in steps)
    return None if is_constant_until_decay(np.array(tokens), np.array(rates)) else rates


def fitted_with_rates(student: StudentResult) -> StudentResult:
    """Return a student whose L∞ is fitted with its learning rates, which older versions did not use.

    A student that diverged stays as it is.

    Args:
        student: the result of a training.

    Raises:
        InputError: see `rates_of_student`.
    """
    rates = None if student.status == "diverged" else rates_of_student(student)
    if rates is None:
        return student
    fit = fit_learning_curve(np.array(student.tokens), np.array(student.losses), np.array(rates))
    return dataclasses.replace(student, floor=fit.floor, interval=fit.interval, status=fit.status)


def rates_of_student(student: StudentResult) -> tuple[float, ...] | None:
    """Return the learning rate at each point of a student's learning curve, from its settings; see `learning_rates`.

    Raises:
        InputError: the settings have a schedule that is not known, or not all of its parts.
    """
    if "schedule" not in student.settings:
        return None
    # Older files call the number of tokens "tokens".
    settings = {"n_tokens": student.settings.get("tokens"), **student.settings}
    try:
        config = DistillConfig(**{name: settings[name] for name in SETTINGS})
    except (InputError, TypeError, KeyError) as error:
        raise InputError(
            f"the learning rates of student {student.name} are not known from its settings ({error}); diagnose its"
            " curve as a .csv file with a column learning_rate"
        ) from error
    return learning_rates(config, student.tokens)
