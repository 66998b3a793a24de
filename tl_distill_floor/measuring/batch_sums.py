"""Sum one SAE's codes and costs over the tokens of one batch."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tl_distill_floor.annotations import CostMethod, SaeModule
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.costs import COST_METHODS, sum_by_index
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.measuring.logit_map import OUTPUTS_NOT_FINITE
from tl_distill_floor.measuring.sampling import uniform_hash
from tl_distill_floor.measuring.strongest_contexts import batch_contexts
from tl_distill_floor.measuring.token_stream import digest_sequences
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_sums import FeatureSums
from tl_distill_floor.sources.devices import copy_to_device

SAMPLE_EVERY = 32
"""One token in this many is sampled to measure the SAE's reconstruction error."""
CODES_AT_ONCE = 2**21
"""Codes held at a time: 8 MiB in fp32."""
CODES_AT_ONCE_GPU = 2**27
"""The same on a GPU, where each chunk costs a synchronization: 512 MiB in fp32."""
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
        InputError: a code or an output of the teacher is NaN or Inf.
    """
    sae, acts = attached.sae, batch.activation
    n_features = len(attached.decoder_norm)
    sampled_tokens = _sample_tokens(batch).nonzero().squeeze(1)
    entries, sampled_codes = encode_active(sae, acts, n_features, sampled_tokens)
    sampled = acts[copy_to_device(sampled_tokens, acts.device)].flatten(1).double()
    error = sampled - sae.decode(sampled_codes).flatten(1).to(sampled)
    by_feature = [
        sum_by_index(entries.feature, values, n_features)
        for values in (torch.ones_like(entries.value), entries.value, entries.value.square())
    ]
    of_cost, n_cost_tokens = _entries_with_cost(batch, entries)
    by_feature.append(COST_METHODS[cost].sum_cost(batch, of_cost, attached).to(acts.device))
    firing_count, sum_act, sum_act_sq, sum_cost = torch.stack(by_feature).cpu().numpy()
    if not np.isfinite(sum_act).all():  # a float64 sum of finite fp32 numbers is finite
        raise InputError("the SAE's codes hold NaN or Inf; load the SAE in fp32, or name another with --sae")
    if not np.isfinite(sum_cost).all():
        raise InputError(OUTPUTS_NOT_FINITE)
    squares = torch.stack([sampled.square().sum(), error.square().sum()])
    of_sample = torch.cat([sampled.sum(0), squares]).cpu().numpy()
    codes = _keep_codes(batch, entries, n_features, share_of_codes)
    return FeatureSums(
        n_tokens=len(acts),
        n_cost_tokens=n_cost_tokens,
        n_masked=batch.n_masked,
        firing_count=firing_count.astype(np.int64),
        sum_act=sum_act,
        sum_act_sq=sum_act_sq,
        sum_cost=sum_cost,
        sampled_tokens=len(sampled),
        sampled_sum=of_sample[:-2],
        sampled_sum_sq=float(of_sample[-2]),
        sampled_error_sq=float(of_sample[-1]),
        ids_digest=0 if batch.ids is None else digest_sequences(batch.ids, batch.first),
        codes=() if codes is None else (codes,),
        contexts=batch_contexts(batch, entries, n_features),
    )


def _entries_with_cost(batch: ActivationBatch, entries: ActiveCodes) -> tuple[ActiveCodes, int]:
    """Return the codes of the tokens on which costs are measured, and the number of these tokens."""
    if batch.has_cost is None:
        return entries, len(batch.activation)
    has_cost = batch.has_cost[batch.row]
    places = copy_to_device(has_cost, entries.token.device)[entries.token].nonzero().squeeze(1)
    return ActiveCodes(*(column[places] for column in entries)), int(has_cost.sum())


def tokens_at_once(n_features: int, device: torch.device) -> int:
    """Return the number of tokens that are encoded at a time.

    Args:
        n_features: number of the SAE's features.
        device: device of the SAE.
    """
    at_once = CODES_AT_ONCE if device.type == "cpu" else CODES_AT_ONCE_GPU
    return max(LEAST_AT_ONCE, at_once // n_features)


def mask_kept_sequences(sequence: Int64[np.ndarray, " token"], share: float) -> Bool[np.ndarray, " token"]:
    """Decide whether the codes of each token's sequence are kept, by the sequence's number alone.

    So the decision does not depend on batches, blocks or interruptions.

    Args:
        sequence: number of each token's sequence in the text.
        share: probability with which a sequence is kept.
    """
    numbers, index = np.unique(sequence, return_inverse=True)
    kept: np.ndarray = np.array([uniform_hash(f"sequence {number}") < share for number in numbers], dtype=bool)[index]
    return kept


def encode_active(
    sae: SaeModule, acts: Float[Tensor, "token *d_in"], n_features: int, sampled_tokens: Int64[Tensor, " sampled"]
) -> tuple[ActiveCodes, Float[Tensor, "sampled feature"]]:
    """Encode some tokens at a time, since codes are much larger than activations.

    Args:
        sae: the SAE.
        acts: activations of the tokens.
        n_features: number of features.
        sampled_tokens: tokens whose zeros are returned too, ascending, on the CPU.

    Returns:
        The nonzero codes, and all codes of the sampled tokens.
    """
    size = tokens_at_once(n_features, acts.device)
    indices, values, sampled = [], [], []
    for start in range(0, len(acts) or 1, size):
        codes = sae.encode(acts[start : start + size]).flatten(1)
        index, value = _nonzero(codes.flatten())
        indices.append(index + start * n_features)
        values.append(value)
        in_chunk = sampled_tokens[(sampled_tokens >= start) & (sampled_tokens < start + size)] - start
        sampled.append(codes[copy_to_device(in_chunk, codes.device)])
    index = torch.cat(indices)
    token = index // n_features
    return ActiveCodes(token, index - token * n_features, torch.cat(values).double()), torch.cat(sampled)


def _nonzero(codes: Float[Tensor, " code"]) -> tuple[Int64[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Return the indices and values of the codes that are not 0."""
    if codes.device.type == "cpu" and codes.dtype != torch.bfloat16:  # NumPy has no bfloat16
        array = codes.numpy()
        indices = np.flatnonzero(array != 0)  # four times as fast as torch's nonzero
        return torch.from_numpy(indices), torch.from_numpy(array.take(indices))
    places = codes.nonzero().squeeze(1)
    return places, codes.take(places)


def _keep_codes(batch: ActivationBatch, entries: ActiveCodes, n_features: int, share: float) -> Codes | None:
    """Return the codes of the sequences that are kept; None if none are to be kept."""
    if not share:
        return None
    device, sequence = entries.value.device, batch.sequence.numpy()
    is_kept = mask_kept_sequences(sequence, share)
    feature, value = entries.feature, entries.value
    if not is_kept.all():  # selected before the copy from a GPU, which is slow
        places = copy_to_device(torch.from_numpy(is_kept), device)[entries.token].nonzero().squeeze(1)
        feature, value = feature[places], value[places]
    starts = torch.searchsorted(entries.token, torch.arange(len(is_kept) + 1, device=device)).cpu().numpy()
    return Codes(
        n_features,
        np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.diff(starts)[is_kept])]),
        feature.int().cpu().numpy(),
        value.float().cpu().numpy(),
        sequence[is_kept],
    )


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
