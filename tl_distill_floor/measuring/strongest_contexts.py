"""Find the strongest contexts of each feature."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.results.contexts import AFTER, BEFORE, N_CONTEXTS, NO_TOKEN, WINDOW, FeatureContexts

ENTRY_BITS = 31
MOST_ENTRIES = 2**ENTRY_BITS - 1


@runtime_checkable
class TokenDecoder(Protocol):
    """The part of a Hugging Face tokenizer that turns token ids into strings."""

    def decode(self, token_ids: list[int]) -> str | list[str]:
        """Return the text of some token ids."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str | list[str]:
        """Return the entry of the vocabulary for a token id."""
        ...


@torch.no_grad()
def batch_contexts(
    token: Int64[Tensor, " entry"],
    feature: Int64[Tensor, " entry"],
    value: Float[Tensor, " entry"],
    sequence: Int[Tensor, " token"],
    position: Int[Tensor, " token"],
    ids: Int[Tensor, "batch position"],
    first_sequence: int,
    n_features: int,
) -> FeatureContexts:
    """Find the strongest contexts of one batch from its nonzero codes ("entries").

    Args:
        token: index of each entry's token among the counted tokens, ascending.
        feature: feature of each entry.
        value: code of each entry; its absolute value is the strength.
        sequence: number of each counted token's sequence in the text.
        position: position of each counted token in its sequence.
        ids: token ids of the full sequences, including tokens that are not counted.
        first_sequence: number of the first sequence of `ids` in the text.
        n_features: number of the SAE's features.
    """
    # In NumPy: the arrays are small, and torch's threads would cost more than they save.
    tokens, features, rows, positions = (_to_numpy(a) for a in (token, feature, sequence - first_sequence, position))
    entry, strength = _strongest_entries(rows[tokens], features, _to_numpy(value.abs().float()), len(ids), n_features)
    shape = (n_features, N_CONTEXTS)
    activation = np.zeros(shape, dtype=np.float32)
    numbers = np.full(shape, NO_TOKEN, dtype=np.int64)
    windows = np.full((*shape, WINDOW), NO_TOKEN, dtype=np.int32)
    activation[:, : strength.shape[1]] = strength
    fired, rank = strength.nonzero()
    peak = tokens[entry[fired, rank]]
    numbers[fired, rank] = rows[peak] + first_sequence
    windows[fired, rank] = _windows(_to_numpy(ids), rows[peak], positions[peak])
    return FeatureContexts.from_arrays(activation, numbers, windows)


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


def _to_numpy(values: Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array."""
    array: np.ndarray = values.cpu().numpy()
    return array


def _strongest_entries(
    row: Int64[np.ndarray, " entry"],
    feature: Int64[np.ndarray, " entry"],
    strength: Float32[np.ndarray, " entry"],
    n_rows: int,
    n_features: int,
) -> tuple[Int64[np.ndarray, "feature kept"], Float32[np.ndarray, "feature kept"]]:
    """Find the strongest entry of each sequence, for the strongest sequences of each feature.

    Returns:
        Indices of the entries and their strengths, the strongest first; of equal ones the earlier.
    """
    # The bits of nonnegative floats are in the order of the floats, with a sign bit of 0. So one integer holds the
    # strength, and in its lower bits how early the entry is.
    earliness = MOST_ENTRIES - np.arange(len(row))
    best = np.zeros(n_features * n_rows, dtype=np.int64)
    np.maximum.at(best, feature * n_rows + row, (strength.view(np.int32).astype(np.int64) << ENTRY_BITS) | earliness)
    top = np.sort(best.reshape(n_features, n_rows), axis=1)[:, ::-1][:, :N_CONTEXTS]
    return MOST_ENTRIES - (top & MOST_ENTRIES), (top >> ENTRY_BITS).astype(np.int32).view(np.float32)


def _windows(
    ids: Int[np.ndarray, "batch position"], row: Int[np.ndarray, " peak"], position: Int[np.ndarray, " peak"]
) -> Int32[np.ndarray, "peak window"]:
    """Return the token ids around each peak; -1 beyond the ends of its sequence."""
    padded = np.pad(ids.astype(np.int32), ((0, 0), (BEFORE, AFTER)), constant_values=NO_TOKEN)
    windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[row, position]
    return windows
