"""The tail loss: what a teacher loses, in nats per token, when the features beyond a rank are removed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.versioned import load_arrays, resolve_file, save_arrays

TAIL_FILE = "tail.safetensors"
ARRAYS = ("ranks", "additive", "loss", "n_tokens", "sequences")


def ratio_standard_error(loss: Float64[np.ndarray, "*case sequence"], n_tokens: Int64[np.ndarray, " sequence"]) -> Any:
    """Of Σ loss / Σ tokens, a ratio of sums over sequences: tokens of one sequence are not independent."""
    n = len(n_tokens)
    mean = loss.sum(-1, keepdims=True) / n_tokens.sum()
    residual = loss - mean * n_tokens
    return np.sqrt((residual**2).sum(-1) * n / max(n - 1, 0.1)) / n_tokens.sum()


@dataclass(frozen=True, eq=False)
class TailLoss:
    """KL(teacher ‖ teacher without the features beyond a rank), exactly, at some ranks, and monotone between them.

    Costs give the order of the features and their shares; their sum falls short of the loss, the more so the more is
    removed. So the size is measured. Between the ranks it is a monotone cubic of the logarithms, in the summed cost of
    what is removed; below the smallest, the ratio of loss to cost stays.
    """

    ranks: Int64[np.ndarray, " rank"]
    """How many of the most costly features are kept, rising from 0."""
    additive: Float64[np.ndarray, " rank"]
    """Summed cost of the features beyond each rank, nats per token."""
    loss: Float64[np.ndarray, "rank sequence"]
    """KL summed over the positions of each sequence, nats."""
    n_tokens: Int64[np.ndarray, " sequence"]
    """Tokens of each sequence that count."""
    sequences: Int64[np.ndarray, " sequence"]
    """Their numbers in the text."""

    def __post_init__(self) -> None:
        n, m = len(self.ranks), len(self.n_tokens)
        if self.additive.shape != (n,) or self.loss.shape != (n, m) or self.sequences.shape != (m,) or m < 1 or n < 1:
            raise ValueError("a tail loss needs a cost for every rank, and a loss for every rank and sequence")
        if self.ranks[0] != 0 or (np.diff(self.ranks) <= 0).any() or self.n_tokens.sum() < 1:
            raise ValueError("the ranks of a tail loss must rise from 0, over at least one token")
        if any(not np.isfinite(a).all() or (a < 0).any() for a in (self.additive, self.loss)):
            raise ValueError("tail losses must be finite numbers of at least 0")

    @property
    def mean(self) -> Float64[np.ndarray, " rank"]:
        """Nats per token; more features kept lose no more."""
        found: np.ndarray = np.minimum.accumulate(self.loss.sum(1) / self.n_tokens.sum())
        return found

    @property
    def total(self) -> float:
        """The loss of removing every feature."""
        return float(self.mean[0])

    def of_additive(self, cost: Any) -> Any:
        """The loss (nats per token) of removing features of this summed cost, the least costly first.

        Args:
            cost: nats per token, one number or an array.
        """
        costs = np.asarray(cost, dtype=np.float64)
        if self._curve is None:
            return np.zeros_like(costs) if costs.ndim else 0.0
        log_cost, log_ratio = self._curve
        inside = np.clip(np.log(np.maximum(costs, 1e-300)), *log_cost)
        found = np.minimum(costs * np.exp(log_ratio(inside)), self.total)
        return found if found.ndim else float(found)

    def relative_error(self, cost: float) -> float:
        """Relative standard error of `of_additive` from the sequences, at the nearest rank that was measured."""
        there = np.flatnonzero(self.mean > 0)
        if cost <= 0 or not len(there):
            return 0.0
        nearest = there[np.abs(np.log(np.maximum(self.additive[there], 1e-300) / cost)).argmin()]
        return float(ratio_standard_error(self.loss, self.n_tokens)[nearest] / self.mean[nearest])

    @cached_property
    def _curve(self) -> tuple[tuple[float, float], Any] | None:
        """(least and largest log cost, log of loss ÷ cost over log cost); None where nothing costs anything."""
        from scipy.interpolate import PchipInterpolator

        there = (self.additive > 0) & (self.mean > 0)
        # Of the logarithms, which two costs may share that differ in their last bit.
        x, first = np.unique(np.log(self.additive[there][::-1]), return_index=True)
        if not len(x):
            return None
        y = np.log(self.mean[there][::-1][first])
        if len(x) == 1:
            return (x[0], x[0]), lambda _: y[0] - x[0]
        of_log = PchipInterpolator(x, y)
        return (float(x[0]), float(x[-1])), lambda at: of_log(at) - at

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; a directory gets `tail.safetensors`."""
        return save_arrays(
            resolve_file(path, TAIL_FILE), "tail-loss", {name: getattr(self, name) for name in ARRAYS}, {}
        )

    @classmethod
    def load(cls, path: str | Path) -> "TailLoss":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, truncated, foreign, or of a newer version.
        """
        file = resolve_file(path, TAIL_FILE)
        arrays, _ = load_arrays(file, "tail-loss")
        try:
            return cls(**arrays)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{file} does not hold a complete tail loss ({error}); measure again") from error


def rank_grid(n_features: int, n_ranks: int = 12) -> Int64[np.ndarray, " rank"]:
    """Ranks from 0 to below the number of features, closer to each other where features are most costly."""
    shares = (np.arange(n_ranks) / n_ranks) ** 2
    ranks: np.ndarray = np.unique(np.floor(shares * n_features).astype(np.int64))
    return ranks
