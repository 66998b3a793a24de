"""TODO."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student_t


class PredictedLoss(NamedTuple):
    """A loss, and the interval that it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearFit:
    """loss = slope · x + baseline, by least squares. Intervals are 95 %, Student's t with n − 2 degrees of freedom."""

    slope: float
    """C of the paper, where x is a predicted floor."""
    baseline: float
    """B: what is lost whatever the width is. Nats per token."""
    slope_interval: tuple[float, float]
    baseline_interval: tuple[float, float]
    r2: float
    """Share of the variance of the losses that the line explains."""
    loo_error: float
    """Mean of |predicted − reached|, each width predicted by the line through the others, as a share of the mean loss.

    Not a mean of relative errors: a student whose floor is next to nothing would decide those alone."""
    x: tuple[float, ...]
    residual: float
    """Standard deviation of the losses around the line."""

    def at(self, x: float, level: float = 0.95) -> PredictedLoss:
        """The loss at `x`, and the two-sided interval of a new student's; no loss is below 0."""
        places, n = np.array(self.x), len(self.x)
        around = 1.0 + 1.0 / n + (x - places.mean()) ** 2 / max(((places - places.mean()) ** 2).sum(), 1e-300)
        reach = float(student_t.ppf(0.5 + level / 2, n - 2)) * self.residual * math.sqrt(around)
        value = self.slope * x + self.baseline
        return PredictedLoss(*(max(bound, 0.0) for bound in (value, value - reach, value + reach)))


def fit_line(x: Float64[np.ndarray, " student"], loss: Float64[np.ndarray, " student"], width: Any = None) -> LinearFit:
    """The line through losses, its intervals and its leave-one-width-out error.

    Raises:
        ValueError: fewer than 3 points.
    """
    n = len(x)
    if n < 3:
        raise ValueError(f"a line with an error needs 3 points, got {n}")
    slope, baseline = _line(x, loss)
    residual = loss - (slope * x + baseline)
    deviation = math.sqrt(float(residual @ residual) / (n - 2))
    spread, variance = float(((x - x.mean()) ** 2).sum()), float(((loss - loss.mean()) ** 2).sum())
    reach = float(student_t.ppf(0.975, n - 2)) * deviation
    of_slope = reach / math.sqrt(spread) if spread > 0 else 0.0
    of_baseline = reach * math.sqrt(1.0 / n + (x.mean() ** 2 / spread if spread > 0 else 0.0))
    return LinearFit(
        slope=slope,
        baseline=baseline,
        slope_interval=(slope - of_slope, slope + of_slope),
        baseline_interval=(baseline - of_baseline, baseline + of_baseline),
        r2=1.0 - float(residual @ residual) / variance if variance > 0 else 1.0,
        loo_error=leave_one_out_error(x, loss, width),
        x=tuple(x.tolist()),
        residual=deviation,
    )


def leave_one_out_error(
    x: Float64[np.ndarray, " student"], loss: Float64[np.ndarray, " student"], width: Any = None
) -> float:
    """Mean error of each loss, predicted by the line through those of other widths (of each other x), as a share of
    the mean loss."""
    groups, errors = x if width is None else np.asarray(width), []
    for group in np.unique(groups):
        out = groups == group
        slope, baseline = _line(x[~out], loss[~out])
        errors += np.abs(slope * x[out] + baseline - loss[out]).tolist()
    return float(np.mean(errors)) / float(loss.mean())


def _line(x: Float64[np.ndarray, " width"], loss: Float64[np.ndarray, " width"]) -> tuple[float, float]:
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ loss) / spread if spread > 1e-20 * float(x @ x) else 0.0  # a prediction that is constant
    return slope, float(loss.mean() - slope * x.mean())
