"""What each feature fires on, batch by batch, and which tokens it promotes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from tl_distill_floor.measuring.hooks import canonical_name
from tl_distill_floor.results.contexts import AFTER, BEFORE, N_CONTEXTS, NO_TOKEN, WINDOW, FeatureContexts

N_PROMOTED = 6
LOGITS_AT_ONCE = 2**23
"""Numbers of logits that are held at a time, 32 MiB in fp32."""
WRITTEN_TO = ("hook_in", "hook_out", "hook_resid_mid", "mlp.hook_out", "attn.hook_out")
"""The points of a block whose activation is the residual stream, or is added to it."""
ENTRY_BITS = 31
MOST_ENTRIES = 2**ENTRY_BITS - 1


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
    """The strongest contexts of one batch, from the entries of its codes that are not 0.

    Args:
        token: of each entry, its place among the tokens that counted; ascending.
        feature: of each entry.
        value: of each entry; its absolute value is the strength.
        sequence: number of the text's sequence that each counted token stands in.
        position: of each counted token in its sequence.
        ids: token ids of the whole sequences, those that did not count included.
        first_sequence: number of the text's sequence that is `ids[0]`.
        n_features: of the SAE.
    """
    # In NumPy: these arrays are small, and torch's threads cost more than they save.
    tokens, features, rows, positions = (_array(a) for a in (token, feature, sequence - first_sequence, position))
    entry, strength = _strongest(rows[tokens], features, _array(value.abs().float()), len(ids), n_features)
    made = _empty(n_features)
    made[0][:, : strength.shape[1]] = strength
    which, k = strength.nonzero()
    place = tokens[entry[which, k]]
    made[1][which, k] = rows[place] + first_sequence
    made[2][which, k] = _windows(_array(ids), rows[place], positions[place])
    return FeatureContexts.of_places(*made)


def _array(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.cpu().numpy()
    return found


def _empty(n_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (n_features, N_CONTEXTS)
    return (
        np.zeros(shape, dtype=np.float32),
        np.full(shape, NO_TOKEN, dtype=np.int64),
        np.full((*shape, WINDOW), NO_TOKEN, dtype=np.int32),
    )


def _strongest(
    row: Int64[np.ndarray, " entry"],
    feature: Int64[np.ndarray, " entry"],
    strength: Float32[np.ndarray, " entry"],
    n_rows: int,
    n_features: int,
) -> tuple[Int64[np.ndarray, "feature kept"], Float32[np.ndarray, "feature kept"]]:
    """(entry, strength): of every feature the strongest sequences, one entry each, the earlier one among equals."""
    # The bits of a float of at least 0 rise with it, and its sign bit is 0: one whole number carries the strength and,
    # in the bits below, how early the entry stands.
    early = MOST_ENTRIES - np.arange(len(row))
    best = np.zeros(n_features * n_rows, dtype=np.int64)
    np.maximum.at(best, feature * n_rows + row, (strength.view(np.int32).astype(np.int64) << ENTRY_BITS) | early)
    top = np.sort(best.reshape(n_features, n_rows), axis=1)[:, ::-1][:, :N_CONTEXTS]
    return MOST_ENTRIES - (top & MOST_ENTRIES), (top >> ENTRY_BITS).astype(np.int32).view(np.float32)


def _windows(
    ids: Int[np.ndarray, "batch position"], row: Int[np.ndarray, " place"], position: Int[np.ndarray, " place"]
) -> Int32[np.ndarray, "place window"]:
    """The tokens around each place; -1 beyond the ends of its sequence."""
    padded = np.pad(ids.astype(np.int32), ((0, 0), (BEFORE, AFTER)), constant_values=NO_TOKEN)
    windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[row, position]
    return windows


def described(contexts: FeatureContexts, model: Any, sae: Any, hook_name: str) -> FeatureContexts:
    """With the tokens that each feature promotes, and the strings of all tokens where the model has a tokenizer."""
    if canonical_name(hook_name).split(".", 2)[-1] in WRITTEN_TO:
        fired = contexts.activation[:, 0] > 0  # features times vocabulary is a large product
        found = promoted_tokens(model, sae.W_dec.detach()[torch.from_numpy(fired)])
        promoted = np.full((len(fired), found.shape[1]), NO_TOKEN, dtype=np.int32)
        promoted[fired] = found
        contexts = contexts.with_promoted(promoted)
    tokenizer = getattr(model, "tokenizer", None)
    return contexts if tokenizer is None else contexts.with_strings(decoder_of(tokenizer))


@torch.no_grad()
def promoted_tokens(
    model: Any, W_dec: Float[Tensor, "feature *d_model"], n: int = N_PROMOTED
) -> Int32[np.ndarray, "feature promoted"]:
    """The tokens whose logits each decoder row raises most, the most raised first.

    The logits of row w are unembed(ln_final(c · w)) − unembed(ln_final(0)), with c · w of root mean square 1: the
    direct path from the residual stream, whatever the layers between do. Nothing in the model is changed.

    Args:
        model: a HookedTransformer or TransformerBridge.
        W_dec: decoder rows, in the residual stream.
        n: tokens a feature.

    Returns:
        [feature, n] token ids, -1 for a row of zeros; [feature, 0] where the rows have another width than the residual
        stream, or the model has no final norm or no unembedding.
    """
    rows = W_dec.detach()
    readable = all(getattr(model, name, None) is not None for name in ("ln_final", "unembed"))
    if not readable or rows.shape[1:] != (int(model.cfg.d_model),):
        return np.zeros((len(rows), 0), dtype=np.int32)
    weight = next(model.unembed.parameters())
    unchanged = model.unembed(model.ln_final(weight.new_zeros(1, 1, rows.shape[1])))[0, 0].float()
    chunks = torch.split(rows, max(1, LOGITS_AT_ONCE // len(unchanged)))
    return np.concatenate([_most_raised(model, chunk.to(weight), unchanged, n) for chunk in chunks])


def _most_raised(
    model: Any, rows: Float[Tensor, "feature d_model"], unchanged: Float[Tensor, " token"], n: int
) -> Int32[np.ndarray, "feature promoted"]:
    size = rows.float().square().mean(-1, keepdim=True).sqrt()
    of_size_one = torch.where(size > 0, rows.float() / size, 0.0).to(rows)
    raised = model.unembed(model.ln_final(of_size_one[None]))[0].float().sub_(unchanged)
    top = raised.topk(min(n, len(unchanged)), dim=1).indices
    found: np.ndarray = torch.where(size > 0, top, NO_TOKEN).int().cpu().numpy()
    return found


def decoder_of(tokenizer: Any) -> Callable[[int], str]:
    """A function from a token id to its string as it stands in a text, with the space before a word."""

    def decode(token: int) -> str:
        text = str(tokenizer.decode([token]))
        piece = tokenizer.convert_ids_to_tokens(token)
        # SentencePiece marks a word's first piece; of a piece that stands alone, decoding drops the space.
        return f" {text}" if str(piece).startswith("▁") and not text.startswith(" ") else text

    return decode
