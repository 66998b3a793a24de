"""Train bottleneck students x̂ = ReLU(WᵀWx + b) on the codes of an SAE.

A bottleneck student of width d is the toy model of superposition (Elhage et al. 2022) on real features. Its loss on
held-out codes is what d dimensions can hold of these features, with their firing rates, amplitudes and co-activation.
x is the activation times the norm of the feature's decoder row, so that the scale of the features does not depend on
the SAE.

Codes stay sparse. The encoder reads only the rows of W whose features are active, and so does the decoder for active
features. For inactive features the loss is w · ReLU(z)², which needs z of every feature. This part is computed with all
features, on the first tokens of each batch, whose order is random. It is unbiased, and at equal cost less noisy than a
sample of features on all tokens, with which each row of W would see its interference only now and then. Tokens are
sampled by importance, in proportion to their cost.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from tl_distill_floor.measuring.sparse_rows import quiet_sparse
from tl_distill_floor.measuring.token_stream import copy_to_device
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.toy import INITIAL_SCALE
from tl_distill_floor.results.codes import Codes

W_LEARNING_RATE, BIAS_LEARNING_RATE = 0.05, 0.03
"""Learning rate of W, times width^-½, and of the biases, in units of a feature's amplitude."""
BETAS = (0.8, 0.95)
WARM_UP_SHARE, CONSTANT_SHARE = 0.05, 0.5
"""Share of the shorter training in which the learning rate rises, and share of each training before it falls."""
MIN_INACTIVE_TOKENS, MAX_INACTIVE_TOKENS = 64, 256
"""Bounds of the number of tokens per batch on which inactive features are decoded."""
INACTIVE_OUTPUTS = 2**21
"""Number of outputs, tokens × features, that are decoded for inactive features, within these bounds."""


class SparseBatch(NamedTuple):
    """Codes of some tokens as compressed sparse rows."""

    row_start: Int[Tensor, " rows"]
    """[token + 1] index of each token's first entry."""
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    token_weight: Float[Tensor, " token"]
    """Weight of each token when tokens are averaged."""
    start_on_cpu: Int64[np.ndarray, " rows"]
    """`row_start`, which can be read without waiting for a GPU."""

    @classmethod
    def from_codes(cls, codes: Codes) -> "SparseBatch":
        """Return all tokens of some codes, with equal weights."""
        equal = np.full(codes.n_tokens, 1.0 / codes.n_tokens)
        return cls.from_arrays(codes.row_start, codes.feature, codes.value, equal)

    @classmethod
    def from_arrays(
        cls,
        row_start: Int64[np.ndarray, " rows"],
        feature: Int32[np.ndarray, " entry"],
        value: Float32[np.ndarray, " entry"],
        token_weight: Float64[np.ndarray, " token"],
    ) -> "SparseBatch":
        """Convert arrays to tensors."""
        return cls(
            torch.from_numpy(row_start),
            torch.from_numpy(feature.astype(np.int64)),
            torch.from_numpy(value),
            torch.from_numpy(token_weight.astype(np.float32)),
            row_start,
        )

    def to(self, device: torch.device) -> "SparseBatch":
        """Move the batch to a device."""
        return SparseBatch(
            copy_to_device(self.row_start, device),
            copy_to_device(self.feature, device),
            copy_to_device(self.value, device),
            copy_to_device(self.token_weight, device),
            self.start_on_cpu,
        )

    def select_range(self, first: int, last: int) -> "SparseBatch":
        """Return the tokens from `first` up to, but without, `last`."""
        start, end, tokens = int(self.start_on_cpu[first]), int(self.start_on_cpu[last]), slice(first, last + 1)
        return SparseBatch(
            self.row_start[tokens] - start,
            self.feature[start:end],
            self.value[start:end],
            self.token_weight[first:last],
            self.start_on_cpu[tokens] - start,
        )

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.row_start) - 1

    @property
    def token(self) -> Int[Tensor, " entry"]:
        """Token of each entry."""
        tokens = torch.arange(self.n_tokens, device=self.feature.device)
        # With the size, a GPU need not be asked for it.
        return tokens.repeat_interleave(self.row_start.diff(), output_size=len(self.feature))


