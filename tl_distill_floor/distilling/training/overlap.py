"""Find held-out text that is part of the training text."""

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

WINDOW = 24
"""Tokens that must be equal for two texts to overlap: long enough not to be equal by chance."""
LEAST_OVERLAP = 0.01
"""Share of the held-out text from which on an overlap is reported: documents share a few phrases."""
TOKENS_PER_CHUNK = 2**20
"""Training tokens whose windows are in memory at once."""
MULTIPLIER = np.int64(6_364_136_223_846_793_005)
"""Multiplier of the hash of a window, modulo 2⁶⁴ (Knuth, MMIX)."""


def overlap_warnings(train: Int[Tensor, "train position"], heldout: Int[Tensor, "heldout position"]) -> tuple[str, ...]:
    """Return a warning if a part of the held-out text is also trained on.

    Args:
        train: token ids of the training sequences.
        heldout: token ids of the held-out sequences.
    """
    share = overlap(train, heldout)
    if share < LEAST_OVERLAP:
        return ()
    return (
        f"{share:.0%} of the held-out text is also in the training text, so its losses are too low; give other"
        " held-out text",
    )


def overlap(train: Int[Tensor, "train position"], heldout: Int[Tensor, "heldout position"]) -> float:
    """Return the share of the held-out text that is in the training text, in windows of equal tokens.

    Windows of the held-out sequences that follow one another are looked up among the windows of the training sequences
    that begin at any position, so that a text is found wherever it was packed.

    Args:
        train: token ids of the training sequences.
        heldout: token ids of the held-out sequences.

    Returns:
        The share of the windows, from 0 to 1; of full sequences if they are shorter than a window.
    """
    size = min(WINDOW, int(heldout.shape[1]) - 1)
    if size < 1 or not len(train) or not len(heldout):
        return 0.0
    # The first position often is a beginning-of-sequence token.
    wanted = _hashes(heldout[:, 1:], size)[:, ::size].ravel()
    known = np.unique(wanted)
    seen = np.zeros(len(known), dtype=bool)
    for chunk in torch.split(train, max(1, TOKENS_PER_CHUNK // train.shape[1])):
        hashes = _hashes(chunk, size).ravel()
        index = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        seen[index[known[index] == hashes]] = True
    return float(seen[np.searchsorted(known, wanted)].mean())


def _hashes(ids: Int[Tensor, "sequence position"], size: int) -> Int64[np.ndarray, "sequence window"]:
    """Return a polynomial hash of each window of `size` tokens, modulo 2⁶⁴."""
    values = ids.cpu().numpy().astype(np.int64) + 1
    n_windows = values.shape[1] - size + 1
    hashes = np.zeros((len(values), n_windows), dtype=np.int64)
    with np.errstate(over="ignore"):
        for offset in range(size):
            hashes = hashes * MULTIPLIER + values[:, offset : offset + n_windows]
    return hashes
