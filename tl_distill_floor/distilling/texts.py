"""The text that students are trained on, and the text that they are judged on."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.distilling.config import DistillConfig
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.token_stream import TokenStream, open_token_stream
from tl_distill_floor.sources.teachers import Teacher, check_context

HELD_OUT_SHARE = 0.1
"""Share of what is read of a text that is held out, at its end, where no other text is given for that."""
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Texts:
    """Sequences to train on and sequences to judge on; `stream` says which of their tokens count."""

    stream: TokenStream
    train: Int[Tensor, "train position"]
    heldout: Int[Tensor, "heldout position"]
    fingerprint: str
    """Differs when one of the texts, or how it is cut, does."""
    settings: dict[str, Any]

    def batch(self, step: int, training: DistillConfig) -> Int[Tensor, "batch position"]:
        """The sequences of a step, counted from 0: the text in an order of its own in every pass over it."""
        first, n = step * training.batch_size, len(self.train)
        places = range(first, first + training.batch_size)
        orders = {e: self._order(e, training.seed) for e in {place // n for place in places}}
        return self.train[torch.stack([orders[place // n][place % n] for place in places])]

    def steps(self, training: DistillConfig) -> int:
        return max(1, round(training.n_tokens / (training.batch_size * self.train.shape[1])))

    def _order(self, epoch: int, seed: int) -> Int[Tensor, " sequence"]:
        random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train), generator=random)


def texts_of(
    teacher: Teacher, text: Any, heldout: Any, training: DistillConfig, context_size: int | None = None
) -> Texts:
    """Read as much as the training needs.

    Args:
        teacher: whose tokenizer is taken.
        text: see `load_text`.
        heldout: the same; the last tenth of what is read of `text`, or less, when None.
        training: how much is needed.
        context_size: tokens a sequence; 256, or what the teacher reads at most, when None.

    Raises:
        InputError: a text cannot be read, or holds less than a batch.
    """
    check_context(teacher.model, context_size)
    stream = open_token_stream(teacher, text, context_size or min(256, int(teacher.model.cfg.n_ctx)), READ_AT_ONCE)
    wanted, n_heldout = (-(-n // stream.context_size) for n in (training.n_tokens, training.n_heldout_tokens))
    if heldout is None:
        read = stream.read_sequences((round(wanted / (1 - HELD_OUT_SHARE)) + 1) * stream.context_size)
        n_heldout = min(n_heldout, max(1, int(len(read) * HELD_OUT_SHARE)))
        train, held = read[:-n_heldout], read[-n_heldout:]
    else:
        judging = open_token_stream(teacher, heldout, stream.context_size, READ_AT_ONCE)
        train, held = (s.read_sequences(n * s.context_size) for s, n in ((stream, wanted), (judging, n_heldout)))
        if held.shape[1:] != train.shape[1:] or not len(held):
            raise InputError(f"the held-out text holds no sequence of {train.shape[1]} tokens; give more of it")
    if len(train) < training.batch_size:
        raise InputError(
            f"{stream.text.name} holds {len(train)} sequences of {stream.context_size} tokens to train on, a batch is"
            f" {training.batch_size}; give more text, or a smaller --batch-size"
        )
    names = {"text": stream.text.name, "heldout": (stream if heldout is None else judging).text.name}
    prints = [(stream if heldout is None else judging).text.fingerprint, stream.text.fingerprint]
    fingerprint = " ".join([*prints, str(tuple(train.shape)), str(len(held))])
    return Texts(stream, train, held, fingerprint, names | {"context_size": stream.context_size})
