"""`TextSplit`: the sequences that students are trained on, and the held-out sequences."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, TextLike
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.losses import NO_LABEL
from tl_distill_floor.distilling.training.overlap import overlap_warnings
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.token_stream import TokenStream, digest_sequences, open_token_stream
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import choose_context_size, tokenizer_of

HELDOUT_SHARE = 0.1
"""Share of the text, at its end, that is held out if no held-out text is given."""
SEQUENCES_PER_READ = 256
"""Sequences per batch in which a text is read."""


@dataclass(frozen=True)
class TextSplit:
    """Training sequences and held-out sequences of the same length."""

    stream: TokenStream
    """The training text; its `counted` says which tokens are counted."""
    train: Int[Tensor, "train position"]
    """Token ids of the training sequences."""
    heldout: Int[Tensor, "heldout position"]
    """Token ids of the held-out sequences."""
    fingerprint: str
    """Digests of both texts' token ids."""
    settings: dict[str, Any]
    """Names of the texts, and tokens per sequence."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind when using the losses: held-out text that is trained on."""

    @property
    def context_size(self) -> int:
        """Tokens per sequence."""
        return int(self.train.shape[1])

    def batch(self, step: int, config: DistillConfig) -> Int[Tensor, "batch position"]:
        """Return the training sequences of a step.

        The sequences are shuffled again in every pass over the text.

        Args:
            step: the step, counted from 0.
            config: its `batch_size` and `seed` are used.
        """
        first, n_sequences = step * config.batch_size, len(self.train)
        positions = [divmod(position, n_sequences) for position in range(first, first + config.batch_size)]
        return self.train[[int(_order(n_sequences, config.seed, epoch)[index]) for epoch, index in positions]]

    def labels(self, ids: Int[Tensor, "sequence position"]) -> Int[Tensor, "sequence position"]:
        """Return the token that follows each token.

        A position has `NO_LABEL` if it is the last of its sequence, or if a separator of documents follows. No text
        continues with a separator: it is there because documents are packed into sequences.

        Args:
            ids: token ids.
        """
        separators = torch.tensor(separator_ids(self.stream.teacher.model), dtype=ids.dtype, device=ids.device)
        following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], NO_LABEL)], dim=1)
        return following.masked_fill(torch.isin(following, separators), NO_LABEL)

    def n_steps(self, config: DistillConfig) -> int:
        """Return the number of steps of a training."""
        return max(1, round(config.n_tokens / (config.batch_size * self.context_size)))


def read_text_split(
    teacher: Teacher,
    text: TextLike | None,
    heldout: TextLike | None,
    config: DistillConfig,
    context_size: int | None = None,
) -> TextSplit:
    """Read the training text and the held-out text, each only as far as it is needed.

    Args:
        teacher: the teacher, whose tokenizer is used.
        text: training text; see `load_text`.
        heldout: held-out text; if None, the end of what is read of `text`, at most a tenth of it.
        config: its `n_tokens`, `n_heldout_tokens` and `batch_size` are used.
        context_size: tokens per sequence; if None, 256 or the teacher's context if that is shorter.

    Raises:
        InputError: a text cannot be read, or has too few sequences.
    """
    stream = open_token_stream(teacher, text, choose_context_size(teacher.model, context_size), SEQUENCES_PER_READ)
    if heldout is None:
        heldout_stream = stream
        train_ids, heldout_ids = _split_sequences(stream, config)
    else:
        heldout_stream = open_token_stream(teacher, heldout, stream.context_size, SEQUENCES_PER_READ)
        train_ids = stream.read_sequences(config.n_tokens)
        heldout_ids = heldout_stream.read_sequences(config.n_heldout_tokens)
        if heldout_ids.shape[1:] != train_ids.shape[1:] or not len(heldout_ids):
            raise InputError(
                f"the held-out text has no sequence of {train_ids.shape[1]} tokens; give more text with --heldout"
            )
    if len(train_ids) < config.batch_size:
        least = config.batch_size * stream.context_size
        more = "give more text" if config.n_tokens >= least else f"set --tokens {least} or more"
        raise InputError(
            f"{len(train_ids)} training sequences of {stream.context_size} tokens were read from {stream.text.name},"
            f" fewer than a batch of {config.batch_size}; {more}, or a smaller --batch-size"
        )
    return TextSplit(
        stream=stream,
        train=train_ids,
        heldout=heldout_ids,
        fingerprint=f"{digest_sequences(train_ids, 0)} {digest_sequences(heldout_ids, 0)}",
        settings={
            "text": stream.text.name,
            "heldout": heldout_stream.text.name,
            "context_size": stream.context_size,
        },
        warnings=overlap_warnings(train_ids, heldout_ids),
    )


def separator_ids(model: HookedModel) -> list[int]:
    """Return the id of the token that separates packed documents: BOS, or EOS for a tokenizer without BOS."""
    tokenizer = tokenizer_of(model)
    ids = (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return [int(number) for number in ids if number is not None][:1]


def _split_sequences(
    stream: TokenStream, config: DistillConfig
) -> tuple[Int[Tensor, "train position"], Int[Tensor, "heldout position"]]:
    """Return (training sequences, held-out sequences) of one text."""
    n_train, wanted = (-(-n // stream.context_size) for n in (config.n_tokens, config.n_heldout_tokens))
    sequences = stream.read_sequences((round(n_train / (1 - HELDOUT_SHARE)) + 1) * stream.context_size)
    n_heldout = min(wanted, max(1, int(len(sequences) * HELDOUT_SHARE)))
    return sequences[:-n_heldout], sequences[-n_heldout:]


@lru_cache(maxsize=2)
def _order(n_sequences: int, seed: int, epoch: int) -> Int[Tensor, " sequence"]:
    """Return the order of the training sequences in one pass over the text."""
    return torch.randperm(n_sequences, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
