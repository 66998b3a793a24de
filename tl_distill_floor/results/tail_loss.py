"""`TailLoss`: the loss of a teacher in nats per token when its least costly features are removed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.record_files import ArrayRecord

TAIL_FILE = "tail.safetensors"
Cost = TypeVar("Cost", float, np.ndarray)
"""A summed cost, or an array of them."""


@dataclass(frozen=True, eq=False, repr=False)
class TailLoss(ArrayRecord):
    """KL(teacher ‖ teacher with only the r most costly features) at several ranks r, interpolated between them.

    The costs of single features do not add up to the loss of removing them together: their sum is too small, the more
    so the more features are removed. The costs give the order of the features, and this record gives the loss. Between
    the measured ranks it is a monotone cubic (PCHIP) of the log loss over the log summed cost. Below the smallest
    measured cost the ratio of loss to cost is constant.
    """

    FILE_NAME: ClassVar[str] = TAIL_FILE
    KIND: ClassVar[str] = "tail-loss"

    ranks: Int64[np.ndarray, " rank"]
    """Number of most costly features that are kept, rising from 0."""
    additive: Float64[np.ndarray, " rank"]
    """Summed cost of the removed features at each rank, nats per token."""
    loss: Float64[np.ndarray, "rank sequence"]
    """KL summed over the tokens of each sequence, nats."""
    n_tokens: Int64[np.ndarray, " sequence"]
    """Number of counted tokens of each sequence."""
    sequences: Int64[np.ndarray, " sequence"]
    """Index of each sequence in the text, from 0."""

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            ValueError: a shape or a value does not fit.
        """
        n, m = len(self.ranks), len(self.n_tokens)
        if self.additive.shape != (n,) or self.loss.shape != (n, m) or self.sequences.shape != (m,) or m < 1 or n < 1:
            raise ValueError("a tail loss needs one cost for each rank, and one loss for each rank and sequence")
        if self.ranks[0] != 0 or (np.diff(self.ranks) <= 0).any() or self.n_tokens.sum() < 1:
            raise ValueError("the ranks of a tail loss must rise from 0, and it needs at least one token")
        if any(not np.isfinite(a).all() or (a < 0).any() for a in (self.additive, self.loss)):
            raise ValueError("tail losses must be finite numbers of at least 0")

    @property
    def mean(self) -> Float64[np.ndarray, " rank"]:
        """Mean loss at each rank in nats per token, made non-increasing over ranks."""
        means: np.ndarray = np.minimum.accumulate(self.loss.sum(1) / self.n_tokens.sum())
        return means

    @property
    def total(self) -> float:
        """Loss in nats per token when all features are removed."""
        return float(self.mean[0])

    def loss_of_cost(self, cost: Cost) -> Cost:
        """Return the loss of removing the least costly features whose costs sum to `cost`.

        Args:
            cost: summed cost in nats per token, a number or an array.

        Returns:
            Loss in nats per token, with the shape of `cost`; at most `total`.

        Example:
            >>> floor.tail.loss_of_cost(0.05)  # doctest: +SKIP
        """
        costs = np.asarray(cost, dtype=np.float64)
        losses = np.zeros_like(costs)
        if self._curve is not None:
            log_cost_range, log_ratio = self._curve
            log_cost = np.clip(np.log(np.maximum(costs, 1e-300)), *log_cost_range)
            losses = np.minimum(costs * np.exp(log_ratio(log_cost)), self.total)
        if isinstance(cost, np.ndarray):
            return losses
        return float(losses)

    def relative_error(self, cost: float) -> float:
        """Return the relative standard error of `loss_of_cost`, taken from the measured rank with the nearest cost.

        Args:
            cost: summed cost in nats per token.

        Returns:
            Standard error over the sequences divided by the loss; 0 if nothing is lost.

        Example:
            >>> floor.tail.relative_error(0.05)  # doctest: +SKIP
        """
        positive = np.flatnonzero(self.mean > 0)
        if cost <= 0 or not len(positive):
            return 0.0
        nearest = positive[np.abs(np.log(np.maximum(self.additive[positive], 1e-300) / cost)).argmin()]
        return float(ratio_standard_error(self.loss, self.n_tokens)[nearest] / self.mean[nearest])

    @cached_property
    def _curve(self) -> tuple[tuple[float, float], Callable[[np.ndarray], np.ndarray]] | None:
        """Range of the measured log costs, and log(loss ÷ cost) as a function of log cost; None if nothing is lost."""
        from scipy.interpolate import PchipInterpolator

        positive = (self.additive > 0) & (self.mean > 0)
        # Duplicates are removed after the logarithm: costs that differ in their last bit can have equal logarithms.
        log_cost, first = np.unique(np.log(self.additive[positive][::-1]), return_index=True)
        if not len(log_cost):
            return None
        log_loss = np.log(self.mean[positive][::-1][first])
        if len(log_cost) == 1:
            return (log_cost[0], log_cost[0]), lambda _: log_loss[0] - log_cost[0]
        interpolated = PchipInterpolator(log_cost, log_loss)
        return (float(log_cost[0]), float(log_cost[-1])), lambda x: interpolated(x) - x

    def __repr__(self) -> str:
        """Return the ranks, sequences and the largest loss in one line."""
        return (
            f"TailLoss({len(self.ranks)} ranks up to {self.ranks[-1]:,}, {len(self.sequences):,} sequences,"
            f" {self.total:.4g} nats without features)"
        )


def ratio_standard_error(
    loss: Float64[np.ndarray, "*case sequence"], n_tokens: Int64[np.ndarray, " sequence"]
) -> Float64[np.ndarray, "*case"]:
    """Compute the standard error of Σ loss / Σ tokens over sequences.

    Tokens of one sequence are not independent, so sequences are the units: this is the ratio estimator of survey
    sampling (Cochran 1977, chapter 6).

    Args:
        loss: summed loss of each sequence, nats.
        n_tokens: number of tokens of each sequence.

    Returns:
        Standard error of each case, nats per token.

    Example:
        >>> ratio_standard_error(np.array([[1.0, 3.0]]), np.array([1, 1]))
        array([1.])
    """
    n = len(n_tokens)
    mean = loss.sum(-1, keepdims=True) / n_tokens.sum()
    residual = loss - mean * n_tokens
    errors: np.ndarray = np.sqrt((residual**2).sum(-1) * n / max(n - 1, 0.1)) / n_tokens.sum()
    return errors


def rank_grid(n_features: int, n_ranks: int = 12) -> Int64[np.ndarray, " rank"]:
    """Return ranks at which to measure a tail loss, denser among the most costly features.

    Args:
        n_features: number of alive features.
        n_ranks: number of ranks, fewer if there are fewer features.

    Returns:
        Ranks from 0 to below `n_features`, in rising order.

    Example:
        >>> rank_grid(100, n_ranks=4)
        array([ 0,  6, 25, 56])
    """
    shares = (np.arange(n_ranks) / n_ranks) ** 2
    ranks: np.ndarray = np.unique(np.floor(shares * n_features).astype(np.int64))
    return ranks
