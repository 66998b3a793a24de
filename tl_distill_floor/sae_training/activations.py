"""Yield shuffled activations of a teacher, without end: the training data of an SAE."""

from collections.abc import Generator
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import activation_reader, check_finite
from tl_distill_floor.measuring.token_stream import TokenStream, model_input
from tl_distill_floor.sae_training.config import TOKENS_PER_STEP

TOKENS_PER_BLOCK = 2**17
"""Tokens whose activations are shuffled together."""
ActivationBatches = Generator[Float[Tensor, "token d_model"], None, None]


def shuffled_activations(
    stream: TokenStream, hook_name: str, rows: Int[Tensor, "sequence position"], seed: int, start: int = 0
) -> ActivationBatches:
    """Yield batches of 4,096 activations, shuffled within blocks of the text.

    Only counted tokens are used (see `TokenStream.counted`), and the rest of a block that fills no batch is dropped. A
    batch depends only on its number and the seed, so that a training can resume at any batch. Between two batches the
    teacher has no hooks.

    Args:
        stream: the teacher, and the number of sequences per forward pass.
        hook_name: the hook point that is read.
        rows: token ids, read again from the start when they end.
        seed: seed of the order within blocks.
        start: number of the first batch; earlier blocks are not run through the teacher.

    Yields:
        Activations [token, d_model] in fp32.

    Raises:
        InputError: no token is counted, or an activation is not finite.
    """
    if not stream.counted(rows).any():
        raise InputError("the text holds only special tokens; give another text")
    n_sequences = -(-TOKENS_PER_BLOCK // rows.shape[1])
    for block in count():
        ids = rows[(block * n_sequences + torch.arange(n_sequences)) % len(rows)]
        counted = stream.counted(ids)
        n_counted = int(counted.sum())
        n_batches = n_counted // TOKENS_PER_STEP or min(n_counted, 1)
        if start >= n_batches:
            start -= n_batches
            continue
        order = torch.randperm(n_counted, generator=torch.Generator().manual_seed(seed * 1_000_003 + block))
        order = order.repeat(-(-TOKENS_PER_STEP // n_counted))  # a small block repeats tokens to fill its batch
        yield from _batches(_read_activations(stream, hook_name, ids, counted), order, range(start, n_batches))
        start = 0


def _batches(
    activations: Float[Tensor, "token d_model"], order: Int[Tensor, " index"], numbers: range
) -> ActivationBatches:
    for number in numbers:
        indices = order[number * TOKENS_PER_STEP : (number + 1) * TOKENS_PER_STEP]
        yield activations[indices.to(activations.device)]


def _read_activations(
    stream: TokenStream, hook_name: str, ids: Int[Tensor, "batch position"], counted: Bool[Tensor, "batch position"]
) -> Float[Tensor, "token d_model"]:
    """Return the activations of the counted tokens, in fp32."""
    model, chunks = stream.teacher.model, []
    with activation_reader(model, [hook_name]) as read:
        for ids_chunk, counted_chunk in zip(
            *(torch.split(tensor, stream.batch_size) for tensor in (ids, counted)), strict=True
        ):
            (activation,) = read(model_input(model, ids_chunk))
            chunks.append(activation[counted_chunk.to(activation.device)].float())
    activations = torch.cat(chunks)
    check_finite(activations, hook_name)
    return activations