class Bottleneck(NamedTuple):
    """The parameters of x̂ = ReLU(WᵀWx + b), or a gradient with respect to them."""

    W: Float[Tensor, "feature width"]
    b: Float[Tensor, " feature"]

    def hidden(self, codes: SparseBatch, value: Float[Tensor, " entry"] | None = None) -> Float[Tensor, "token width"]:
        """Compute Σ value · W_i over the entries of each token. Only the rows of W in the codes are read.

        Args:
            codes: the codes.
            value: values of the entries; those of the codes if None.
        """
        weights = codes.value if value is None else value
        return embedding_bag(codes.feature, self.W, codes.row_start[:-1], mode="sum", per_sample_weights=weights)

    def output(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token feature"]:
        """Compute the output of every feature from the hidden state."""
        return (hidden @ self.W.T).add_(self.b).relu_()

    def loss(self, codes: SparseBatch, weight: Float[Tensor, " feature"]) -> Float[Tensor, "token feature"]:
        """Compute w_i (x̂_i − x_i)² of every token and feature."""
        error = self.output(self.hidden(codes))
        error[codes.token, codes.feature] -= codes.value
        return error.square_().mul_(weight)


class EntriesByFeature(NamedTuple):
    """The entries of a batch, sorted by feature (compressed sparse columns)."""

    start: Int[Tensor, " columns"]
    """[feature + 1] index of each feature's first entry."""
    token: Int[Tensor, " entry"]
    entry: Int[Tensor, " entry"]
    """Index of the entry in the batch."""

    @classmethod
    def from_batch(cls, codes: SparseBatch, n_features: int) -> "EntriesByFeature":
        """Sort the entries of a batch."""
        # SciPy's counting sort is eight times as fast as torch's argsort.
        indices = np.arange(len(codes.feature))
        rows = csr_array((indices, codes.feature.numpy(), codes.row_start.numpy()), (codes.n_tokens, n_features))
        columns = rows.tocsc()
        return cls(*(torch.from_numpy(a).long() for a in (columns.indptr, columns.indices, columns.data)))

    def to(self, device: torch.device) -> "EntriesByFeature":
        """Move the entries to a device."""
        return EntriesByFeature(*(copy_to_device(tensor, device) for tensor in self))

    def weighted_sum(
        self, value: Float[Tensor, " entry"], hidden: Float[Tensor, "token width"]
    ) -> Float[Tensor, "feature width"]:
        """Compute Σ value · hidden over the entries of each feature."""
        weights = value[self.entry]
        return embedding_bag(self.token, hidden, self.start[:-1], mode="sum", per_sample_weights=weights)


@torch.no_grad()
def loss_gradient(
    model: Bottleneck,
    codes: SparseBatch,
    by_feature: EntriesByFeature,
    weight: Float[Tensor, " feature"],
    n_decoded: int,
) -> Bottleneck:
    """Estimate the gradient of the weighted mean loss per token with respect to W and b.

    Active features count on every token. Inactive features count on the first `n_decoded` tokens, scaled up to all
    tokens. The mean over all orders of the tokens is the exact gradient.

    Args:
        model: the bottleneck student.
        codes: the batch.
        by_feature: its entries, sorted by feature.
        weight: [feature] cost of a squared error.
        n_decoded: number of tokens on which inactive features are decoded.
    """
    n_tokens, n, n_decoded = codes.n_tokens, len(model.b), min(n_decoded, codes.n_tokens)
    hidden, token = model.hidden(codes), codes.token
    pattern = torch.sparse_csr_tensor(codes.row_start, codes.feature, codes.value, (n_tokens, n))
    z = torch.sparse.sampled_addmm(pattern, hidden, model.W.T, beta=0.0).values() + model.b[codes.feature]
    error = (z.relu() - codes.value).mul_(weight[codes.feature]).mul_(2.0 * codes.token_weight[token]).mul_(z > 0)

    n_active = int(codes.start_on_cpu[n_decoded])
    inactive = model.output(hidden[:n_decoded])
    inactive[token[:n_active], codes.feature[:n_active]] = 0.0
    inactive.mul_(weight).mul_(codes.token_weight[:n_decoded, None] * (2.0 * n_tokens / n_decoded))

    hidden_gradient = model.hidden(codes, error)
    hidden_gradient[:n_decoded] += inactive @ model.W
    # W is in the decoder and in the encoder.
    W_gradient = by_feature.weighted_sum(error, hidden).addmm_(inactive.T, hidden[:n_decoded])
    W_gradient += by_feature.weighted_sum(codes.value, hidden_gradient)
    return Bottleneck(W_gradient, inactive.sum(0).index_add_(0, codes.feature, error))


class BottleneckTrainer:
    """A bottleneck student in training with Adam, from small random weights."""

    def __init__(
        self,
        width: int,
        weight: Float[Tensor, " feature"],
        amplitude: Float[Tensor, " feature"],
        seed: int,
        rate: float,
    ) -> None:
        noise = torch.randn(len(weight), width, generator=torch.Generator().manual_seed(seed))
        self.W = (noise * (INITIAL_SCALE / math.sqrt(width))).to(weight.device).requires_grad_()
        self.scaled_b = torch.zeros_like(amplitude).requires_grad_()
        self.weight, self.amplitude = weight, amplitude
        peaks = ((self.W, rate * W_LEARNING_RATE / math.sqrt(width)), (self.scaled_b, rate * BIAS_LEARNING_RATE))
        groups = [{"params": [parameter], "peak": peak} for parameter, peak in peaks]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-12, fused=True)

    @property
    def model(self) -> Bottleneck:
        """The student with its current parameters."""
        return Bottleneck(self.W.detach(), self.scaled_b.detach() * self.amplitude)

    def step(self, batch: SparseBatch, by_feature: EntriesByFeature, rate_share: float) -> None:
        """Train on one batch with a share of the highest learning rate."""
        gradient = loss_gradient(self.model, batch, by_feature, self.weight, n_inactive_tokens(len(self.weight)))
        self.W.grad, self.scaled_b.grad = gradient.W, gradient.b * self.amplitude
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_share
        self.optimizer.step()

    def copy(self) -> "BottleneckTrainer":
        """Return a trainer that continues from here; constant tensors are shared."""
        shared: dict[int, object] = {id(tensor): tensor for tensor in (self.weight, self.amplitude)}
        return copy.deepcopy(self, shared)


