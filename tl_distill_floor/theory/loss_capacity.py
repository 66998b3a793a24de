"""The loss-capacity curve r(C; p): what is left of a feature's cost when it gets a share C of a dimension.

Scherlis et al. 2022, "Polysemanticity and Capacity in Neural Networks", give the capacity C_i; r is measured here by
training the toy model (Elhage et al. 2022) on K equally important features in d dimensions, C = d / K, at many rates p;
of several seeds the best, since the others are stuck. r falls from Var[x] / E[x²] at C = 0, where only the bias is
left, to 0 at C = 1. Mixing groups of features makes every point of its lower convex hull reachable, so the hull is what
is kept. It depends on d too: few dimensions have their own geometry, and for d → ∞ interference between features is
Gaussian (`scalar_denoiser`).
"""

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr

from tl_distill_floor.theory.capacity import Number

CAPACITIES = np.array(
    [0, *(1 / n for n in (128, 90, 64, 45, 32, 23, 16, 11, 8, 6, 5, 4, 3)), 0.4, 0.5, 4 / 7, 2 / 3, 0.8, 8 / 9, 1]
)
"""Shares of a dimension between which r is linear."""
SEGMENTS = np.diff(CAPACITIES)
RATES_PER_DECADE = 12


class Curve(NamedTuple):
    """r at one width: on a grid of rates, rising, by `CAPACITIES`."""

    log_rate: Float64[np.ndarray, " rate"]
    r: Float64[np.ndarray, "rate capacity"]

    def gains(self, rate: Float64[np.ndarray, " feature"]) -> Float64[np.ndarray, "segment feature"]:
        """−dr/dC on every segment, for every feature by its own rate; falls from segment to segment."""
        slopes = -np.diff(self.r, axis=1) / SEGMENTS
        place = np.interp(np.log(rate), self.log_rate, np.arange(len(self.log_rate)))
        below = np.minimum(place.astype(np.int64), len(self.log_rate) - 2)
        share = place - below
        return np.stack([s[below] * (1.0 - share) + s[below + 1] * share for s in slopes.T])


def loss_curve(width: Number) -> Curve:
    """r(C; p) of features that share `width` dimensions: between two measured widths, linear in 1 / width."""
    widths, log_rate, r = _measured()
    inverse = 1.0 / np.asarray(widths)
    at = float(np.interp(-1.0 / max(float(width), 1.0), -inverse, np.arange(len(widths))))
    below = min(int(at), len(widths) - 2)
    return Curve(log_rate, r[below] * (1.0 - (at - below)) + r[below + 1] * (at - below))


def nothing_kept(rate: Any) -> Any:
    """r(0; p) = Var[x] / E[x²] = 1 − ¾ p of features that are uniform on [0, 1] when they fire."""
    return 1.0 - 0.75 * rate


def scalar_denoiser(capacity: Number, rate: Number) -> float:
    """r in the limit of many dimensions: min over a, b of E[(ReLU(a x + a √v z + b) − x)²] / E[x²].

    z is Gaussian; v = (1/C − 1) p E[x² | on] is the interference of directions spread as evenly as they can be.
    """
    if capacity <= 0:
        return float(nothing_kept(rate))
    noise = math.sqrt((1.0 / float(capacity) - 1.0) * rate / 3.0)
    x, weight = np.polynomial.legendre.leggauss(48)
    x, weight = (x + 1.0) / 2.0, weight / 2.0
    best, a_range, b_range = np.inf, (0.02, 1.0), (-1.0, 0.6)
    for _ in range(6):
        a, b = (np.linspace(*bounds, 25) for bounds in (a_range, b_range))
        loss = _denoised(x, weight, a[:, None, None], b[None, :, None], noise, rate)
        i, j = divmod(int(loss.argmin()), len(b))
        best = min(best, float(loss[i, j]))
        a_range = (a[max(i - 2, 0)], a[min(i + 2, 24)])
        b_range = (b[max(j - 2, 0)], b[min(j + 2, 24)])
    return float(min(best / (rate / 3.0), nothing_kept(rate)))


def _denoised(
    x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, noise: float, rate: Number
) -> Float64[np.ndarray, "a b"]:
    spread = np.maximum(a * noise, 1e-9)
    first, second = _rectified(a * x + b, spread)
    on = ((second - 2.0 * x * first + x**2) * weight).sum(-1)
    off: np.ndarray = _rectified(b + 0.0 * a, spread)[1][..., 0]
    found: np.ndarray = rate * on + (1.0 - rate) * off
    return found


def _rectified(mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second moment of ReLU(mean + spread · z)."""
    t = mean / spread
    below, density = ndtr(t), np.exp(-(t**2) / 2.0) / np.sqrt(2.0 * np.pi)
    return mean * below + spread * density, (mean**2 + spread**2) * below + mean * spread * density


def lower_hull(
    capacity: Float64[np.ndarray, " point"], r: Float64[np.ndarray, " point"]
) -> Float64[np.ndarray, " capacity"]:
    """The lower convex hull of points in rising order of capacity, from 0 to 1, read off at `CAPACITIES`."""
    hull: list[int] = []
    for i in range(len(r)):
        while len(hull) > 1 and _above(capacity, r, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    read_off: np.ndarray = np.interp(CAPACITIES, capacity[hull], r[hull])
    return read_off


def _above(x: np.ndarray, y: np.ndarray, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or above the line between the outer two."""
    return bool((y[middle] - y[left]) * (x[right] - x[left]) >= (y[right] - y[left]) * (x[middle] - x[left]))


@cache
def _measured() -> tuple[list[float], Float64[np.ndarray, " rate"], Float64[np.ndarray, "width rate capacity"]]:
    """(widths, log rates, r), from the data file, with rates filled in between and r falling as the width grows."""
    found = json.loads((files("tl_distill_floor.assets") / "loss_capacity_curve.json").read_text())
    widths = [float(width) for width in found["widths"]]
    coarse, r = np.log(found["rates"]), np.array(found["r"])
    n_rates = round((coarse[-1] - coarse[0]) / np.log(10) * RATES_PER_DECADE) + 1
    log_rate = np.unique(np.concatenate([coarse, np.linspace(coarse[0], coarse[-1], n_rates)]))
    filled: list[np.ndarray] = []
    for of_width in r:
        curve = _between_rates(coarse, of_width, log_rate)
        # A group in many dimensions can always split into groups in fewer.
        curve = np.minimum(curve, filled[-1]) if filled else curve
        filled.append(np.stack([lower_hull(CAPACITIES, row) for row in curve]))
    return widths, log_rate, np.stack(filled)


def _between_rates(
    coarse: Float64[np.ndarray, " coarse"],
    r: Float64[np.ndarray, "coarse capacity"],
    log_rate: Float64[np.ndarray, " rate"],
) -> Float64[np.ndarray, "rate capacity"]:
    """r relative to r(0) is a power of the rate, nearly: linear in the logarithms."""
    logs = np.log(np.maximum(r / r[:, :1], 1e-12))
    between = np.stack([np.interp(log_rate, coarse, column) for column in logs.T], axis=1)
    filled: np.ndarray = np.exp(between) * nothing_kept(np.exp(log_rate))[:, None]
    filled[:, -1] = 0.0
    return filled
