"""A teacher and a text as a stream of token sequences, and which of their tokens are counted."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, TextLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import depends_on_what_follows
from tl_distill_floor.results.feature_sums import DIGEST_MODULUS
from tl_distill_floor.sources.cached_activations import CachedActivations
from tl_distill_floor.sources.context_lengths import check_vocabulary, teacher_context
from tl_distill_floor.sources.devices import copy_to_device, device_of
from tl_distill_floor.sources.items import Replayed
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import special_token_ids, tokenizer_of
from tl_distill_floor.sources.text import TextSource, load_text
from tl_distill_floor.sources.token_rows import NO_TOKEN_ID

Row = TypeVar("Row")
MAX_KEPT_TOKENS = 2**23
"""Tokens of a text that are kept in memory, to be tokenized once: 64 MiB. Longer texts are tokenized in every pass."""
CachedBatch = tuple[int, Float[Tensor, "batch position *d_model"], Bool[Tensor, "batch position"]]
"""Number of the first sequence, activations, and which of them are counted."""


@dataclass(frozen=True)
class TokenStream:
    """A text, tokenized for a teacher and read in batches of sequences."""

    teacher: Teacher
    text: TextSource
    batch_size: int
    """Sequences per batch."""
    prepend_bos: bool = True
    """Whether every sequence begins with the beginning-of-sequence token."""
    positions: tuple[int | None, ...] | None = None
    """Arguments of the `slice` of positions that are counted; all but the first if None."""
    excluded_ids: tuple[int, ...] = ()
    """Token ids that are not counted, besides special tokens."""
    depends_on_padding: bool = field(init=False, default=False)
    """Whether the padding after the tokens of a row would change their activations."""

    def __post_init__(self) -> None:
        """Check the length of the sequences, and find out what padding changes before the model has other hooks.

        Raises:
            InputError: rows of token ids are longer than the teacher's context, or hold one token.
        """
        longest = teacher_context(self.teacher.model)
        if not 2 <= self.context_size <= longest:
            raise InputError(
                f"{self.text.name} has sequences of {self.context_size} tokens, and the teacher reads 2 to {longest};"
                " give rows of token ids of such a length"
            )
        if self.text.may_be_padded:
            object.__setattr__(self, "depends_on_padding", depends_on_what_follows(self.teacher.model))

    @property
    def context_size(self) -> int:
        """Tokens per sequence."""
        return self.text.context_size

    @property
    def tokens_per_batch(self) -> int:
        """Tokens per batch."""
        return self.batch_size * self.context_size

    def batches(
        self, start: int, n_tokens: int, digest: int | None = None
    ) -> Iterator[tuple[int, Int[Tensor, "batch position"]]]:
        """Yield the batches that hold tokens `start` to `n_tokens` of the text.

        Args:
            start: tokens that are skipped, a multiple of the tokens per sequence.
            n_tokens: tokens to read, including those that are skipped.
            digest: `digest_sequences` of the sequences that should be skipped; not compared if None.

        Yields:
            (number of the first sequence, token ids). Positions without a token have the id `NO_TOKEN_ID`, see
            `model_input`.

        Raises:
            InputError: a token id is outside the teacher's vocabulary, a row is padded and the teacher's tokens attend
                to later ones, or the skipped tokens have another digest.
        """
        first = start // self.context_size
        if digest is not None:
            skipped = sum(digest_sequences(row[None], number) for number, row in enumerate(self._rows(0, first)))
            if skipped % DIGEST_MODULUS != digest:
                raise InputError(
                    f"{self.text.name} differs in its first {start:,} tokens from the text that the checkpoint was"
                    " measured on; give the same text, or delete the checkpoint to start again"
                )
        groups = _groups(self._rows(first, -(-n_tokens // self.context_size)), self.batch_size)
        for number, group in zip(count(first, self.batch_size), groups, strict=False):
            yield number, self._check_vocabulary(torch.stack(group))

    def count_sequences(self, n_tokens: int) -> int:
        """Return the number of sequences that hold `n_tokens` of the text, or all of it if it is shorter.

        Args:
            n_tokens: tokens to read.
        """
        return sum(1 for _ in self._rows(0, -(-n_tokens // self.context_size)))

    def _rows(self, first: int, last: int) -> Iterator[Int[Tensor, " position"]]:
        """Iterate over some of the text's sequences, from memory if they were read before."""
        is_kept = (last - 1) * self.context_size < MAX_KEPT_TOKENS
        return islice(self._kept_rows if is_kept else self.text.read(), first, last)

    @cached_property
    def _kept_rows(self) -> Replayed[Int[Tensor, " position"]]:
        """The text's sequences, which are read and kept as they are asked for."""
        return Replayed(self.text.read())

    def read_sequences(self, n_tokens: int, *, padded: bool = False) -> Int[Tensor, "sequence position"]:
        """Return the first sequences of the text on the CPU: enough for `n_tokens`, or all.

        Args:
            n_tokens: tokens to read.
            padded: whether positions may be without a token.

        Raises:
            InputError: see `batches`; also if a position is without a token and `padded` is False.
        """
        batches = [ids for _, ids in self.batches(0, n_tokens)]
        if not padded and any(bool((ids == NO_TOKEN_ID).any()) for ids in batches):
            raise InputError(
                f"{self.text.name} holds padded rows, which students are not trained on; give text, or rows without"
                " padding"
            )
        return torch.cat(batches) if batches else torch.zeros((0, self.context_size), dtype=torch.long)

    def counted(self, ids: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """Return which tokens are counted: all but special tokens, padding and the first of each sequence."""
        return mask_positions(ids.shape, self.positions) & self.has_loss(ids)

    def has_loss(self, ids: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """Return at which positions a loss is measured: all but padding and the ids that are not counted.

        The first position of a sequence has none when features are removed, since they stay there. Positions that the
        SAE does not read have one: features that are removed before them change it.
        """
        return ~torch.isin(ids, self._not_counted_ids)

    @cached_property
    def _not_counted_ids(self) -> Int[Tensor, " id"]:
        """Token ids that are not counted."""
        return torch.tensor([NO_TOKEN_ID, *special_token_ids(self.teacher.model), *self.excluded_ids])

    def _check_vocabulary(self, ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        if int(ids.min()) == NO_TOKEN_ID and self.depends_on_padding:
            raise InputError(
                f"{self.text.name} holds padded rows, and the teacher's tokens attend to later ones; give rows of one"
                " length without padding"
            )
        check_vocabulary(self.teacher.model, int(ids.max()))
        return ids


@dataclass(frozen=True)
class CachedActivationStream:
    """Activations at one hook point that SAELens cached, read in batches of sequences."""

    text: TextSource
    hook_name: str
    batch_size: int
    """Sequences per batch."""
    positions: tuple[int | None, ...] | None = None
    """Arguments of the `slice` of positions whose activations were cached; None for all."""
    excluded_ids: tuple[int, ...] = ()
    """Token ids that are not counted where token ids are cached."""

    @property
    def context_size(self) -> int:
        """Tokens per sequence."""
        return self.text.context_size

    @property
    def tokens_per_batch(self) -> int:
        """Tokens per batch."""
        return self.batch_size * self.context_size

    @property
    def cached(self) -> CachedActivations:
        """The directory of cached activations."""
        assert self.text.cached is not None
        return self.text.cached

    def batches(self, start: int, n_tokens: int) -> Iterator[CachedBatch]:
        """Yield the batches that hold tokens `start` to `n_tokens`.

        Yields:
            (number of the first sequence, activations, which of them are counted).
        """
        first, last = start // self.context_size, -(-n_tokens // self.context_size)
        groups = _groups(islice(self.cached.read(self.hook_name), first, last), self.batch_size)
        for number, group in zip(count(first, self.batch_size), groups, strict=False):
            yield (
                number,
                torch.stack([acts for _, acts in group]),
                torch.stack([self._counted(ids) for ids, _ in group]),
            )

    def warning(self) -> str:
        """Return which tokens are not counted, and what is not known of them."""
        if self.cached.first_token is not None:
            return (
                f"token {self.cached.first_token}, which begins every sequence of the cached activations, is not"
                " counted; other special tokens are not known"
            )
        reason = "sequences begin with different tokens" if self.cached.has_token_ids else "no token ids are cached"
        return (
            f"special tokens in the cached activations are not known, since {reason}: only first positions are left out"
        )

    def _counted(self, ids: Int[Tensor, " position"] | None) -> Bool[Tensor, " position"]:
        """Return which tokens of a sequence are counted."""
        begins_later = self.positions is not None and bool(slice(*self.positions).indices(self.context_size)[0])
        counted = torch.ones(self.context_size, dtype=torch.bool)
        counted[0] = begins_later
        if ids is None:
            return counted
        first = () if self.cached.first_token is None else (self.cached.first_token,)
        return counted & ~torch.isin(ids, torch.tensor([*first, *self.excluded_ids], dtype=ids.dtype))


def open_token_stream(teacher: Teacher, text: TextLike | None, context_size: int, batch_size: int) -> TokenStream:
    """Load a text for a teacher, packed into sequences as measurements pack it.

    Args:
        teacher: the teacher, whose tokenizer is used.
        text: see `load_text`.
        context_size: tokens per sequence.
        batch_size: sequences per batch.

    Raises:
        InputError: the text cannot be loaded, or the teacher does not read sequences of its length.
    """
    tokenizer = tokenizer_of(teacher.model)
    has_bos = tokenizer is not None and tokenizer.bos_token_id is not None
    loaded = load_text(text, tokenizer, context_size=context_size, prepend_bos=has_bos)
    return TokenStream(teacher, loaded, batch_size, prepend_bos=has_bos)


def digest_sequences(ids: Int[Tensor, "batch position"], first: int) -> int:
    """Return a digest of the token ids of some sequences.

    It is a sum over the sequences modulo `DIGEST_MODULUS`, so it does not depend on how they are divided into batches.

    Args:
        ids: token ids.
        first: number of the first sequence in the text.
    """
    total = 0
    for number, row in enumerate(ids.cpu().long().contiguous().numpy(), start=first):
        digest = hashlib.sha256(b"%d " % number + row.tobytes()).digest()
        total += int.from_bytes(digest[:8])
    return total % DIGEST_MODULUS


def model_input(model: HookedModel, ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Return token ids that a model accepts, on its device.

    Positions without a token, to which no token before them attends, have the id 0.
    """
    return copy_to_device(ids.clamp(min=0), device_of(model))


def mask_positions(shape: Sequence[int], positions: tuple[int | None, ...] | None) -> Bool[Tensor, "batch position"]:
    """Return a mask that is True at some positions of each sequence.

    Args:
        shape: number of sequences, and of positions.
        positions: arguments of the `slice` of positions; None for all. The first position is left out in any case.
    """
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    chosen = range(shape[1])[slice(*(positions or (None,)))]
    mask[:, torch.tensor(chosen, dtype=torch.int64)] = True
    mask[:, 0] = False
    return mask


def _groups(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while group := list(islice(rows, size)):
        yield group
