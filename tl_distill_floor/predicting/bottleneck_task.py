"""The task of bottleneck students: an SAE's codes to train on, codes to evaluate on, and the cost of errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.removal import RestoreCodes
from tl_distill_floor.measuring.sampling import spread_at_random
from tl_distill_floor.predicting.bottleneck import Bottleneck, train
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.sparse_batches import SparseBatch
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.tail_loss import effective_number, ratio_standard_error

HELDOUT_SHARE, MAX_HELDOUT_TOKENS, MIN_HELDOUT_SEQUENCES = 1 / 6, 16_384, 2
"""Share of the sequences that are held out, their approximate number of tokens at most, and their least number."""
MIN_RANDOM_SEQUENCES = 32
"""Sequences that are chosen at random, if there are so many, where none need be held out from a training."""
MIN_COMPARED_TOKENS = 1024
"""Fewest training tokens, if there are so many, that a student's loss is measured on: a few may have no cost at all."""
RARE_COUNT = 8
"""Features that fire less often than this on held-out codes share one estimate of their lost share."""
OUTPUTS_PER_PART = 2**20
"""Outputs, tokens × features, that are decoded at once: few enough for a processor's cache."""
LEARNING_RATE_FACTORS = (1.0, 0.3, 0.1)
"""Factors of the learning rate that are tried in turn while training diverges."""
EXTRAPOLATION_ERROR = 1 / 3
"""Standard error of an extrapolated loss, relative to what the second half of the training gained."""
MAX_LOST_SHARE = 1.2
"""Training has diverged if a larger share of the cost is lost than this; an output of 0 loses a share of 1."""

HiddenStates = Callable[[Float[Tensor, "token feature"]], Float[Tensor, "token width"]]
"""A function from an SAE's codes to the hidden states of a bottleneck student."""


class CodesLoss(NamedTuple):
    """The loss of a bottleneck student on some codes, and the cost of the codes, in the unit of the costs."""

    of_feature: Float64[np.ndarray, " feature"]
    """Summed over tokens."""
    of_token: Float64[np.ndarray, " token"]
    """Summed over features."""
    cost_of_feature: Float64[np.ndarray, " feature"]
    cost_of_token: Float64[np.ndarray, " token"]

    @property
    def lost_share(self) -> float:
        """Share of the cost that is lost."""
        return float(self.of_token.sum() / self.cost_of_token.sum())

    @property
    def has_converged(self) -> bool:
        """Whether the loss is finite and not larger than that of an output of 0, up to sampling error."""
        return math.isfinite(self.lost_share) and self.lost_share < MAX_LOST_SHARE

    def standard_error(self, sequence: Int64[np.ndarray, " token"]) -> float:
        """Compute the standard error of `lost_share` over sequences, since tokens of one are not independent.

        Args:
            sequence: [token] sequence of each token.
        """
        index = np.unique(sequence, return_inverse=True)[1]
        return float(ratio_standard_error(*(np.bincount(index, a) for a in (self.of_token, self.cost_of_token))))

    def lost_shares(self, count: Int64[np.ndarray, " feature"]) -> Float64[np.ndarray, " feature"]:
        """Compute the share of each feature's cost that is lost; rare features have their common share.

        Args:
            count: [feature] number of tokens on which each feature fires.
        """
        rare = count < RARE_COUNT
        lost, cost = (np.where(rare, a[rare].sum(), a) for a in (self.of_feature, self.cost_of_feature))
        share: np.ndarray = np.divide(lost, cost, out=np.ones_like(lost), where=cost > 0)
        return share


class TrainedBottleneck(NamedTuple):
    """One trained bottleneck student and its losses on held-out codes, in the unit of the costs."""

    floor: float
    """Loss extrapolated to the end of training."""
    reached: float
    """Loss after all steps."""
    standard_error: float
    """Standard error of `floor`."""
    lost_share: Float64[np.ndarray, " alive"]
    """Share of each feature's cost that is lost."""
    on_training_text: float
    """Loss on training codes."""
    models: tuple[Bottleneck, Bottleneck]
    """The student after half of the steps, and after all of them."""


