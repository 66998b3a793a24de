"""The loss-capacity curve r(C; p): the share of a feature's cost that is lost if the feature gets C dimensions.

The capacity C_i is defined by Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks". r is measured by
training the toy model of Elhage et al. 2022 ("Toy Models of Superposition") on K equally important features in d
dimensions, so that C = d / K, at many firing rates p. Of several seeds the best counts, since the others are stuck in
local minima. r falls from Var[x] / E[x²] at C = 0, where only the bias is left, to 0 at C = 1. A mixture of groups of
features reaches every point of the lower convex hull of r, so the hull is used. r also depends on d: in few dimensions
the geometry is special, and for d → ∞ the interference between features is Gaussian (`scalar_denoiser`).
"""

import json
import math
from functools import cache
from importlib.resources import files
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr

from tl_distill_floor.theory.capacity import Number

CAPACITIES = np.array(
    [0, *(1 / n for n in (128, 90, 64, 45, 32, 23, 16, 11, 8, 6, 5, 4, 3)), 0.4, 0.5, 4 / 7, 2 / 3, 0.8, 8 / 9, 1]
)
"""Capacities in dimensions between which r is linear."""
SEGMENTS = np.diff(CAPACITIES)
"""Lengths of the linear segments of r, in dimensions."""
RATES_PER_DECADE = 12
"""Firing rates per decade at which r is interpolated."""
Rates = TypeVar("Rates", float, np.ndarray)


class Curve(NamedTuple):
    """r at one width, on a grid of firing rates and at the capacities `CAPACITIES`."""

    log_rate: Float64[np.ndarray, " rate"]
    """Natural logarithm of the firing rates, rising."""
    r: Float64[np.ndarray, "rate capacity"]

    def gains(self, rate: Float64[np.ndarray, " feature"]) -> Float64[np.ndarray, "segment feature"]:
        """Compute −dr/dC on every segment for the firing rate of each feature; it falls from segment to segment."""
        gradients = -np.diff(self.r, axis=1) / SEGMENTS
        position = np.interp(np.log(rate), self.log_rate, np.arange(len(self.log_rate)))
        below = np.minimum(position.astype(np.int64), len(self.log_rate) - 2)
        share = position - below
        gains = np.empty((len(SEGMENTS), len(rate)))
        for gain, gradient in zip(gains, gradients.T, strict=True):
            gain[:] = gradient[below] * (1.0 - share) + gradient[below + 1] * share
        return gains


def loss_curve(width: Number) -> Curve:
    """Return r(C; p) for features that share `width` dimensions.

    Between two measured widths, r is interpolated linearly in 1 / width.

    Args:
        width: dimensions.

    Example:
        >>> loss_curve(8).r[:, -1].max()
        np.float64(0.0)
    """
    widths, log_rate, r = _measured_curves()
    inverse = 1.0 / np.asarray(widths)
    position = float(np.interp(-1.0 / max(float(width), 1.0), -inverse, np.arange(len(widths))))
    below = min(int(position), len(widths) - 2)
    return Curve(log_rate, r[below] * (1.0 - (position - below)) + r[below + 1] * (position - below))


def nothing_kept(rate: Rates) -> Rates:
    """Return r(0; p) = Var[x] / E[x²] = 1 − ¾ p, for features that are uniform on [0, 1] when they fire.

    Example:
        >>> nothing_kept(0.2)
        0.85
    """
    return 1.0 - 0.75 * rate


def scalar_denoiser(capacity: Number, rate: Number) -> float:
    """Compute r in the limit of many dimensions: min over a, b of E[(ReLU(a x + a √v z + b) − x)²] / E[x²].

    z is standard Gaussian noise. v = (1/C − 1) p E[x² | x > 0] is the variance of the interference if the features'
    directions are spread as evenly as possible.

    Args:
        capacity: C, dimensions given to the feature.
        rate: firing rate p.

    Returns:
        Share of the cost that is lost.

    Example:
        >>> round(scalar_denoiser(0.0, 0.2), 3)
        0.85
    """
    if capacity <= 0:
        return nothing_kept(float(rate))
    noise = math.sqrt((1.0 / float(capacity) - 1.0) * rate / 3.0)
    x, weight = np.polynomial.legendre.leggauss(48)
    x, weight = (x + 1.0) / 2.0, weight / 2.0
    best, a_range, b_range = np.inf, (0.02, 1.0), (-1.0, 0.6)
    for _ in range(6):
        a, b = (np.linspace(*bounds, 25) for bounds in (a_range, b_range))
        loss = _denoiser_loss(x, weight, a[:, None, None], b[None, :, None], noise, rate)
        i, j = divmod(int(loss.argmin()), len(b))
        best = min(best, float(loss[i, j]))
        a_range = (a[max(i - 2, 0)], a[min(i + 2, 24)])
        b_range = (b[max(j - 2, 0)], b[min(j + 2, 24)])
    return float(min(best / (rate / 3.0), nothing_kept(float(rate))))


