"""`TailLoss`: the loss of a teacher in nats per token when its least costly features are removed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import norm
from scipy.stats import t as student_t

from tl_distill_floor.results.record_files import ArrayRecord

TAIL_FILE = "tail.safetensors"
Cost = TypeVar("Cost", float, np.ndarray)
"""A summed cost, or an array of them."""
N_GROUPS = 8
"""Groups of successive sequences whose losses count as independent. A text of 100,000 tokens has some 20 documents."""


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

    def loss_at_rank(self, rank: int, cost: float) -> float:
        """Return the loss of removing all features beyond a rank.

        Features that do not fire on the tokens on which costs were measured have the cost 0, but lose something: no
        less than what is lost beyond the next rank that was measured.

        Args:
            rank: number of most costly features that are kept.
            cost: summed cost of the others in nats per token.

        Returns:
            Loss in nats per token; the measured one at a measured rank.

        Example:
            >>> floor.tail.loss_at_rank(1_000, cost=0.05)  # doctest: +SKIP
        """
        position = int(np.searchsorted(self.ranks, rank))
        at_next_rank = float(self.mean[position]) if position < len(self.ranks) else 0.0
        return max(self.loss_of_cost(cost), at_next_rank)

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
    loss: Float64[np.ndarray, "*case sequence"],
    weight: Float64[np.ndarray, " sequence"] | Int64[np.ndarray, " sequence"],
) -> Float64[np.ndarray, "*case"]:
    """Compute the standard error of Σ loss / Σ weight over sequences, for a 95 % interval of 1.96 times it.

    This is the ratio estimator of survey sampling (Cochran 1977, chapter 6). Its units are sequences, since tokens of
    one are not independent. Nor are sequences of one document, so the units are also eight groups of successive
    sequences, and the larger error counts. An error from few units is not well known, so it is enlarged by the ratio
    of Student's t to 1.96.

    Args:
        loss: summed loss of each sequence, in the order of the text.
        weight: what the loss is divided by: number of tokens, or summed cost, of each sequence.

    Returns:
        Standard error of each case; 0 for one sequence, which does not show it.

    Example:
        >>> ratio_standard_error(np.array([[1.0, 3.0]] * 2), np.array([1, 1])).round(2)
        array([6.48, 6.48])
    """
    residual = loss - loss.sum(-1, keepdims=True) / weight.sum() * weight
    starts = np.unique(np.arange(N_GROUPS) * len(weight) // N_GROUPS)
    of_groups, group_weight = np.add.reduceat(residual, starts, axis=-1), np.add.reduceat(weight, starts)
    errors = np.maximum(_error_of_sum(residual, weight), _error_of_sum(of_groups, group_weight))
    return np.asarray(errors * _quantile_ratio(effective_number(group_weight)) / weight.sum())


def effective_number(weight: Float64[np.ndarray, " unit"] | Int64[np.ndarray, " unit"]) -> float:
    """Compute (Σ w)² / Σ w², the number of units of equal weight that would have the same relative variance.

    Source: Kish 1965, "Survey Sampling", section 11.7.

    Args:
        weight: number of tokens, or summed cost, of each unit.

    Example:
        >>> effective_number(np.array([3.0, 3.0, 3.0]))
        3.0
    """
    weights = weight.astype(np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def _error_of_sum(
    residual: Float64[np.ndarray, "*case unit"], weight: Float64[np.ndarray, " unit"] | Int64[np.ndarray, " unit"]
) -> Float64[np.ndarray, "*case"]:
    """Return the standard error of the sum of independent units, whose residuals sum to 0."""
    n = effective_number(weight)
    return np.asarray(np.sqrt((residual**2).sum(-1) * n / max(n - 1.0, 0.1)))


def _quantile_ratio(n_units: float) -> float:
    """Return the 97.5 % quantile of Student's t for a variance from some units, relative to the normal one."""
    return float(student_t.ppf(0.975, max(n_units - 1.0, 1.0)) / norm.ppf(0.975))


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
