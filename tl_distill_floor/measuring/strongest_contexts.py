"""Find the strongest contexts of each feature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32, Int64
from torch import Tensor
from torch.nn.functional import pad

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.results.contexts import AFTER, BEFORE, N_CONTEXTS, NO_TOKEN, WINDOW, FeatureContexts
from tl_distill_floor.sources.devices import copy_to_device

LOCATION_BITS = 31
LAST_LOCATION = 2**LOCATION_BITS - 1
"""Bits for the place of a token in a batch, below those of an activation in one integer, and the largest place."""


@runtime_checkable
class TokenDecoder(Protocol):
    """The part of a Hugging Face tokenizer that turns token ids into strings."""

    def decode(self, token_ids: list[int]) -> str | list[str]:
        """Return the text of some token ids."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str | list[str]:
        """Return the entry of the vocabulary for a token id."""
        ...


@dataclass(frozen=True, eq=False)
class RunningContexts:
    """The strongest contexts of each feature in the text read so far, on the SAE's device.

    Contexts of all features are larger than everything else that a batch is reduced to. So they are merged on the
    device, and copied from it only when they are saved.
    """

    activation: Float32[Tensor, "feature context"]
    """See `FeatureContexts`, also for the other fields."""
    sequence: Int64[Tensor, "feature context"]
    window: Int32[Tensor, "feature context window"]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.activation)

    @classmethod
    def resume(cls, contexts: FeatureContexts, device: torch.device) -> "RunningContexts":
        """Return contexts that were saved or sent, on a device.

        Args:
            contexts: the contexts.
            device: device of the tensors.
        """
        arrays = (contexts.activation, contexts.sequence, contexts.window)
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))

    def merge(self, other: "RunningContexts | FeatureContexts") -> "RunningContexts":
        """Keep the strongest contexts of two stretches of text; of equal ones, those of `self` come first.

        Args:
            other: contexts of later sequences of the same text.
        """
        device = self.activation.device
        other = RunningContexts.resume(other, device) if isinstance(other, FeatureContexts) else other
        activation, sequence, window = (
            torch.cat([getattr(self, name), getattr(other, name).to(device)], dim=1)
            for name in ("activation", "sequence", "window")
        )
        strongest, order = activation.sort(dim=1, descending=True, stable=True)
        order = order[:, :N_CONTEXTS]
        rows = torch.arange(self.n_features, device=device)[:, None]
        return RunningContexts(strongest[:, :N_CONTEXTS], sequence.gather(1, order), window[rows, order])

    def finish(self) -> FeatureContexts:
        """Return the contexts as arrays."""
        tensors = (self.activation, self.sequence, self.window)
        return FeatureContexts.from_arrays(*(tensor.cpu().contiguous().numpy() for tensor in tensors))


@torch.no_grad()
def batch_contexts(batch: ActivationBatch, codes: ActiveCodes, n_features: int) -> RunningContexts | None:
    """Find the strongest contexts of one batch, without waiting for a GPU; None if its token ids are not known.

    Args:
        batch: the batch.
        codes: its nonzero codes ("entries"); the strength of a code is its absolute value.
        n_features: number of the SAE's features.
    """
    if batch.ids is None:
        return None
    device, (n_rows, length) = codes.value.device, batch.ids.shape
    location = copy_to_device(batch.location, device)[codes.token]
    strength = codes.value.abs().float()
    peak, activation = _strongest_locations(location, codes.feature, strength, n_rows, length, n_features)
    fired = activation > 0
    row, column = peak // length, peak % length
    numbers = torch.where(fired, row + batch.first, NO_TOKEN)
    windows = torch.where(fired[..., None], _windows(copy_to_device(batch.ids, device))[row, column], NO_TOKEN)
    n_missing = N_CONTEXTS - peak.shape[1]
    return RunningContexts(
        pad(activation, (0, n_missing)),
        pad(numbers, (0, n_missing), value=NO_TOKEN),
        pad(windows, (0, 0, 0, n_missing), value=NO_TOKEN),
    )


def describe_contexts(contexts: FeatureContexts, model: HookedModel) -> FeatureContexts:
    """Add the strings of all tokens if the model has a tokenizer.

    Args:
        contexts: the strongest contexts of each feature.
        model: a HookedTransformer or TransformerBridge.
    """
    tokenizer = getattr(model, "tokenizer", None)
    return contexts if tokenizer is None else contexts.with_strings(token_decoder(tokenizer))


def token_decoder(tokenizer: TokenDecoder) -> Callable[[int], str]:
    """Return a function from a token id to its string in a text, with the space before a word."""

    def decode(token: int) -> str:
        text = str(tokenizer.decode([token]))
        piece = tokenizer.convert_ids_to_tokens(token)
        # SentencePiece marks the first piece of a word; decoding a single piece drops the space.
        return f" {text}" if str(piece).startswith("▁") and not text.startswith(" ") else text

    return decode


def _strongest_locations(
    location: Int64[Tensor, " entry"],
    feature: Int64[Tensor, " entry"],
    strength: Float32[Tensor, " entry"],
    n_rows: int,
    length: int,
    n_features: int,
) -> tuple[Int64[Tensor, "feature kept"], Float32[Tensor, "feature kept"]]:
    """Find the strongest entry of each sequence, for the strongest sequences of each feature.

    Args:
        location: index of each entry's token among all tokens of the batch.
        feature: feature of each entry.
        strength: strength of each entry.
        n_rows: sequences of the batch.
        length: tokens per sequence.
        n_features: number of the SAE's features.

    Returns:
        Locations of the entries and their strengths, the strongest first; of equal ones the earlier. Without an entry
        the strength is 0.
    """
    # The bits of nonnegative floats are in the order of the floats, with a sign bit of 0. So one integer holds the
    # strength, and in its lower bits how early the entry is.
    key = (strength.view(torch.int32).long() << LOCATION_BITS) | (LAST_LOCATION - location)
    best = torch.zeros(n_features * n_rows, dtype=torch.int64, device=key.device)
    best.scatter_reduce_(0, feature * n_rows + location // length, key, "amax")
    top = best.view(n_features, n_rows).topk(min(N_CONTEXTS, n_rows), dim=1).values
    strongest = (top >> LOCATION_BITS).int().view(torch.float32)
    return torch.where(strongest > 0, LAST_LOCATION - (top & LAST_LOCATION), 0), strongest


def _windows(ids: Int[Tensor, "batch position"]) -> Int32[Tensor, "batch position window"]:
    """Return the token ids around each token; -1 beyond the ends of its sequence."""
    return pad(ids.int(), (BEFORE, AFTER), value=NO_TOKEN).unfold(1, WINDOW, 1)
