"""What one batch of activations gives of one SAE: sums, the codes that are kept, what each feature fired on."""

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.costs import COST_METHODS, summed
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.measuring.strongest_contexts import batch_contexts
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts
from tl_distill_floor.results.feature_sums import Part

SAMPLE_EVERY = 32
"""One token in so many, drawn at random, is decoded to measure what the SAE leaves unexplained."""
CODES_AT_ONCE, LEAST_AT_ONCE = 2**21, 256
"""Numbers of codes that are held at a time, 8 MiB in fp32; of so many tokens at least, for the product's sake."""


@torch.no_grad()
def batch_sums(attached: AttachedSae, batch: ActivationBatch, cost: str, share_of_codes: float) -> Part:
    """What is summed over the tokens of one batch, under the names of `FeatureStats`; the codes kept; the contexts."""
    sae, acts = attached.sae, batch.activation
    n = len(attached.decoder_norm)
    sample = _sampled_tokens(batch).to(acts.device)
    entries, found, sampled_codes = _encoded(sae, acts, sample, n)
    sum_act = _sum(entries.feature, entries.value, n)
    if not np.isfinite(sum_act).all():  # float64 sums of finite fp32 numbers are
        raise InputError("the SAE's codes hold NaN or Inf; load the SAE in fp32, or name another with --sae")
    seen = acts[sample].flatten(1).double()
    missed = seen - sae.decode(sampled_codes).flatten(1).to(seen)
    sums = {
        "n_tokens": len(acts),
        "n_masked": batch.n_masked,
        "firing_count": torch.bincount(entries.feature, minlength=n).cpu().numpy(),
        "sum_act": sum_act,
        "sum_act_sq": _sum(entries.feature, entries.value.square(), n),
        "sum_cost": COST_METHODS[cost].summed(batch, entries, attached).cpu().numpy(),
        "sampled_tokens": len(seen),
        "sampled_sum": seen.sum(0).cpu().numpy(),
        "sampled_sum_sq": seen.square().sum().item(),
        "sampled_error_sq": missed.square().sum().item(),
    }
    codes = _kept_codes(batch, entries, found, n, share_of_codes)
    return Part(sums, codes, _contexts(batch, entries, found, n))


def _encoded(
    sae: Any, acts: Float[Tensor, "token *d_in"], sample: Bool[Tensor, " token"], n: int
) -> tuple[ActiveCodes, Float[Tensor, " entry"], Float[Tensor, "sampled feature"]]:
    """(the codes that are not 0, their values as the SAE gave them, all codes of the sampled tokens).

    Some tokens at a time, since codes are far larger than activations.
    """
    at_once = CODES_AT_ONCE if acts.device.type == "cpu" else CODES_AT_ONCE * 32  # each waits for a GPU
    size = max(LEAST_AT_ONCE, at_once // n)
    places, values, sampled = [], [], []
    for start in range(0, len(acts) or 1, size):
        codes = sae.encode(acts[start : start + size]).flatten(1)
        place, value = _fired(codes.flatten())
        places.append(place + start * n)
        values.append(value)
        sampled.append(codes[sample[start : start + size]])
    place, value = torch.cat(places), torch.cat(values)
    token = place // n
    return ActiveCodes(token, place - token * n, value.double()), value, torch.cat(sampled)


def _fired(codes: Float[Tensor, " place"]) -> tuple[Int64[Tensor, " fired"], Float[Tensor, " fired"]]:
    """(places, codes) of those that are not 0."""
    if codes.device.type == "cpu" and codes.dtype != torch.bfloat16:  # of which NumPy knows nothing
        array = codes.numpy()
        fired = np.flatnonzero(array != 0)  # four times as fast as torch's nonzero
        return torch.from_numpy(fired), torch.from_numpy(array.take(fired))
    places = codes.nonzero().squeeze(1)
    return places, codes.take(places)


def _kept_codes(batch: ActivationBatch, entries: ActiveCodes, found: Tensor, n: int, share: float) -> Codes | None:
    if not share:
        return None
    starts = torch.searchsorted(entries.token, torch.arange(len(batch.activation) + 1, device=found.device))
    arrays = (starts.cpu(), entries.feature.int().cpu(), found.float().cpu(), batch.sequence)
    return _sampled(Codes(n, *(array.numpy() for array in arrays)), share)


def _contexts(batch: ActivationBatch, entries: ActiveCodes, found: Tensor, n: int) -> FeatureContexts | None:
    if batch.ids is None:
        return None
    places = (batch.sequence, batch.position, batch.ids, batch.first)
    return batch_contexts(entries.token, entries.feature, found, *places, n)


def _sampled(codes: Codes, share: float) -> Codes:
    return codes if share >= 1 else codes.of_tokens(is_kept(codes.sequence, share))


def is_kept(sequence: Int64[np.ndarray, " token"], share: float) -> Bool[np.ndarray, " token"]:
    """Whether a sequence's codes are kept: decided by its number, whatever batch, block or run it comes in."""
    numbers, place = np.unique(sequence, return_inverse=True)
    kept: np.ndarray = np.array([_uniform(int(number)) < share for number in numbers], dtype=bool)[place]
    return kept


def _uniform(number: int) -> float:
    """Between 0 and 1, evenly spread over the numbers."""
    return int.from_bytes(hashlib.sha256(b"sequence %d" % number).digest()[:8]) / 2**64


def _sampled_tokens(batch: ActivationBatch) -> Bool[Tensor, " token"]:
    """Of every sequence one position in so many, at least one, by the sequence's number alone.

    A stride would meet the same positions each time.
    """
    size = (len(batch.activation) + batch.n_masked) // batch.n_sequences
    chosen = torch.zeros(batch.n_sequences, size, dtype=torch.bool)
    for row in range(batch.n_sequences):
        order = torch.randperm(size - 1, generator=torch.Generator().manual_seed(batch.first + row))
        chosen[row, 1 + order[: -(-size // SAMPLE_EVERY)]] = True
    return chosen[batch.row, batch.position]


def _sum(feature: Tensor, values: Float[Tensor, " entry"], n: int) -> Float64[np.ndarray, " feature"]:
    sums: np.ndarray = summed(feature, values, n).cpu().numpy()
    return sums