def train(
    codes: Codes,
    weight: Float[Tensor, " feature"],
    amplitude: Float[Tensor, " feature"],
    widths: Sequence[int],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    report: StepCounter,
    rate: float = 1.0,
) -> list[tuple[Bottleneck, Bottleneck]]:
    """Train bottleneck students of all widths on the same batches, once for half of the steps and once for all.

    The learning rate warms up, stays constant, and falls to 0 in the last half. The two trainings of a width are equal
    up to where the rate of the shorter one begins to fall; these steps are done once.

    Source: Elhage et al. 2022, "Toy Models of Superposition", for the model.

    Args:
        codes: codes to train on, of at least one token.
        weight: [feature] cost of a squared error.
        amplitude: [feature] root mean square of each feature's value where it is active; the unit of its bias.
        widths: [width] dimensions.
        steps: steps of the longer training.
        batch_size: tokens per step, at most the number of tokens.
        seed: seed of the weights and of the order of the tokens.
        report: counts every step of every model, see `n_steps_per_width`.
        rate: factor of the learning rates.

    Returns:
        For each width, the student after half of the steps and the student after all of them.

    Example:
        >>> codes = Codes.from_dense(np.eye(4))
        >>> counter = StepCounter(None, n_steps_per_width(4))
        >>> students = train(codes, torch.ones(4), torch.ones(4), [2], steps=4, batch_size=4, seed=0, report=counter)
        >>> students[0][1].W.shape
        torch.Size([4, 2])
    """
    entry_cost = codes.value.astype(np.float64) ** 2 * weight.double().cpu().numpy()[codes.feature]
    token = np.repeat(np.arange(codes.n_tokens), np.diff(codes.row_start))
    token_cost = np.bincount(token, entry_cost, codes.n_tokens)
    longer = [BottleneckTrainer(width, weight, amplitude, seed, rate) for width in widths]
    shorter: list[BottleneckTrainer] = []
    half, warm_up = steps // 2, WARM_UP_SHARE * (steps // 2)
    batches = _batches(codes, token_cost, batch_size, seed, weight.device)
    with torch.no_grad(), quiet_sparse():
        for step, (batch, by_feature) in zip(range(steps), batches, strict=False):
            if step == int(CONSTANT_SHARE * half):
                shorter = [trainer.copy() for trainer in longer]
            for trainers, n in ((longer, steps), (shorter, half)):
                for trainer in trainers if step < n else ():
                    trainer.step(batch, by_feature, _rate_share(step, n, warm_up))
                    report.step()
    return [(one.model, other.model) for one, other in zip(shorter, longer, strict=True)]