def _denoiser_loss(
    x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, noise: float, rate: Number
) -> Float64[np.ndarray, "a b"]:
    """Compute E[(ReLU(a x + a √v z + b) − x)²] for every a and b, by quadrature over x."""
    spread = np.maximum(a * noise, 1e-9)
    first, second = _relu_moments(a * x + b, spread)
    active = ((second - 2.0 * x * first + x**2) * weight).sum(-1)
    inactive: np.ndarray = _relu_moments(b + 0.0 * a, spread)[1][..., 0]
    loss: np.ndarray = rate * active + (1.0 - rate) * inactive
    return loss


def _relu_moments(mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the first and second moment of ReLU(mean + spread · z), z standard Gaussian."""
    t = mean / spread
    below, density = ndtr(t), np.exp(-(t**2) / 2.0) / np.sqrt(2.0 * np.pi)
    return mean * below + spread * density, (mean**2 + spread**2) * below + mean * spread * density


def lower_hull(
    capacity: Float64[np.ndarray, " point"], r: Float64[np.ndarray, " point"]
) -> Float64[np.ndarray, " capacity"]:
    """Compute the lower convex hull of points, and interpolate it at `CAPACITIES`.

    Args:
        capacity: [point] capacities from 0 to 1, rising.
        r: [point] shares of the cost that are lost.

    Returns:
        [capacity] the hull at `CAPACITIES`.

    Example:
        >>> bool(np.allclose(lower_hull(np.array([0, 0.5, 1]), np.array([1, 0.9, 0])), 1 - CAPACITIES))
        True
    """
    hull: list[int] = []
    for i in range(len(r)):
        while len(hull) > 1 and _is_above(capacity, r, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    at_capacities: np.ndarray = np.interp(CAPACITIES, capacity[hull], r[hull])
    return at_capacities


def _is_above(x: np.ndarray, y: np.ndarray, left: int, middle: int, right: int) -> bool:
    """Return whether the middle point is on or above the line between the outer two."""
    return bool((y[middle] - y[left]) * (x[right] - x[left]) >= (y[right] - y[left]) * (x[middle] - x[left]))


@cache
def _measured_curves() -> tuple[list[float], Float64[np.ndarray, " rate"], Float64[np.ndarray, "width rate capacity"]]:
    """Read the measured curves, interpolate them between rates, and make r fall with the width.

    Returns:
        (widths, log rates, r).
    """
    stored = json.loads((files("tl_distill_floor.assets") / "loss_capacity_curve.json").read_text())
    widths = [float(width) for width in stored["widths"]]
    measured_log_rate, measured_r = np.log(stored["rates"]), np.array(stored["r"])
    n_rates = round((measured_log_rate[-1] - measured_log_rate[0]) / np.log(10) * RATES_PER_DECADE) + 1
    even_log_rate = np.linspace(measured_log_rate[0], measured_log_rate[-1], n_rates)
    log_rate = np.unique(np.concatenate([measured_log_rate, even_log_rate]))
    curves: list[np.ndarray] = []
    for r in measured_r:
        curve = _interpolate_rates(measured_log_rate, r, log_rate)
        # Features in many dimensions can always be split into groups of fewer dimensions.
        curve = np.minimum(curve, curves[-1]) if curves else curve
        curves.append(np.stack([lower_hull(CAPACITIES, row) for row in curve]))
    return widths, log_rate, np.stack(curves)


def _interpolate_rates(
    measured_log_rate: Float64[np.ndarray, " measured"],
    r: Float64[np.ndarray, "measured capacity"],
    log_rate: Float64[np.ndarray, " rate"],
) -> Float64[np.ndarray, "rate capacity"]:
    """Interpolate log(r(C) / r(0)) linearly in the log rate: the ratio is nearly a power of the rate."""
    logs = np.log(np.maximum(r / r[:, :1], 1e-12))
    interpolated = np.stack([np.interp(log_rate, measured_log_rate, column) for column in logs.T], axis=1)
    curve: np.ndarray = np.exp(interpolated) * nothing_kept(np.exp(log_rate))[:, None]
    curve[:, -1] = 0.0
    return curve
