"""`simulated`: the toy model's bottleneck x̂ = ReLU(WᵀWx + b), trained on the codes of a real SAE.

A model of width d with nothing in it but the width: what it loses on held-out codes is what d dimensions can hold of
these features, with the rates, amplitudes and co-activation that they have (Elhage et al. 2022 on synthetic features).
x is the activation times the norm of the feature's decoder row, so that features have one scale whatever the SAE's.

Codes stay sparse from end to end. The encoder touches only the rows of W whose features fired, and so does the decoder
where they fired. Where they did not, the loss is w ReLU(z)², which needs z of every feature: that part is taken on the
first tokens of each batch alone, in a random order, with all features. It is unbiased, and at equal cost far less noisy
than a sample of features on all tokens, with which each row of W would see its interference only now and then. Tokens
are drawn by their importance, that is by what they cost.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from tl_distill_floor.measuring.sparse_rows import quiet_sparse
from tl_distill_floor.predicting.toy import INITIAL_SCALE, StepCounter
from tl_distill_floor.results.codes import Codes

LEARNING_RATE, BIAS_RATE = 0.05, 0.03
"""Of W, times width^-½, and of the biases, in units of a feature's amplitude."""
BETAS, WARM_UP, FLAT = (0.8, 0.95), 0.05, 0.5
LEAST_INACTIVE, MOST_INACTIVE, INACTIVE_NUMBERS = 64, 256, 2**21
"""Tokens of a batch on which the features that did not fire are decoded too, and, between these, tokens × features."""


class Batch(NamedTuple):
    """Codes of some tokens as compressed sparse rows."""

    row_start: Int[Tensor, " rows"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    share: Float[Tensor, " token"]
    """What a token counts for in the mean over tokens."""

    @classmethod
    def of(cls, codes: Codes) -> "Batch":
        """Every token counts alike."""
        return cls.made_of(codes.row_start, codes.feature, codes.value, np.full(codes.n_tokens, 1.0 / codes.n_tokens))

    @classmethod
    def made_of(
        cls,
        row_start: Int64[np.ndarray, " rows"],
        feature: Int32[np.ndarray, " entry"],
        value: Float32[np.ndarray, " entry"],
        share: Float64[np.ndarray, " token"],
    ) -> "Batch":
        arrays = (row_start, feature.astype(np.int64), value, share.astype(np.float32))
        return cls(*(torch.from_numpy(array) for array in arrays))

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))

    def part(self, first: int, last: int) -> "Batch":
        """Tokens `first` to `last`."""
        start, end = int(self.row_start[first]), int(self.row_start[last])
        row_start = self.row_start[first : last + 1] - start
        return Batch(row_start, self.feature[start:end], self.value[start:end], self.share[first:last])

    @property
    def n_tokens(self) -> int:
        return len(self.row_start) - 1

    @property
    def token(self) -> Int[Tensor, " entry"]:
        return torch.arange(self.n_tokens, device=self.feature.device).repeat_interleave(self.row_start.diff())


