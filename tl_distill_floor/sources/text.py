"""Load text as token sequences: from files, datasets, objects in memory, SAELens stores and cached activations."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import TextLike, Tokenizer, TokenStore
from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.cached_activations import (
    CachedActivations,
    is_cached_activations,
    open_cached_activations,
)
from tl_distill_floor.sources.documents import Chat, Document, DocumentSource, open_documents
from tl_distill_floor.sources.items import FIRST_ITEMS, items_digest
from tl_distill_floor.sources.packing import DEFAULT_CONTEXT_SIZE, DEFAULT_PACKING, Packing, pack
from tl_distill_floor.sources.token_rows import (
    IDS_EXPECTED,
    MASK_ADVICE,
    TokenRow,
    as_tensor,
    check_known_padding,
    holds_integers,
    infer_padding,
    pad_right,
    without_padding,
)

FIRST_SEQUENCES = 4
"""Sequences of a store that its fingerprint is made from."""
ROWS_SEEN = 1000
"""Rows of an array from which is inferred how it is padded."""


@dataclass(frozen=True)
class TextSource:
    """Token sequences of one length, read from the start by every call of `read`; or cached activations."""

    name: str
    fingerprint: str
    """A string that differs if the text does, as far as is known before it is read: of a stream, its first items."""
    context_size: int
    """Tokens per sequence."""
    read: Callable[[], Iterator[Int[Tensor, " position"]]]
    """Iterate over the token ids of the sequences; raises an InputError for cached activations. Positions after the
    last token of a row that was padded have the id `token_rows.NO_TOKEN_ID`."""
    cached: CachedActivations | None = None
    """Cached activations; None for text."""
    may_be_padded: bool = False
    """Whether the sequences are rows of token ids, which may have padding."""


def load_text(
    text: TextLike | None,
    tokenizer: Tokenizer | None,
    *,
    context_size: int | None = None,
    prepend_bos: bool = True,
    packing: Packing = DEFAULT_PACKING,
) -> TextSource:
    """Load a text and pack it into token sequences of one length.

    Documents follow one another in a sequence, as SAELens packs them, with a beginning-of-sequence token between them;
    with an end-of-sequence token where the tokenizer has no other.

    A stream that can be read only once is kept in memory as far as it is read.

    Args:
        text: one of

            - None, the embedded text;
            - a `.txt`, `.jsonl`, `.json` or `.csv` file (also `.gz`), a `.parquet` or an `.arrow` file;
            - a directory that `save_to_disk` of `datasets` wrote, with `:split` if it has several splits;
            - the name of a Hugging Face dataset, `owner/name`, `owner/name:config` or `owner/name:config:split`;
            - one text, or texts, rows or token ids in memory: a `datasets` dataset (also streamed), a data frame, a
              list, a generator, a data loader;
            - what a tokenizer returns, with its `attention_mask`;
            - token ids [batch, position];
            - a SAELens `ActivationsStore`;
            - a directory that SAELens's `CacheActivationsRunner` wrote.

            A row holds a `text`, or else `messages`, which the tokenizer's chat template joins, or else `input_ids`.
            A string is a path if such a file exists, otherwise the name of a dataset if it has the form of one,
            otherwise a text.
        tokenizer: tokenizer of the teacher; not needed for token ids, stores and cached activations.
        context_size: tokens per sequence, the beginning-of-sequence token included; 256 if None. Stores, cached
            activations, and token ids in rows of one length keep their own length. Token ids in rows of unequal
            lengths are documents.
        prepend_bos: whether every sequence begins with the beginning-of-sequence token.
        packing: how documents are put into sequences.

    Returns:
        The sequences, each [position].

    Raises:
        InputError: there is no such text, it cannot be read, it needs a tokenizer, or it can be read in two ways.

    Example:
        >>> text = load_text("prose.txt", teacher.model.tokenizer, context_size=128)  # doctest: +SKIP
        >>> next(text.read()).shape  # doctest: +SKIP
        torch.Size([128])
    """
    if isinstance(text, TokenStore):
        return _from_store(text)
    if isinstance(text, str | Path) and is_cached_activations(Path(text)):
        return _from_cached_activations(Path(text))
    if hasattr(text, "dtype") and hasattr(text, "ndim"):
        values: Any = text
        if getattr(values.dtype, "kind", "") not in ("U", "O"):
            return _from_token_ids(values, tokenizer)
        text = values.tolist()
    documents = open_documents(text)
    first = list(islice(documents.read(), FIRST_ITEMS)) if documents.holds_rows else []
    rows = [document for document in first if isinstance(document, TokenRow)]
    if rows and _are_of_one_length(rows):
        return _from_rows(documents, rows, tokenizer)
    if tokenizer is None:
        raise InputError(
            f"{documents.name} needs a tokenizer, and the model has none; save it in the model's directory with"
            " tokenizer.save_pretrained, or give token ids [batch, position]"
        )
    size = context_size or DEFAULT_CONTEXT_SIZE

    def read() -> Iterator[Tensor]:
        padding = infer_padding(rows, tokenizer)
        ids = (
            without_padding(document, padding) if isinstance(document, TokenRow) else _token_ids(document, tokenizer)
            for document in documents.read()
        )
        return pack(documents.name, ids, tokenizer, size, prepend_bos, packing)

    return TextSource(documents.name, packing.fingerprint(documents.fingerprint), size, read)


def tokenize(tokenizer: Tokenizer, document: str) -> list[int]:
    """Return the token ids of a document, without the special tokens that some tokenizers add."""
    ids: list[int] = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _token_ids(document: str | Chat, tokenizer: Any) -> Int[Tensor, " token"]:
    """Return the token ids of a text, or of a conversation in the form of the tokenizer's chat template."""
    text = _apply_chat_template(document, tokenizer) if isinstance(document, Chat) else document
    return torch.tensor(tokenize(tokenizer, text), dtype=torch.long)


