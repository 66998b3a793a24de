"""Load text as token sequences: from files, datasets, token ids, SAELens stores and cached activations."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import TextLike, Tokenizer, TokenStore
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.cached_activations import (
    CachedSequence,
    is_cached_activations,
    open_cached_activations,
)
from tl_distill_floor.sources.documents import open_documents

DEFAULT_CONTEXT_SIZE = 256
IDS_EXPECTED = "token ids must be integers [batch, position]"


@dataclass(frozen=True)
class TextSource:
    """Token sequences of one length, read from the start by every call of `read`; or cached activations."""

    name: str
    fingerprint: str
    """A string that differs if the text does; a measurement is resumed only on the same text."""
    context_size: int
    """Tokens per sequence."""
    read: Callable[[], Iterator[Int[Tensor, " position"]]]
    """Iterate over the token ids of the sequences; raises an InputError for cached activations."""
    read_cached: Callable[[str], Iterator[CachedSequence]] | None = None
    """Iterate over the (token ids, activations) that were cached at a hook point; None if nothing was cached."""


def load_text(
    text: TextLike | None, tokenizer: Tokenizer | None, *, context_size: int | None = None, prepend_bos: bool = True
) -> TextSource:
    """Load a text and pack it into token sequences of one length.

    Documents follow one another in a sequence, with a beginning-of-sequence token between them, as SAELens packs them.

    Args:
        text: one of

            - None, the embedded text;
            - a `.txt` or `.jsonl` file (also `.gz`);
            - a Hugging Face dataset, `owner/name` or `owner/name:config`;
            - token ids [batch, position];
            - a SAELens `ActivationsStore`;
            - a directory that SAELens's `CacheActivationsRunner` wrote.
        tokenizer: tokenizer of the teacher; not needed for token ids, stores and cached activations.
        context_size: tokens per sequence, the beginning-of-sequence token included; 256 if None. Token ids, stores
            and cached activations keep their own length.
        prepend_bos: whether every sequence begins with the beginning-of-sequence token.

    Returns:
        The sequences, each [position].

    Raises:
        InputError: there is no such text, it cannot be read, or it needs a tokenizer.

    Example:
        >>> text = load_text("prose.txt", teacher.model.tokenizer, context_size=128)  # doctest: +SKIP
        >>> next(text.read()).shape  # doctest: +SKIP
        torch.Size([128])
    """
    if isinstance(text, TokenStore):
        return _from_store(text)
    if text is not None and not isinstance(text, str | Path):
        return _from_token_ids(text)
    if text is not None and is_cached_activations(Path(text)):
        return _from_cached_activations(Path(text))
    documents = open_documents(text)
    if tokenizer is None:
        raise InputError(
            f"{documents.name} needs a tokenizer, and the model has none; give token ids [batch, position]"
        )
    size = context_size or DEFAULT_CONTEXT_SIZE

    def read() -> Iterator[Tensor]:
        from sae_lens.tokenization_and_batching import concat_and_batch_sequences

        bos = tokenizer.bos_token_id
        ids = (torch.tensor(tokenize(tokenizer, document)) for document in documents.read())
        sequences: Iterator[Tensor] = concat_and_batch_sequences(
            (document_ids for document_ids in ids if len(document_ids)),
            size,
            begin_batch_token_id=bos if prepend_bos else None,
            sequence_separator_token_id=bos,
        )
        return sequences

    return TextSource(documents.name, documents.fingerprint, size, read)


def tokenize(tokenizer: Tokenizer, document: str) -> list[int]:
    """Return the token ids of a document, without the special tokens that some tokenizers add."""
    ids: list[int] = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _from_token_ids(values: object) -> TextSource:
    try:
        ids = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{IDS_EXPECTED} ({error})") from error
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise InputError(f"{IDS_EXPECTED}, got {ids.dtype} {tuple(ids.shape)}")
    digest = hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return TextSource("token ids", digest, ids.shape[1], lambda: iter(ids.long()))


def _from_store(store: TokenStore) -> TextSource:
    """Return the sequences of a SAELens store from its first one on, whatever was read from it before."""
    activations_store: Any = store

    def read() -> Iterator[Tensor]:
        activations_store.iterable_sequences = activations_store._iterate_tokenized_sequences()
        while True:
            try:
                batch = store.get_batch_tokens(1, raise_at_epoch_end=True)
            except StopIteration:
                return
            yield batch[0]

    return TextSource("ActivationsStore", "ActivationsStore", store.context_size, read)


def _from_cached_activations(path: Path) -> TextSource:
    cached = open_cached_activations(path)

    def read() -> Iterator[Tensor]:
        raise InputError(f"{path} holds cached activations, not text; leave out the teacher to measure them")

    return TextSource(cached.name, cached.fingerprint, cached.context_size, read, cached.read)
