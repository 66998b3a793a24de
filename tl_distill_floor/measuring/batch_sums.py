"""Sum one SAE's codes and costs over the tokens of one batch."""

import hashlib

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.annotations import CostMethod, SaeModule
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.costs import COST_METHODS, sum_by_index
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.measuring.strongest_contexts import batch_contexts
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts
from tl_distill_floor.results.feature_sums import FeatureSums

SAMPLE_EVERY = 32
"""One token in this many is sampled to measure the SAE's reconstruction error."""
CODES_AT_ONCE = 2**21
"""Codes held at a time: 8 MiB in fp32."""
LEAST_AT_ONCE = 256
"""Fewest tokens encoded at a time: a matrix product of fewer rows is slow."""


@torch.no_grad()
def batch_sums(attached: AttachedSae, batch: ActivationBatch, cost: CostMethod, share_of_codes: float) -> FeatureSums:
    """Encode a batch and sum over its tokens.

    Args:
        attached: the SAE.
        batch: activations of the counted tokens.
        cost: cost method, for which the batch was read.
        share_of_codes: probability with which the codes of a sequence are kept; 0 keeps none.

    Raises:
        InputError: a code is NaN or Inf.
    """
    sae, acts = attached.sae, batch.activation
    n_features = len(attached.decoder_norm)
    is_sampled = _sample_tokens(batch).to(acts.device)
    entries, raw_values, sampled_codes = _encode(sae, acts, is_sampled, n_features)
    sum_act = _sum_by_feature(entries.feature, entries.value, n_features)
    if not np.isfinite(sum_act).all():  # a float64 sum of finite fp32 numbers is finite
        raise InputError("the SAE's codes hold NaN or Inf; load the SAE in fp32, or name another with --sae")
    sampled = acts[is_sampled].flatten(1).double()
    error = sampled - sae.decode(sampled_codes).flatten(1).to(sampled)
    codes = _keep_codes(batch, entries, raw_values, n_features, share_of_codes)
    return FeatureSums(
        n_tokens=len(acts),
        n_masked=batch.n_masked,
        firing_count=torch.bincount(entries.feature, minlength=n_features).cpu().numpy(),
        sum_act=sum_act,
        sum_act_sq=_sum_by_feature(entries.feature, entries.value.square(), n_features),
        sum_cost=COST_METHODS[cost].sum_cost(batch, entries, attached).cpu().numpy(),
        sampled_tokens=len(sampled),
        sampled_sum=sampled.sum(0).cpu().numpy(),
        sampled_sum_sq=sampled.square().sum().item(),
        sampled_error_sq=error.square().sum().item(),
        codes=() if codes is None else (codes,),
        contexts=_contexts(batch, entries, raw_values, n_features),
    )


def mask_kept_sequences(sequence: Int64[np.ndarray, " token"], share: float) -> Bool[np.ndarray, " token"]:
    """Decide whether the codes of each token's sequence are kept, by the sequence's number alone.

    So the decision does not depend on batches, blocks or interruptions.

    Args:
        sequence: number of each token's sequence in the text.
        share: probability with which a sequence is kept.
    """
    numbers, index = np.unique(sequence, return_inverse=True)
    kept: np.ndarray = np.array([_uniform_hash(int(number)) < share for number in numbers], dtype=bool)[index]
    return kept


def _encode(
    sae: SaeModule, acts: Float[Tensor, "token *d_in"], is_sampled: Bool[Tensor, " token"], n_features: int
) -> tuple[ActiveCodes, Float[Tensor, " entry"], Float[Tensor, "sampled feature"]]:
    """Encode some tokens at a time, since codes are much larger than activations.

    Returns:
        The nonzero codes, their values in the SAE's dtype, and all codes of the sampled tokens.
    """
    # On a GPU each chunk costs a synchronization, so the chunks are larger.
    at_once = CODES_AT_ONCE if acts.device.type == "cpu" else CODES_AT_ONCE * 32
    size = max(LEAST_AT_ONCE, at_once // n_features)
    indices, values, sampled = [], [], []
    for start in range(0, len(acts) or 1, size):
        codes = sae.encode(acts[start : start + size]).flatten(1)
        index, value = _nonzero(codes.flatten())
        indices.append(index + start * n_features)
        values.append(value)
        sampled.append(codes[is_sampled[start : start + size]])
    index, value = torch.cat(indices), torch.cat(values)
    token = index // n_features
    return ActiveCodes(token, index - token * n_features, value.double()), value, torch.cat(sampled)


def _nonzero(codes: Float[Tensor, " code"]) -> tuple[Int64[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Return the indices and values of the codes that are not 0."""
    if codes.device.type == "cpu" and codes.dtype != torch.bfloat16:  # NumPy has no bfloat16
        array = codes.numpy()
        indices = np.flatnonzero(array != 0)  # four times as fast as torch's nonzero
        return torch.from_numpy(indices), torch.from_numpy(array.take(indices))
    places = codes.nonzero().squeeze(1)
    return places, codes.take(places)


def _keep_codes(
    batch: ActivationBatch, entries: ActiveCodes, raw_values: Float[Tensor, " entry"], n_features: int, share: float
) -> Codes | None:
    """Return the codes of the sequences that are kept; None if none are to be kept."""
    if not share:
        return None
    starts = torch.searchsorted(entries.token, torch.arange(len(batch.activation) + 1, device=raw_values.device))
    arrays = (starts.cpu(), entries.feature.int().cpu(), raw_values.float().cpu(), batch.sequence)
    codes = Codes(n_features, *(array.numpy() for array in arrays))
    return codes if share >= 1 else codes.select_tokens(mask_kept_sequences(codes.sequence, share))


def _contexts(
    batch: ActivationBatch, entries: ActiveCodes, raw_values: Float[Tensor, " entry"], n_features: int
) -> FeatureContexts | None:
    """Return the strongest contexts of a batch; None if its token ids are not known."""
    if batch.ids is None:
        return None
    return batch_contexts(
        entries.token, entries.feature, raw_values, batch.sequence, batch.position, batch.ids, batch.first, n_features
    )


def _uniform_hash(number: int) -> float:
    """Return a number from [0, 1), distributed uniformly over the numbers of sequences."""
    return int.from_bytes(hashlib.sha256(b"sequence %d" % number).digest()[:8]) / 2**64


def _sample_tokens(batch: ActivationBatch) -> Bool[Tensor, " token"]:
    """Sample positions of each sequence, at least one, by the sequence's number alone.

    The positions are random: with a fixed stride they would be the same in every sequence.
    """
    size = (len(batch.activation) + batch.n_masked) // batch.n_sequences
    sampled = torch.zeros(batch.n_sequences, size, dtype=torch.bool)
    for row in range(batch.n_sequences):
        order = torch.randperm(size - 1, generator=torch.Generator().manual_seed(batch.first + row))
        sampled[row, 1 + order[: -(-size // SAMPLE_EVERY)]] = True
    return sampled[batch.row, batch.position]


def _sum_by_feature(
    feature: Int64[Tensor, " entry"], values: Float64[Tensor, " entry"], n_features: int
) -> Float64[np.ndarray, " feature"]:
    """Sum the values of each feature."""
    sums: np.ndarray = sum_by_index(feature, values, n_features).cpu().numpy()
    return sums
