"""Batches of SAE codes as compressed sparse rows, with what the training of bottleneck students needs of them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from tl_distill_floor.results.codes import Codes
from tl_distill_floor.sources.devices import copy_to_device

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


class EntriesByFeature(NamedTuple):
    """The entries of a batch, sorted by feature (compressed sparse columns)."""

    start: Int[Tensor, " columns"]
    """[feature + 1] index of each feature's first entry."""
    token: Int[Tensor, " entry"]
    entry: Int[Tensor, " entry"]
    """Index of the entry in the batch."""
    value: Float[Tensor, " entry"]
    """Value of the entry."""

    @classmethod
    def from_batch(cls, codes: SparseBatch, n_features: int) -> "EntriesByFeature":
        """Sort the entries of a batch."""
        # SciPy's counting sort is eight times as fast as torch's argsort.
        indices = np.arange(len(codes.feature))
        rows = csr_array((indices, codes.feature.numpy(), codes.row_start.numpy()), (codes.n_tokens, n_features))
        columns = rows.tocsc()
        start, token, entry = (torch.from_numpy(a).long() for a in (columns.indptr, columns.indices, columns.data))
        return cls(start, token, entry, codes.value[entry])

    def to(self, device: torch.device) -> "EntriesByFeature":
        """Move the entries to a device."""
        return EntriesByFeature(*(copy_to_device(tensor, device) for tensor in self))

    def weighted_sum(
        self, hidden: Float[Tensor, "token width"], value: Float[Tensor, " entry"] | None = None
    ) -> Float[Tensor, "feature width"]:
        """Compute Σ value · hidden over the entries of each feature.

        Args:
            hidden: a vector for each token.
            value: values of the entries, in the order of the batch; those of the codes if None.
        """
        weights = self.value if value is None else value[self.entry]
        return embedding_bag(self.token, hidden, self.start[:-1], mode="sum", per_sample_weights=weights)


class TrainingBatch(NamedTuple):
    """Codes of some tokens, with what the gradients of all bottleneck students need of them."""

    codes: SparseBatch
    by_feature: EntriesByFeature
    token: Int[Tensor, " entry"]
    """Token of each entry."""
    entry_scale: Float[Tensor, " entry"]
    """2 · weight of the feature · weight of the token: times the error, the derivative of the loss."""
    inactive_scale: Float[Tensor, "decoded feature"]
    """The same for all features of the first tokens, scaled up to all tokens; 0 where a feature is active. Its dtype is
    that of the products with all features."""

    @classmethod
    def prepare(
        cls,
        codes: SparseBatch,
        weight: Float[Tensor, " feature"],
        n_decoded: int,
        dtype: torch.dtype = torch.float32,
    ) -> "TrainingBatch":
        """Prepare a batch on the device of `weight`.

        Args:
            codes: a batch on the CPU.
            weight: [feature] cost of a squared error.
            n_decoded: number of tokens on which inactive features are decoded.
            dtype: dtype of the products with all features.
        """
        device, n_decoded = weight.device, min(n_decoded, codes.n_tokens)
        by_feature = EntriesByFeature.from_batch(codes, len(weight)).to(device)
        codes = codes.to(device)
        token, n_active = codes.token, int(codes.start_on_cpu[n_decoded])
        of_token = codes.token_weight[:n_decoded] * (2.0 * codes.n_tokens / n_decoded)
        scale = torch.outer(of_token.to(dtype), weight.to(dtype))
        scale[token[:n_active], codes.feature[:n_active]] = 0.0
        entry_scale = weight[codes.feature].mul_(2.0 * codes.token_weight[token])
        return cls(codes, by_feature, token, entry_scale, scale)


def training_batches(
    codes: Codes,
    cost: Float64[np.ndarray, " token"],
    weight: Float[Tensor, " feature"],
    size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[TrainingBatch]:
    """Yield batches without end; half of the tokens are sampled uniformly, half in proportion to their cost.

    Weights correct for the sampling. A few tokens of a language model are tens of times as large as the others. With
    uniform sampling they would be rare, and their gradients would be too large for anything else to be learned.

    Args:
        codes: codes to sample from.
        cost: cost of each token.
        weight: see `TrainingBatch.prepare`.
        size: tokens per batch.
        seed: seed of the sampling.
        dtype: see `TrainingBatch.prepare`.
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
            yield TrainingBatch.prepare(batch, weight, n_inactive_tokens(len(weight)), dtype)


def n_inactive_tokens(n_features: int) -> int:
    """Return the number of tokens per batch on which inactive features are decoded."""
    return min(max(INACTIVE_OUTPUTS // n_features, MIN_INACTIVE_TOKENS), MAX_INACTIVE_TOKENS)
