"""A teacher and a text as a stream of token sequences, and which of their tokens are counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel, TextLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teachers import Teacher, check_context, special_token_ids
from tl_distill_floor.sources.text import TextSource, load_text

Row = TypeVar("Row")


@dataclass(frozen=True)
class TokenStream:
    """A text, tokenized for a teacher and read in batches of sequences."""

    teacher: Teacher
    text: TextSource
    batch_size: int
    """Sequences per batch."""
    prepend_bos: bool = True
    """Whether every sequence begins with the beginning-of-sequence token."""

    @property
    def context_size(self) -> int:
        """Tokens per sequence."""
        return self.text.context_size

    @property
    def tokens_per_batch(self) -> int:
        """Tokens per batch."""
        return self.batch_size * self.context_size

    def batches(self, start: int, n_tokens: int) -> Iterator[tuple[int, Int[Tensor, "batch position"]]]:
        """Yield the batches that hold tokens `start` to `n_tokens` of the text.

        Yields:
            (number of the first sequence, token ids), the ids on the teacher's device.

        Raises:
            InputError: a token id is outside the teacher's vocabulary.
        """
        first, last = start // self.context_size, -(-n_tokens // self.context_size)
        groups = _groups(islice(self.text.read(), first, last), self.batch_size)
        for number, group in zip(count(first, self.batch_size), groups, strict=False):
            yield number, self._check_vocabulary(torch.stack(group)).to(device_of(self.teacher.model))

    def read_sequences(self, n_tokens: int) -> Int[Tensor, "sequence position"]:
        """Return the first sequences of the text on the CPU: enough for `n_tokens`, or all.

        Raises:
            InputError: a token id is outside the teacher's vocabulary.
        """
        batches = [ids.cpu() for _, ids in self.batches(0, n_tokens)]
        return torch.cat(batches) if batches else torch.zeros((0, self.context_size), dtype=torch.long)

    def counted(self, ids: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """Return which tokens are counted: all but special tokens and the first of each sequence."""
        special = torch.tensor(special_token_ids(self.teacher.model), dtype=ids.dtype, device=ids.device)
        return mask_first_position(ids.shape).to(ids.device) & ~torch.isin(ids, special)

    def _check_vocabulary(self, ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        largest, vocabulary = int(ids.max()), int(self.teacher.model.cfg.d_vocab)
        if largest >= vocabulary or int(ids.min()) < 0:
            raise InputError(
                f"the text holds token id {largest}, the teacher's vocabulary ends at {vocabulary - 1};"
                " use the teacher's own tokenizer"
            )
        return ids


@dataclass(frozen=True)
class CachedActivationStream:
    """Activations at one hook point that SAELens cached, read in batches of sequences."""

    text: TextSource
    hook_name: str
    batch_size: int
    """Sequences per batch."""

    @property
    def context_size(self) -> int:
        """Tokens per sequence."""
        return self.text.context_size

    @property
    def tokens_per_batch(self) -> int:
        """Tokens per batch."""
        return self.batch_size * self.context_size

    def batches(self, start: int, n_tokens: int) -> Iterator[tuple[int, Float[Tensor, "batch position *d_model"]]]:
        """Yield (number of the first sequence, activations) of the batches that hold tokens `start` to `n_tokens`."""
        assert self.text.read_cached is not None
        first, last = start // self.context_size, -(-n_tokens // self.context_size)
        rows = islice(self.text.read_cached(self.hook_name), first, last)
        groups = _groups((activation for _, activation in rows), self.batch_size)
        yield from zip(count(first, self.batch_size), map(torch.stack, groups), strict=False)


def open_token_stream(teacher: Teacher, text: TextLike | None, context_size: int, batch_size: int) -> TokenStream:
    """Load a text for a teacher, packed into sequences as measurements pack it.

    Args:
        teacher: the teacher, whose tokenizer is used.
        text: see `load_text`.
        context_size: tokens per sequence.
        batch_size: sequences per batch.

    Raises:
        InputError: the text cannot be loaded, or its sequences are longer than the teacher's context.
    """
    tokenizer = getattr(teacher.model, "tokenizer", None)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    loaded = load_text(text, tokenizer, context_size=context_size, prepend_bos=has_bos)
    check_context(teacher.model, loaded.context_size)
    return TokenStream(teacher, loaded, batch_size, prepend_bos=has_bos)


def mask_first_position(shape: Sequence[int]) -> Bool[Tensor, "batch position"]:
    """Return a mask that is False at the first position of each sequence."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    mask[:, 0] = False
    return mask


def device_of(model: HookedModel | nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    first: Tensor = next(model.parameters())
    return first.device


def _groups(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while group := list(islice(rows, size)):
        yield group