def _apply_chat_template(chat: Chat, tokenizer: Any) -> str:
    """Return a conversation as one text.

    Raises:
        InputError: the tokenizer has no chat template, or the conversation does not fit it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{chat.location} holds a conversation, and the teacher's tokenizer has no chat template; give rows with a"
            " text"
        )
    messages = [dict(message) for message in chat.messages]
    try:
        if any(isinstance(message["content"], list) for message in messages) and not _reads_parts(tokenizer):
            messages = [message | {"content": _joined_text(message["content"])} for message in messages]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates raise errors of their own for roles that they do not know
        reason = reason_of(error)
        raise InputError(
            f"{chat.location} does not fit the tokenizer's chat template ({reason}); give rows with a text"
        ) from error


def _reads_parts(tokenizer: Any) -> bool:
    """Return whether a chat template reads a content that is a list of parts; some write the list as it is."""
    probe = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    try:
        return "'text'" not in str(tokenizer.apply_chat_template([probe], tokenize=False))
    except Exception:  # templates raise errors of their own
        return False


def _joined_text(content: object) -> object:
    """Return the texts of a content that is a list of parts, one line each; another content as it is."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content


def _from_token_ids(values: object, tokenizer: Tokenizer | None) -> TextSource:
    """Return the rows of an array of token ids."""
    ids = as_tensor(values)
    if ids.ndim != 2 or not ids.numel() or not holds_integers(ids):
        raise InputError(f"{IDS_EXPECTED}, got {ids.dtype} {tuple(ids.shape)}")
    ids = ids.detach().cpu()
    digest = hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:16]
    ids = ids.long()  # torch cannot compare unsigned integers
    if int(ids.min()) < 0:
        raise InputError(f"{IDS_EXPECTED} that are not negative, got {int(ids.min())}; {MASK_ADVICE}")

    def read() -> Iterator[Document]:
        return map(TokenRow, ids)

    return _from_rows(DocumentSource("token ids", digest, read), [TokenRow(row) for row in ids[:ROWS_SEEN]], tokenizer)


def _from_rows(documents: DocumentSource, first: list[TokenRow], tokenizer: Tokenizer | None) -> TextSource:
    """Return rows of token ids, each a sequence of its own, with their padding behind the tokens."""
    size, padding = len(first[0].ids), infer_padding(first, tokenizer)

    def read() -> Iterator[Tensor]:
        rows = _rows_of_length(documents, size)
        while chunk := list(islice(rows, FIRST_ITEMS)):
            check_known_padding(chunk, tokenizer)  # only the first rows were looked at so far
            for row in chunk:
                ids = without_padding(row, padding)
                if len(ids):
                    yield pad_right(ids, size)

    return TextSource(documents.name, documents.fingerprint, size, read, may_be_padded=True)


def _rows_of_length(documents: DocumentSource, size: int) -> Iterator[TokenRow]:
    """Yield rows of token ids of one length, of which the last one may be shorter."""
    rows = enumerate(documents.read(), start=1)
    for number, row in rows:
        n_ids = len(row.ids) if isinstance(row, TokenRow) else 0
        is_last_and_shorter = 0 < n_ids < size and next(rows, None) is None
        if not isinstance(row, TokenRow) or not (n_ids == size or is_last_and_shorter):
            content = f"{n_ids} token ids" if n_ids else "text"
            raise InputError(
                f"row {number} of {documents.name} holds {content}, the rows before it {size} token ids each; give rows"
                " of one length"
            )
        yield row


def _are_of_one_length(rows: list[TokenRow]) -> bool:
    """Return whether rows are sequences of one length; if there are some, the last one may be shorter."""
    *others, last = (len(row.ids) for row in rows)
    return len({*others, last}) == 1 or (len(others) >= 3 and len(set(others)) == 1 and last < others[0])


def _from_store(store: TokenStore) -> TextSource:
    """Return the sequences of a SAELens store from its first one on, whatever was read from it before."""
    activations_store: Any = store

    def read() -> Iterator[Tensor]:
        own = copy.copy(activations_store)  # so that the user's store stays where it is, and counts only its own rows
        for ids in own._iterate_tokenized_sequences():
            yield ids.cpu()

    first = items_digest(ids.tolist() for ids in islice(read(), FIRST_SEQUENCES))
    return TextSource("ActivationsStore", f"ActivationsStore {first}", store.context_size, read)


def _from_cached_activations(path: Path) -> TextSource:
    cached = open_cached_activations(path)

    def read() -> Iterator[Tensor]:
        raise InputError(f"{path} holds cached activations, not text; leave out the teacher to measure them")

    return TextSource(cached.name, cached.fingerprint, cached.context_size, read, cached)