class Bottleneck(NamedTuple):
    """x̂ = ReLU(WᵀWx + b); also its slopes."""

    W: Float[Tensor, "feature width"]
    b: Float[Tensor, " feature"]

    def hidden(self, codes: Batch, value: Float[Tensor, " entry"] | None = None) -> Float[Tensor, "token width"]:
        """Σ over a token's entries of value · W_i; only rows of W that stand in the codes are read."""
        weights = codes.value if value is None else value
        return embedding_bag(codes.feature, self.W, codes.row_start[:-1], mode="sum", per_sample_weights=weights)

    def output(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token feature"]:
        return (hidden @ self.W.T).add_(self.b).relu_()

    def lost(self, codes: Batch, weight: Float[Tensor, " feature"]) -> Float[Tensor, "token feature"]:
        """w_i (x̂_i − x_i)² of every token and feature, exactly."""
        error = self.output(self.hidden(codes))
        error[codes.token, codes.feature] -= codes.value
        return error.square_().mul_(weight)


class Columns(NamedTuple):
    """The same entries, feature by feature."""

    start: Int[Tensor, " columns"]
    token: Int[Tensor, " entry"]
    entry: Int[Tensor, " entry"]
    """Place among the rows' entries."""

    @classmethod
    def of(cls, codes: Batch, n_features: int) -> "Columns":
        # A counting sort, eight times as fast as torch's argsort.
        places = np.arange(len(codes.feature))
        rows = csr_array((places, codes.feature.numpy(), codes.row_start.numpy()), (codes.n_tokens, n_features))
        columns = rows.tocsc()
        return cls(*(torch.from_numpy(a).long() for a in (columns.indptr, columns.indices, columns.data)))

    def times(
        self, value: Float[Tensor, " entry"], of_token: Float[Tensor, "token width"]
    ) -> Float[Tensor, "feature width"]:
        """Σ over a feature's entries of value · of_token."""
        weights = value[self.entry]
        return embedding_bag(self.token, of_token, self.start[:-1], mode="sum", per_sample_weights=weights)


@torch.no_grad()
def slopes(
    model: Bottleneck, codes: Batch, columns: Columns, weight: Float[Tensor, " feature"], n_decoded: int
) -> Bottleneck:
    """The slope of the mean loss per token, in W and b, tokens counting by their shares.

    Where features fired, of every token; where they did not, of the first `n_decoded` tokens, whose mean stands for
    all. Over the orders of the tokens its mean is the slope of the whole loss.
    """
    n_tokens, n, n_decoded = codes.n_tokens, len(model.b), min(n_decoded, codes.n_tokens)
    hidden, token = model.hidden(codes), codes.token
    pattern = torch.sparse_csr_tensor(codes.row_start, codes.feature, codes.value, (n_tokens, n))
    z = torch.sparse.sampled_addmm(pattern, hidden, model.W.T, beta=0.0).values() + model.b[codes.feature]
    error = (z.relu() - codes.value).mul_(weight[codes.feature]).mul_(2.0 * codes.share[token]).mul_(z > 0)

    n_fired = int(codes.row_start[n_decoded])
    inactive = model.output(hidden[:n_decoded])
    inactive[token[:n_fired], codes.feature[:n_fired]] = 0.0
    inactive.mul_(weight).mul_(codes.share[:n_decoded, None] * (2.0 * n_tokens / n_decoded))

    from_hidden = model.hidden(codes, error)
    from_hidden[:n_decoded] += inactive @ model.W
    # W is in the decoder and in the encoder.
    of_W = columns.times(error, hidden).addmm_(inactive.T, hidden[:n_decoded])
    of_W += columns.times(codes.value, from_hidden)
    return Bottleneck(of_W, inactive.sum(0).index_add_(0, codes.feature, error))


class BottleneckTrainer:
    """A bottleneck in training, by Adam, from small random weights."""

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
        peaks = ((self.W, rate * LEARNING_RATE / math.sqrt(width)), (self.scaled_b, rate * BIAS_RATE))
        groups = [{"params": [parameter], "peak": peak} for parameter, peak in peaks]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-12, fused=True)

    @property
    def model(self) -> Bottleneck:
        return Bottleneck(self.W.detach(), self.scaled_b.detach() * self.amplitude)

    def step(self, batch: Batch, columns: Columns, share_of_rate: float) -> None:
        slope = slopes(self.model, batch, columns, self.weight, n_inactive(len(self.weight)))
        self.W.grad, self.scaled_b.grad = slope.W, slope.b * self.amplitude
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share_of_rate
        self.optimizer.step()

    def copy(self) -> "BottleneckTrainer":
        """Another that goes on from here; what does not change is shared."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (self.weight, self.amplitude)}
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
    """Train a bottleneck of every width, all on the same batches: once for half the steps, once for all.

    The learning rate warms up, stays, and falls to 0 over the last half. What both trainings of a width have in
    common, up to where the shorter one's rate begins to fall, is done once.

    Args:
        codes: to train on; at least one token.
        weight: [feature] cost of a squared error.
        amplitude: [feature] root mean square of a feature's value where it fired: the unit of its bias.
        widths: dimensions.
        steps: of the longer training.
        batch_size: tokens a step, at most as many as there are.
        seed: of the weights and the order of the tokens.
        report: told of every step of every model, see `steps_a_width`.
        rate: multiplies the learning rates.

    Returns:
        For each width, the model after half the steps and the one after all.
    """
    of_entry = codes.value.astype(np.float64) ** 2 * weight.double().cpu().numpy()[codes.feature]
    cost = np.bincount(np.repeat(np.arange(codes.n_tokens), np.diff(codes.row_start)), of_entry, codes.n_tokens)
    longer = [BottleneckTrainer(width, weight, amplitude, seed, rate) for width in widths]
    shorter: list[BottleneckTrainer] = []
    half, warm_up = steps // 2, WARM_UP * (steps // 2)
    batches = _batches(codes, cost, batch_size, seed, weight.device)
    with torch.no_grad(), quiet_sparse():
        for step, (batch, columns) in zip(range(steps), batches, strict=False):
            if step == int(FLAT * half):
                shorter = [student.copy() for student in longer]
            for students, n in ((longer, steps), (shorter, half)):
                for student in students if step < n else ():
                    student.step(batch, columns, _share_of_rate(step, n, warm_up))
                    report.step()
    return [(one.model, other.model) for one, other in zip(shorter, longer, strict=True)]


def steps_a_width(steps: int) -> int:
    """Steps that `train` takes in all for one width."""
    half = steps // 2
    return steps + half - int(FLAT * half)


def n_inactive(n_features: int) -> int:
    """Tokens of a batch on which features that did not fire are decoded too."""
    return min(max(INACTIVE_NUMBERS // n_features, LEAST_INACTIVE), MOST_INACTIVE)


def _batches(
    codes: Codes, cost: Float64[np.ndarray, " token"], size: int, seed: int, device: torch.device
) -> Iterator[tuple[Batch, Columns]]:
    """Tokens without end, half of them drawn evenly and half by their cost, and counting for as much less.

    A few tokens of a language model are tens of times as large as the others. Drawn evenly they would come seldom,
    with slopes beside which nothing else is learned.
    """
    random = np.random.default_rng(seed)
    n_tokens = codes.n_tokens
    probability = (1.0 / n_tokens + cost / cost.sum()) / 2.0 if cost.sum() > 0 else np.full(n_tokens, 1.0 / n_tokens)
    counts_for = 1.0 / (n_tokens * probability * size)
    n_batches = max(1, n_tokens // size)
    while True:
        order = random.permutation(n_tokens)
        ends = np.cumsum(probability[order])
        for offset in random.permutation(n_batches):
            # Evenly spaced draws: a pass over the batches holds of every token what it should, give or take one.
            places = (np.arange(size) + (offset + random.random()) / n_batches) * (ends[-1] / size)
            drawn = random.permutation(order[np.minimum(np.searchsorted(ends, places), n_tokens - 1)])
            row_start, entries = codes.entries_of(drawn)
            batch = Batch.made_of(row_start, codes.feature[entries], codes.value[entries], counts_for[drawn])
            columns = Columns.of(batch, codes.n_features)
            yield batch.to(device), Columns(*(a.to(device) for a in columns))


def _share_of_rate(step: int, steps: int, warm_up: float) -> float:
    """Share of the largest learning rate: a linear warm-up, then flat, then linear to 0."""
    return min(1.0, step / warm_up + 1e-2, (1.0 - step / steps) / (1.0 - FLAT))