def n_steps_per_width(steps: int) -> int:
    """Return the number of steps that `train` does for one width.

    Example:
        >>> n_steps_per_width(100)
        125
    """
    half = steps // 2
    return steps + half - int(CONSTANT_SHARE * half)


def n_inactive_tokens(n_features: int) -> int:
    """Return the number of tokens per batch on which inactive features are decoded."""
    return min(max(INACTIVE_OUTPUTS // n_features, MIN_INACTIVE_TOKENS), MAX_INACTIVE_TOKENS)


def _batches(
    codes: Codes, cost: Float64[np.ndarray, " token"], size: int, seed: int, device: torch.device
) -> Iterator[tuple[SparseBatch, EntriesByFeature]]:
    """Yield batches without end; half of the tokens are sampled uniformly, half in proportion to their cost.

    Weights correct for the sampling. A few tokens of a language model are tens of times as large as the others. With
    uniform sampling they would be rare, and their gradients would be too large for anything else to be learned.
    """
    random = np.random.default_rng(seed)
    n_tokens = codes.n_tokens
    probability = (1.0 / n_tokens + cost / cost.sum()) / 2.0 if cost.sum() > 0 else np.full(n_tokens, 1.0 / n_tokens)
    token_weight = 1.0 / (n_tokens * probability * size)
    n_batches = max(1, n_tokens // size)
    while True:
        order = random.permutation(n_tokens)
        cumulative = np.cumsum(probability[order])
        for offset in random.permutation(n_batches):
            # Systematic sampling: over one pass, each token is sampled as often as expected, up to one.
            quantiles = (np.arange(size) + (offset + random.random()) / n_batches) * (cumulative[-1] / size)
            sampled = random.permutation(order[np.minimum(np.searchsorted(cumulative, quantiles), n_tokens - 1)])
            row_start, entries = codes.select_entries(sampled)
            batch = SparseBatch.from_arrays(
                row_start, codes.feature[entries], codes.value[entries], token_weight[sampled]
            )
            by_feature = EntriesByFeature.from_batch(batch, codes.n_features)
            yield batch.to(device), by_feature.to(device)


def _rate_share(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the highest learning rate: a linear warm-up, then constant, then linear to 0."""
    return min(1.0, step / warm_up + 1e-2, (1.0 - step / steps) / (1.0 - CONSTANT_SHARE))
