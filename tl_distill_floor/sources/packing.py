"""Put documents into token sequences of one length, as SAELens does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import Tokenizer
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_source import SaeSource

DEFAULT_CONTEXT_SIZE = 256
"""Tokens per sequence, unless something else is known or given."""
NO_SEPARATOR, DEFAULT_SEPARATOR = "none", "bos"
SEPARATORS = {"bos": "bos_token_id", "eos": "eos_token_id", "sep": "sep_token_id"}
"""Attribute of a tokenizer that holds each separator of documents."""


@dataclass(frozen=True)
class Packing:
    """How documents are put into sequences."""

    separator: str | None = None
    """Token between two documents: "bos", "eos", "sep", a token id, or "none"; None takes the tokenizer's
    beginning-of-sequence token, or its end-of-sequence token if it has no other."""
    concatenates_documents: bool = True
    """Whether documents follow one another in a sequence. If not, each sequence is the beginning of a document, and
    shorter documents are left out."""

    def fingerprint(self, documents: str) -> str:
        """Return the fingerprint of documents packed in this way."""
        return documents if self == DEFAULT_PACKING else f"{documents} {self.separator} {self.concatenates_documents}"

    def separator_id(self, tokenizer: Tokenizer) -> int | None:
        """Return the id of the token between two documents; None if there is none.

        Raises:
            InputError: the tokenizer has no such token.
        """
        if self.separator == NO_SEPARATOR:
            return None
        if self.separator is None:
            known = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
            return next((int(token) for token in known if token is not None), None)
        if self.separator.isdigit():
            return int(self.separator)
        token = getattr(tokenizer, SEPARATORS.get(self.separator, ""), None)
        if token is None:
            raise InputError(
                f"the SAE was trained on documents separated by the token {self.separator!r}, which the teacher's"
                " tokenizer does not have; give token ids [batch, position]"
            )
        return int(token)


DEFAULT_PACKING = Packing()


def packing_of(source: SaeSource) -> Packing:
    """Return how documents were put into sequences when an SAE was trained, as far as it is known."""
    separator = None if source.sequence_separator == DEFAULT_SEPARATOR else source.sequence_separator
    return Packing(separator, source.concatenates_documents is not False)


def pack(
    name: str,
    documents: Iterable[Int[Tensor, " token"]],
    tokenizer: Tokenizer,
    context_size: int,
    prepend_bos: bool,
    packing: Packing,
) -> Iterator[Int[Tensor, " position"]]:
    """Yield sequences of one length.

    Args:
        name: name of the text, for messages.
        documents: token ids of each document.
        tokenizer: the tokenizer that made them.
        context_size: tokens per sequence.
        prepend_bos: whether every sequence begins with the beginning-of-sequence token, if the tokenizer has one.
        packing: how documents are put into sequences.

    Raises:
        InputError: documents are not concatenated, and none is as long as a sequence.
    """
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    sequences: Iterator[Tensor] = concat_and_batch_sequences(
        (ids for ids in documents if len(ids)),
        context_size,
        begin_batch_token_id=tokenizer.bos_token_id if prepend_bos else None,
        sequence_separator_token_id=packing.separator_id(tokenizer),
        disable_concat_sequences=not packing.concatenates_documents,
    )
    first = next(sequences, None)
    if first is not None:
        yield first
        yield from sequences
    elif not packing.concatenates_documents:
        raise InputError(
            f"the SAE was trained on documents that are not concatenated, and {name} has none of {context_size} tokens;"
            " give longer documents, or set --context-size"
        )