@dataclass(frozen=True, eq=False)
class BottleneckTask:
    """Codes of the alive features to train on and to evaluate on, times the norms of the decoder rows."""

    alive: Int64[np.ndarray, " alive"]
    """Indices of the alive features."""
    total_cost: float
    """Summed cost of the alive features."""
    decoder_norm: Float64[np.ndarray, " alive"]
    training: Codes
    heldout: Codes
    heldout_sequences: float
    """Effective number of held-out sequences, see `effective_number`."""
    weight: Float[Tensor, " alive"]
    """Cost of a squared error."""
    amplitude: Float[Tensor, " alive"]
    """Root mean square of a feature's value where it is active."""

    @classmethod
    def from_stats(
        cls, stats: FeatureStats, is_alive: Bool[np.ndarray, " feature"], seed: int, device: str
    ) -> "BottleneckTask":
        """Split the codes of measured statistics by sequence.

        Raises:
            InputError: there are no codes, some codes are negative, or there are too few sequences to hold some out.
        """
        if stats.codes is None:
            raise InputError("no codes were kept to train on; measure with n_codes above 0")
        if stats.codes.value.min(initial=0) < 0:
            raise InputError("some codes are negative, which a student's ReLU cannot output; set the steps to 0")
        alive = np.flatnonzero(is_alive)
        norm, square = stats.decoder_norm[alive], stats.sum_act_sq[alive]
        codes = _select_features(stats.codes, is_alive, stats.decoder_norm)
        heldout = _heldout_tokens(codes.sequence, seed)
        weight = stats.error_weight[alive]
        amplitude = np.sqrt(square / np.maximum(stats.firing_count[alive], 1)) * norm
        parts = codes.select_tokens(~heldout), codes.select_tokens(heldout)
        entry_costs = [part.value.astype(np.float64) ** 2 * weight[part.feature] for part in parts]
        n_heldout = len(np.unique(parts[1].sequence))
        if n_heldout < MIN_HELDOUT_SEQUENCES or not all(cost.sum() > 0 for cost in entry_costs):
            raise InputError(
                f"codes of {codes.n_tokens} tokens are too few to train on some and hold out others; measure more"
                " tokens, or set the steps to 0"
            )
        index = np.unique(parts[1].sequence, return_inverse=True)[1]
        sequence_cost = np.bincount(np.repeat(index, np.diff(parts[1].row_start)), entry_costs[1])
        tensors = (torch.tensor(values, dtype=torch.float32, device=device) for values in (weight, amplitude))
        total_cost = float(stats.cost[alive].sum())
        return cls(alive, total_cost, norm, *parts, effective_number(sequence_cost), *tensors)

    def train(
        self, widths: list[int], steps: int, batch_size: int, seed: int, counter: StepCounter
    ) -> list[TrainedBottleneck]:
        """Train a bottleneck student of every width, with a smaller learning rate where training diverges.

        Args:
            widths: dimensions.
            steps: steps of the longer training of each width.
            batch_size: tokens per step.
            seed: seed of the weights and of the order of the tokens.
            counter: counts the steps.

        Raises:
            InputError: training diverges with every learning rate.
        """
        trained: dict[int, TrainedBottleneck] = {}
        for rate in LEARNING_RATE_FACTORS:
            remaining = [width for width in widths if width not in trained]
            if not remaining:
                break
            models = train(
                self.training, self.weight, self.amplitude, remaining,
                steps=steps, batch_size=min(batch_size, self.training.n_tokens), seed=seed, counter=counter, rate=rate,
            )  # fmt: skip
            for width, pair in zip(remaining, models, strict=True):
                shorter, longer = (self.loss(model, self.heldout) for model in pair)
                if shorter.has_converged and longer.has_converged:
                    trained[width] = self._extrapolate(pair, shorter, longer)
        diverged = [width for width in widths if width not in trained]
        if diverged:
            raise InputError(f"the simulated student of width {diverged[0]} diverged; set the steps to 0 to skip it")
        return [trained[width] for width in widths]

    def _extrapolate(
        self, models: tuple[Bottleneck, Bottleneck], shorter: CodesLoss, longer: CodesLoss
    ) -> TrainedBottleneck:
        """Extrapolate the held-out loss of a student to the end of training, and measure its loss on training codes."""
        gain = shorter.lost_share - longer.lost_share
        n_compared = max(self.heldout.n_tokens, MIN_COMPARED_TOKENS)
        compared = self.training.select_tokens(spread_at_random(n_compared, self.training.n_tokens).numpy())
        sampling_error = longer.standard_error(self.heldout.sequence)
        return TrainedBottleneck(
            floor=extrapolate_loss(shorter.lost_share, longer.lost_share) * self.total_cost,
            reached=longer.lost_share * self.total_cost,
            standard_error=math.hypot(sampling_error, EXTRAPOLATION_ERROR * gain) * self.total_cost,
            lost_share=longer.lost_shares(np.bincount(self.heldout.feature, minlength=len(self.alive))),
            on_training_text=self.loss(models[1], compared).lost_share * self.total_cost,
            models=models,
        )

    def hidden_states(self, model: Bottleneck) -> HiddenStates:
        """Return the function from an SAE's codes to the student's hidden state Wᵀx, x the codes times the norms."""
        norm = torch.tensor(self.decoder_norm, dtype=torch.float32, device=model.W.device)
        alive = torch.from_numpy(self.alive)
        return lambda codes: (codes[:, alive.to(codes.device)].to(model.W.device) * norm) @ model.W

    def restore_codes(self, model: Bottleneck) -> RestoreCodes:
        """Return the function from an SAE's codes to the codes that the student reconstructs.

        Features that are not alive are 0.
        """
        norm = torch.tensor(self.decoder_norm, dtype=torch.float32, device=model.W.device)
        alive, hidden_states = torch.from_numpy(self.alive), self.hidden_states(model)

        def restore(codes: Float[Tensor, "token feature"]) -> Float[Tensor, "token feature"]:
            restored = torch.where(norm > 0, model.output(hidden_states(codes)) / norm, 0.0)
            return torch.zeros_like(codes).index_copy_(1, alive.to(codes.device), restored.to(codes))

        return restore

    @torch.no_grad()
    def loss(self, model: Bottleneck, codes: Codes) -> CodesLoss:
        """Compute the exact loss of a student, with every feature of every token."""
        batch = SparseBatch.from_codes(codes).to(self.weight.device)
        tokens_per_part = max(1, OUTPUTS_PER_PART // len(self.alive))
        of_feature, of_token = torch.zeros(len(self.alive), dtype=torch.float64, device=self.weight.device), []
        for first in range(0, codes.n_tokens, tokens_per_part):
            part = batch.select_range(first, min(first + tokens_per_part, codes.n_tokens))
            loss = model.loss(part, self.weight)
            of_feature += loss.sum(0)
            of_token.append(loss.sum(1).double())
        cost = batch.value.square().mul_(self.weight[batch.feature]).double().cpu().numpy()
        return CodesLoss(
            of_feature.cpu().numpy(),
            torch.cat(of_token).cpu().numpy(),
            np.bincount(codes.feature, cost, len(self.alive)),
            np.bincount(codes.token, cost, codes.n_tokens),
        )


def extrapolate_loss(shorter: float, longer: float) -> float:
    """Extrapolate a loss to the end of training from a training of n/2 and one of n steps.

    The excess over the floor falls about as 1/n, so L∞ = 2 L(n) − L(n/2), at least L(n)/2. If the longer training has
    the larger loss, L(n/2) is returned.

    Args:
        shorter: L(n/2).
        longer: L(n).

    Example:
        >>> extrapolate_loss(0.5, 0.375)
        0.25
    """
    gain = shorter - longer
    return longer - min(gain, longer / 2.0) if gain > 0 else shorter


def heldout_sequences(stats: FeatureStats, seed: int = 0) -> Int64[np.ndarray, " sequence"]:
    """Return the numbers of the text's sequences that bottleneck students of a seed are not trained on.

    If the statistics have no codes, as many sequences are chosen at random, at least 32 if there are so many.

    Args:
        stats: measured statistics.
        seed: seed of the prediction.

    Returns:
        Sequence numbers, counted from 0, in rising order.
    """
    if stats.codes is not None and len(np.unique(stats.codes.sequence)) > MIN_HELDOUT_SEQUENCES:
        return np.unique(stats.codes.sequence[_heldout_tokens(stats.codes.sequence, seed)])
    size = stats.settings["context_size"]
    n = max(1, (stats.n_tokens + stats.n_masked) // size)
    most = max(MIN_HELDOUT_SEQUENCES, MAX_HELDOUT_TOKENS // size)
    n_chosen = min(most, max(MIN_RANDOM_SEQUENCES, round(n * HELDOUT_SHARE)))
    return np.sort(np.random.default_rng(seed).permutation(n)[:n_chosen]).astype(np.int64)


def _select_features(
    codes: Codes, alive: Bool[np.ndarray, " feature"], decoder_norm: Float64[np.ndarray, " feature"]
) -> Codes:
    """Return the codes of the alive features, renumbered, times the norms of their decoder rows."""
    kept = alive[codes.feature]
    new_index = np.cumsum(alive, dtype=np.int32) - 1
    n_before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    feature = codes.feature[kept]
    value = (codes.value[kept] * decoder_norm[feature]).astype(np.float32)
    return Codes(int(alive.sum()), n_before[codes.row_start], new_index[feature], value, codes.sequence)


def _heldout_tokens(sequence: Int64[np.ndarray, " token"], seed: int) -> Bool[np.ndarray, " token"]:
    """Return which tokens are in the held-out sequences, chosen at random; at least two sequences are held out."""
    numbers = np.random.default_rng(seed).permutation(np.unique(sequence))
    share = min(HELDOUT_SHARE, MAX_HELDOUT_TOKENS / max(len(sequence), 1))
    heldout: np.ndarray = np.isin(sequence, numbers[: max(MIN_HELDOUT_SEQUENCES, round(len(numbers) * share))])
    return heldout
