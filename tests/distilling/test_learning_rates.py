"""Tests of learning rates from the settings of students, and of the losses at saturation that are fitted with them."""

import math
from typing import Any

import numpy as np
import pytest

from tests.helpers.learning_curves import made_head
from tl_distill_floor import InputError, StudentResult, diagnose
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.learning_rates import fit_student, learning_rates, rates_of_student
from tl_distill_floor.theory.learning_curve import fit_learning_curve

N_STEPS, TOKENS_PER_STEP = 2000, 1000
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"decay": 0.0},
    "decay 0.2": {"decay": 0.2},
    "decay 0.4": {"decay": 0.4},
    "decay 0.5": {"decay": 0.5},
    "cosine": {"schedule": "cosine"},
    "warm-up": {"warmup": 0.5},
}


def simulated(settings: dict[str, Any], seed: int) -> tuple[list[int], list[float], float]:
    """Return (tokens, losses, loss at saturation) of a training whose loss is a power law of the sum of its rates."""
    config, random = DistillConfig(**settings), np.random.default_rng([seed, 5])
    rates = np.array([config.lr_at(step, N_STEPS) for step in range(N_STEPS)])
    steps = np.array(config.evaluation_steps(N_STEPS))
    trained = np.cumsum(rates)[steps - 1] / rates.sum()
    end, amplitude = random.uniform(0.05, 0.2, size=2)
    losses = end + amplitude * trained ** -random.uniform(0.3, 0.8)
    noise = 1 + 0.002 * random.standard_normal(len(steps))
    return (steps * TOKENS_PER_STEP).tolist(), (losses * noise).tolist(), float(end)


def made_student(settings: dict[str, Any], tokens: list[int], losses: list[float]) -> StudentResult:
    """Return a student of width 64 that was trained with some settings."""
    return StudentResult(
        "width64", "made", 64, 4, 10, tuple(tokens), tuple(losses), losses[-1], (0.0, losses[-1]), "under-trained", 9,
        settings,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_interval_covers_the_loss_at_saturation_with_every_schedule(schedule: str) -> None:
    """At least 36 of 40 intervals hold it, and most are known."""
    settings = {"n_tokens": N_STEPS * TOKENS_PER_STEP} | SCHEDULES[schedule]
    covered = known = 0
    for seed in range(40):
        tokens, losses, end = simulated(settings, seed)
        fit = fit_student(DistillConfig(**settings), tokens, losses)
        covered += fit.interval[0] <= end <= fit.interval[1]
        known += fit.interval != (0.0, losses[-1])
    assert covered >= 36
    assert known >= 24


def test_rates_are_those_of_the_schedule_and_none_where_they_change_nothing() -> None:
    config = DistillConfig(n_tokens=1000, lr=2e-3, schedule="cosine", warmup=0.0)
    rates = learning_rates(config, [250, 500, 1000, 1010])
    expected = [2e-3 * 0.5 * (1 + math.cos(math.pi * share)) for share in (0.25, 0.5, 1.0, 1.0)]
    assert rates == pytest.approx(expected, abs=1e-6)
    tokens = list(range(20, 1001, 20))
    for unchanged in ({}, {"decay": 0.1}, {"decay": 0.0, "warmup": 0.0}):
        settings: dict[str, Any] = {"n_tokens": 1000} | unchanged
        assert learning_rates(DistillConfig(**settings), tokens) is None
        losses = (0.5 + 3.0 / np.array(tokens)).tolist()
        assert fit_student(DistillConfig(**settings), tokens, losses) == fit_learning_curve(tokens, losses)
    # Half of a training whose rate falls in its second half had a constant rate.
    assert learning_rates(DistillConfig(n_tokens=1000, decay=0.5), tokens[:25]) is None
    assert learning_rates(DistillConfig(n_tokens=1000, decay=0.5), tokens) is not None


def test_diagnosis_of_a_student_uses_the_rates_of_its_settings() -> None:
    """A quarter of the loss is left to gain, but a cosine flattens the curve as if nothing were."""
    config = DistillConfig(n_tokens=N_STEPS * TOKENS_PER_STEP, schedule="cosine")
    rates = np.array([config.lr_at(step, N_STEPS) for step in range(N_STEPS)])
    steps = np.array(config.evaluation_steps(N_STEPS))
    losses = (0.3 + 0.1 * (np.cumsum(rates)[steps - 1] / rates.sum()) ** -0.5).tolist()
    tokens = (steps * TOKENS_PER_STEP).tolist()
    head = made_head(expected=0.4, bound=0.1)
    settings = {"n_tokens": config.n_tokens, "schedule": "cosine", "decay": 0.2, "warmup": 0.02}
    diagnosis = diagnose(made_student(settings, tokens, losses), head)
    assert diagnosis.verdict == "under-trained"
    assert diagnosis.end_interval[0] <= 0.3 <= diagnosis.end_interval[1]
    assert diagnose(made_student({}, tokens, losses), head).verdict != "under-trained"


def test_settings_without_a_schedule_are_those_of_a_constant_rate() -> None:
    student = made_student({"n_tokens": 10}, [5, 10], [0.9, 0.8])
    assert rates_of_student(student) is None


@pytest.mark.parametrize("changes", [{"schedule": "wsd"}, {"n_tokens": "many"}, {"n_tokens": None}])
def test_a_schedule_that_is_not_known_is_refused(changes: dict[str, Any]) -> None:
    settings = {"schedule": "cosine", "n_tokens": 10, "decay": 0.2, "warmup": 0.02} | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    with pytest.raises(InputError, match="the learning rates of student width64 are not known from its settings"):
        diagnose(made_student(settings, [5, 10], [0.9, 0.8]), made_head(expected=0.4, bound=0.1))
