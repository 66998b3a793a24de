"""Sum one SAE's codes and costs over the tokens of one batch."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from tl_distill_floor.annotations import CostMethod
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.active_codes import EncodedTokens, encode
from tl_distill_floor.measuring.costs import COST_METHODS, sum_by_index
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.measuring.logit_map import OUTPUTS_NOT_FINITE
from tl_distill_floor.measuring.sampling import uniform_hash
from tl_distill_floor.measuring.strongest_contexts import batch_contexts
from tl_distill_floor.measuring.token_stream import digest_sequences
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.feature_sums import FeatureSums
from tl_distill_floor.sources.devices import copy_to_cpu, copy_to_device

SAMPLE_EVERY = 32
"""One token in this many is sampled to measure the SAE's reconstruction error."""


@torch.no_grad()
def batch_sums(
    attached: AttachedSae,
    batch: ActivationBatch,
    cost: CostMethod,
    share_of_codes: float,
    encoded: EncodedTokens | None = None,
) -> FeatureSums:
    """Sum over the tokens of a batch.

    Args:
        attached: the SAE.
        batch: activations of the counted tokens.
        cost: cost method, for which the batch was read.
        share_of_codes: probability with which the codes of a sequence are kept; 0 keeps none.
        encoded: what `encode_batch` returns, if the batch is encoded already.

    Raises:
        InputError: an activation, a code or an output of the teacher is NaN or Inf.
    """
    encoded = encode_batch(attached, batch) if encoded is None else encoded
    entries, n_features = encoded.active(), len(attached.decoder_norm)
    batch.check_finite(attached.hook_name)
    sampled = batch.activation[copy_to_device(encoded.sampled_tokens, entries.value.device)].flatten(1).double()
    error = sampled - attached.sae.decode(encoded.sampled).flatten(1).to(sampled)
    by_feature = [
        sum_by_index(entries.feature, values, n_features)
        for values in (torch.ones_like(entries.value), entries.value, entries.value.square())
    ]
    of_cost, n_cost_tokens = _entries_with_cost(batch, entries)
    by_feature.append(COST_METHODS[cost].sum_cost(batch, of_cost, attached).to(entries.value.device))
    contexts = batch_contexts(batch, entries, n_features)
    is_kept = mask_kept_sequences(batch.sequence.numpy(), share_of_codes)
    sums, sampled_sum, squares, *of_codes = copy_to_cpu(
        [
            torch.stack(by_feature),
            sampled.sum(0),
            torch.stack([sampled.square().sum(), error.square().sum()]),
            *(_select_codes(entries, is_kept) if share_of_codes else ()),
        ]
    )
    firing_count, sum_act, sum_act_sq, sum_cost = sums.numpy()
    if not np.isfinite(sum_act).all():  # a float64 sum of finite fp32 numbers is finite
        raise InputError("the SAE's codes hold NaN or Inf; load the SAE in fp32, or name another with --sae")
    if not np.isfinite(sum_cost).all():
        raise InputError(OUTPUTS_NOT_FINITE)
    return FeatureSums(
        n_tokens=len(batch.activation),
        n_cost_tokens=n_cost_tokens,
        n_masked=batch.n_masked,
        firing_count=firing_count.astype(np.int64),
        sum_act=sum_act,
        sum_act_sq=sum_act_sq,
        sum_cost=sum_cost,
        sampled_tokens=len(sampled),
        sampled_sum=sampled_sum.numpy(),
        sampled_sum_sq=float(squares[0]),
        sampled_error_sq=float(squares[1]),
        ids_digest=0 if batch.ids is None else digest_sequences(batch.ids, batch.first),
        codes=(_kept_codes(of_codes, batch.sequence.numpy(), is_kept, n_features),) if share_of_codes else (),
        contexts=contexts,
    )


def encode_batch(attached: AttachedSae, batch: ActivationBatch) -> EncodedTokens:
    """Encode the tokens of a batch; see `encode`."""
    return encode(attached.sae, batch.activation, _sample_tokens(batch))


def _sample_tokens(batch: ActivationBatch) -> Int64[Tensor, " sampled"]:
    """Sample positions of each sequence, at least one, by the sequence's number alone.

    The positions are random: with a fixed stride they would be the same in every sequence.
    """
    size = (len(batch.activation) + batch.n_masked) // batch.n_sequences
    generators = [torch.Generator().manual_seed(batch.first + row) for row in range(batch.n_sequences)]
    order = torch.stack([torch.randperm(size - 1, generator=generator) for generator in generators])
    is_sampled = torch.zeros(batch.n_sequences, size, dtype=torch.bool)
    is_sampled.scatter_(1, 1 + order[:, : -(-size // SAMPLE_EVERY)], value=True)
    return is_sampled[batch.row, batch.position].nonzero().squeeze(1)


def _entries_with_cost(batch: ActivationBatch, entries: ActiveCodes) -> tuple[ActiveCodes, int]:
    """Return the codes of the tokens on which costs are measured, and the number of these tokens."""
    if batch.has_cost is None:
        return entries, len(batch.activation)
    has_cost = batch.has_cost[batch.row]
    places = copy_to_device(has_cost, entries.token.device)[entries.token].nonzero().squeeze(1)
    return ActiveCodes(*(column[places] for column in entries)), int(has_cost.sum())


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


def _select_codes(
    entries: ActiveCodes, is_kept: Bool[np.ndarray, " token"]
) -> tuple[Int64[Tensor, " tokens"], Int32[Tensor, " kept"], Float32[Tensor, " kept"]]:
    """Return the starts of the entries of all tokens, and the features and values of the tokens that are kept."""
    device, feature, value = entries.value.device, entries.feature, entries.value
    if not is_kept.all():  # selected before the copy from a GPU, which is slow
        places = copy_to_device(torch.from_numpy(is_kept), device)[entries.token].nonzero().squeeze(1)
        feature, value = feature[places], value[places]
    starts = torch.searchsorted(entries.token, torch.arange(len(is_kept) + 1, device=device))
    return starts, feature.int(), value.float()


def _kept_codes(
    selected: list[Tensor], sequence: Int64[np.ndarray, " token"], is_kept: Bool[np.ndarray, " token"], n_features: int
) -> Codes:
    """Return what `_select_codes` selected as `Codes`."""
    starts, feature, value = (tensor.numpy() for tensor in selected)
    row_start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.diff(starts)[is_kept])])
    return Codes(n_features, row_start, feature, value, sequence[is_kept])
