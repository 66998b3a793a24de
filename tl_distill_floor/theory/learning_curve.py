"""The floor of a learning curve: L(t) = L∞ + A · t^-b, the loss that training would end at."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import f as f_distribution
from scipy.stats import t as student_t

FEWEST, SPAN = 8, 10.0
"""Points that three parameters can be fitted to, and how many times as many tokens the last has seen as the first: a
shorter curve says nothing of its end."""
EXPONENTS = np.geomspace(0.05, 3.0, 400)
FROM = 0.1
"""Points before this share of the tokens are warm-up, and are left out."""
CLOSE = 0.05
"""A curve that is within this share of its floor has reached it."""
WORSE = 1.1
"""A curve that ends above its own lowest point by this factor has diverged."""


@dataclass(frozen=True)
class LearningCurveFit:
    """Where a learning curve ends. Losses are in the curve's unit."""

    floor: float
    """L∞."""
    interval: tuple[float, float]
    """95 %, of the fit alone: what curves of this form could still fit as well."""
    amplitude: float
    exponent: float
    status: str
    """"saturated": the last loss and the interval's lower end are within 5 % of each other; "under-trained": they are
    not; "diverged": the last loss is not a number, or 10 % above the lowest."""


def fit_learning_curve(tokens: Any, loss: Any) -> LearningCurveFit:
    """Fit L∞ + A · t^-b to a learning curve by least squares of relative errors.

    For every exponent the rest is linear; the interval holds the floors, with their own errors, of all exponents whose
    squared error is not significantly larger than the best one's (F-test of all three parameters, 95 %).

    Args:
        tokens: [point] how much had been trained on, rising.
        loss: [point] on held-out text.

    Returns:
        The fit; where the curve is too short for one, the last loss, and nothing known below it.
    """
    t, losses = (np.asarray(given, dtype=np.float64) for given in (tokens, loss))
    if len(t) != len(losses) or not len(t):
        raise ValueError(f"a curve needs a loss for every number of tokens, got {len(losses)} and {len(t)}")
    lowest, last = float(np.nanmin(losses, initial=math.inf)), float(losses[-1])
    if last == 0.0 and lowest == 0.0:
        return LearningCurveFit(0.0, (0.0, 0.0), 0.0, 0.0, "saturated")
    if not math.isfinite(last) or last > WORSE * lowest:
        return LearningCurveFit(lowest, (0.0, lowest), 0.0, 0.0, "diverged")
    chosen = t >= FROM * t[-1]
    if chosen.sum() < FEWEST or t[-1] < SPAN * t[0]:
        return LearningCurveFit(last, (0.0, last), 0.0, 0.0, "under-trained")
    t, losses = t[chosen], np.maximum(losses[chosen], 1e-12)
    fits = np.array([_linear(t / t[-1], losses, exponent) for exponent in EXPONENTS])
    floors, amplitudes, spread, error = fits.T
    best, free = int(error.argmin()), len(t) - 3
    near = error <= error[best] * (1 + 3 * f_distribution.ppf(0.95, 3, free) / free)
    reach = student_t.ppf(0.975, free) * np.sqrt(error[best] / free) * spread[near]
    low, high = max(float((floors[near] - reach).min()), 0.0), float((floors[near] + reach).max())
    amplitude = float(amplitudes[best] * t[-1] ** EXPONENTS[best])
    reached = last - low <= CLOSE * last
    return LearningCurveFit(float(floors[best]), (low, high), amplitude, float(EXPONENTS[best]), _status(reached))


def _status(reached: bool) -> str:
    return "saturated" if reached else "under-trained"


def _linear(
    t: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], exponent: float
) -> tuple[float, float, float, float]:
    """(floor, amplitude, its floor's error for errors of 1, squared error) of the best curve of this exponent.

    Neither floor nor amplitude is below 0; t is 1 at the last point.
    """
    constant, falling = 1.0 / loss, t**-exponent / loss
    basis = np.stack([constant, falling], axis=1)
    floor, amplitude = np.linalg.lstsq(basis, np.ones_like(loss), rcond=None)[0]
    spread = math.sqrt(float(np.linalg.pinv(basis.T @ basis)[0, 0]))
    if amplitude < 0:
        floor, amplitude, spread = constant.sum() / (constant @ constant), 0.0, 1.0 / math.sqrt(constant @ constant)
    elif floor < 0:
        floor, amplitude = 0.0, falling.sum() / (falling @ falling)
    squared = float(((floor * constant + amplitude * falling - 1.0) ** 2).sum())
    return float(floor), float(amplitude), spread, squared
