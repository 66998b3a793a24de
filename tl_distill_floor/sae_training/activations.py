"""A teacher's activations without end, shuffled within blocks of a text: what an SAE is trained on."""

from collections.abc import Generator
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import check_finite, reader
from tl_distill_floor.measuring.token_stream import TokenStream, device_of

TOKENS_A_STEP = 4096
MIXED_TOKENS = 2**17
"""Tokens of a block, whose activations are shuffled together."""
Stream = Generator[Float[Tensor, "token d_model"], None, None]


def shuffled_activations(
    stream: TokenStream, hook_name: str, rows: Int[Tensor, "sequence position"], seed: int, start: int = 0
) -> Stream:
    """Batches of 4,096 activations of the tokens that count; what is left over of a block is dropped.

    A batch is decided by its number and the seed alone, so that a training can go on from any of them. Between two
    batches the teacher is as it was.

    Args:
        stream: the teacher, which tokens count, and how many sequences a forward pass takes.
        hook_name: the hook point that is read.
        rows: token ids, read again from the start when they end.
        seed: of the order within blocks.
        start: number of the first batch; the blocks before its own are not run through the model.

    Raises:
        InputError: no token counts, or an activation is not finite.
    """
    if not stream.counted(rows).any():
        raise InputError("the text holds no tokens but special ones; give another text")
    size = -(-MIXED_TOKENS // rows.shape[1])
    for block in count():
        ids = rows[(block * size + torch.arange(size)) % len(rows)]
        counts = stream.counted(ids)
        n_counted = int(counts.sum())
        n_batches = n_counted // TOKENS_A_STEP or min(n_counted, 1)
        if start >= n_batches:
            start -= n_batches
            continue
        order = torch.randperm(n_counted, generator=torch.Generator().manual_seed(seed * 1_000_003 + block))
        order = order.repeat(-(-TOKENS_A_STEP // n_counted))  # of a small block some tokens come more than once
        yield from _batches(_activations(stream, hook_name, ids, counts), order, range(start, n_batches))
        start = 0


def _batches(acts: Float[Tensor, "token d_model"], order: Int[Tensor, " place"], numbers: range) -> Stream:
    for number in numbers:
        yield acts[order[number * TOKENS_A_STEP : (number + 1) * TOKENS_A_STEP].to(acts.device)]


def _activations(
    stream: TokenStream, hook_name: str, ids: Int[Tensor, "batch position"], counts: Bool[Tensor, "batch position"]
) -> Float[Tensor, "token d_model"]:
    """In fp32, of the tokens that count."""
    assert stream.teacher is not None
    model, found = stream.teacher.model, []
    with reader(model, [hook_name]) as read:
        for some, counted in zip(*(torch.split(a, stream.batch_size) for a in (ids, counts)), strict=True):
            (acts,) = read(some.to(device_of(model)))
            found.append(acts[counted.to(acts.device)].float())
    whole = torch.cat(found)
    check_finite(whole, hook_name)
    return whole
