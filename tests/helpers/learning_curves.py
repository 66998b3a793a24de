"""Learning curves with a known end, and head floors to compare them with."""

import math
from typing import Literal

import numpy as np

from tests.helpers.records import made_head_floor
from tl_distill_floor import Diagnosis, HeadFloor
from tl_distill_floor.results.expected_loss import expected_loss_fit

Kind = Literal["plain", "warm-up", "decay", "averaged"]
"""A training: with a constant learning rate; with a rise over the first 2 % of the steps; also with a fall over the
last fifth that lowers the loss; and its loss averaged over the steps."""
N_STEPS = 800
POINTS = np.unique(np.round(N_STEPS * 0.02 ** (1 - np.arange(24) / 23)).astype(int))
"""Steps of the points, evenly spaced in the logarithm from 2 % on."""


def simulated_curve(kind: Kind, seed: int) -> tuple[np.ndarray, float]:
    """Return (losses at `POINTS`, the loss at which the training would saturate)."""
    random, steps = np.random.default_rng([seed, 7]), np.arange(1, N_STEPS + 1)
    floor, exponent = float(random.choice([0.0, 0.03, 0.1, 0.5, 1.0])), random.uniform(0.2, 1.2)
    amplitude, noise = max(floor, 0.2) * 10 ** random.uniform(-1.5, 0.3), random.choice([0.0, 0.0005, 0.002, 0.01])
    rise = np.minimum(1.0, steps / (0.02 * N_STEPS)) if kind != "plain" else np.ones(N_STEPS)
    fall = np.minimum(1.0, (N_STEPS + 1 - steps) / (0.2 * N_STEPS)) if kind in ("decay", "averaged") else 1.0
    lr, excess = rise * fall, random.uniform(0, 0.05) if kind in ("decay", "averaged") else 0.0
    losses = (floor + amplitude * (np.cumsum(lr) / N_STEPS) ** -exponent) * (1 + excess * lr)
    if kind == "averaged":
        for i in range(1, N_STEPS):
            losses[i] = losses[i - 1] + (losses[i] - losses[i - 1]) * min(1.0, 17 / (i + 1))
    return losses[POINTS - 1] * (1 + noise * random.standard_normal(len(POINTS))), floor


def made_head(expected: float, bound: float, width: int = 64) -> HeadFloor:
    """Return the head floor of a teacher of 256 dimensions and 4,096 tokens, at one width.

    Args:
        expected: expected loss of a student of that width.
        bound: its least loss; the standard error and what more training would gain are 1 % of it.
        width: the width.
    """
    intercept, slope = expected_loss_fit("encoded").fit.coefficients
    encoded = math.exp((math.log(expected) - intercept) / slope)
    return made_head_floor(
        d_model=256,
        vocab_size=4096,
        widths=(width,),
        floor=(bound,),
        standard_error=(0.01 * bound,),
        half_steps=(1.01 * bound,),
        encoded=(encoded,),
    )


def diagnosis() -> Diagnosis:
    """Return a diagnosis of a curve of two points, with an end that is made up."""
    return Diagnosis(
        curve="checked",
        teacher="made",
        width=8,
        verdict="under-trained",
        reason="half is left",
        reached=0.4,
        bound=0.05,
        expected=0.2,
        expected_interval=(0.1, 0.5),
        end=0.2,
        end_interval=(0.1, 0.3),
        half_factor=4.0,
        tokens=(1000.0, 2000.0),
        losses=(0.6, 0.4),
        warnings=("look at the loss",),
    )
