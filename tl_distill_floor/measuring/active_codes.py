"""Encode activations with an SAE, and find the codes that are not 0."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tl_distill_floor.annotations import SaeModule
from tl_distill_floor.measuring.activation_batch import ActiveCodes
from tl_distill_floor.sources.devices import copy_to_device

CODES_AT_ONCE = 2**21
"""Codes held at a time: 8 MiB in fp32."""
CODES_AT_ONCE_GPU = 2**27
"""The same on a GPU, where each chunk costs a synchronization: 512 MiB in fp32."""
LEAST_AT_ONCE = 256
"""Fewest tokens encoded at a time: a matrix product of fewer rows is slow."""

IndicesAndValues = tuple[Int64[Tensor, " entry"], Float[Tensor, " entry"]]
"""Nonzero codes; an index is token · n_features + feature."""


class EncodedTokens(NamedTuple):
    """The codes of some tokens, the last of which a GPU may still compute."""

    earlier: list[IndicesAndValues]
    """Nonzero codes of all tokens but the last ones."""
    first_of_last: int
    """Index of the first of the last tokens."""
    last: Float[Tensor, "some_token feature"]
    """All codes of the last tokens."""
    sampled_tokens: Int64[Tensor, " sampled"]
    """Tokens whose zeros are kept too, ascending, on the CPU."""
    sampled: Float[Tensor, "sampled feature"]
    """All codes of these tokens."""

    def active(self) -> ActiveCodes:
        """Return the nonzero codes. It waits for a GPU, which has to count them."""
        parts = [*self.earlier, _nonzero(self.last, self.first_of_last)]
        index, value = (torch.cat(columns) for columns in zip(*parts, strict=True))
        n_features = self.last.shape[1]
        token = index // n_features
        return ActiveCodes(token, index - token * n_features, value.double())


@torch.no_grad()
def encode(
    sae: SaeModule, acts: Float[Tensor, "token *d_in"], sampled_tokens: Int64[Tensor, " sampled"] | None = None
) -> EncodedTokens:
    """Encode some tokens at a time, since codes are much larger than activations.

    It does not wait for a GPU if all codes fit into `CODES_AT_ONCE_GPU`.

    Args:
        sae: the SAE.
        acts: activations of the tokens.
        sampled_tokens: see `EncodedTokens`; none if None.
    """
    sampled_tokens = torch.zeros(0, dtype=torch.int64) if sampled_tokens is None else sampled_tokens
    size = tokens_at_once(len(sae.W_dec), acts.device)
    earlier, sampled = [], []
    starts = range(0, len(acts) or 1, size)
    for start in starts:
        codes = sae.encode(acts[start : start + size]).flatten(1)
        in_chunk = sampled_tokens[(sampled_tokens >= start) & (sampled_tokens < start + size)] - start
        sampled.append(codes[copy_to_device(in_chunk, codes.device)])
        if start != starts[-1]:
            earlier.append(_nonzero(codes, start))
    return EncodedTokens(earlier, starts[-1], codes, sampled_tokens, torch.cat(sampled))


def tokens_at_once(n_features: int, device: torch.device) -> int:
    """Return the number of tokens that are encoded at a time.

    Args:
        n_features: number of the SAE's features.
        device: device of the SAE.
    """
    at_once = CODES_AT_ONCE if device.type == "cpu" else CODES_AT_ONCE_GPU
    return max(LEAST_AT_ONCE, at_once // n_features)


def _nonzero(codes: Float[Tensor, "token feature"], first: int) -> IndicesAndValues:
    """Return the indices and values of the codes that are not 0; `first` is the index of the first token."""
    flat, offset = codes.flatten(), first * codes.shape[1]
    if flat.device.type == "cpu" and flat.dtype != torch.bfloat16:  # NumPy has no bfloat16
        array = flat.numpy()
        indices = np.flatnonzero(array != 0)  # four times as fast as torch's nonzero
        return torch.from_numpy(indices + offset), torch.from_numpy(array.take(indices))
    places = flat.nonzero().squeeze(1)
    return places + offset, flat.take(places)
