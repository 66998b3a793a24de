"""A teacher's activations without end, shuffled within blocks of a text: what an SAE is trained on."""

from collections.abc import Generator
from itertools import count
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError

TOKENS_A_STEP = 4096
MIXED_TOKENS = 2**17
"""Tokens of a block, whose activations are shuffled together."""


def shuffled_activations(
    model: Any, hook_name: str, rows: Int[Tensor, "sequence position"], batch_size: int, seed: int, start: int = 0
) -> Generator[Float[Tensor, "token d_model"], None, None]:
    """Batches of 4,096 activations, special tokens left out; what is left over of a block is dropped.

    A batch is decided by its number and the seed alone, so that a training can go on from any of them.

    Args:
        model: a HookedTransformer or TransformerBridge.
        hook_name: the hook point that is read.
        rows: token ids, read again from the start when they end.
        batch_size: sequences a forward pass.
        seed: of the order within blocks.
        start: number of the first batch; the blocks before its own are not run through the model.

    Raises:
        InputError: all tokens are special.
    """
    from tl_distill_floor.measuring.hooks import reader
    from tl_distill_floor.measuring.subject import device_of, special_ids

    special = torch.tensor(special_ids(model), dtype=rows.dtype)
    if torch.isin(rows, special).all():
        raise InputError("the text holds special tokens alone; give another text")
    size = -(-MIXED_TOKENS // rows.shape[1])
    with reader(model, [hook_name]) as read:

        def activations(
            ids: Int[Tensor, "batch position"], counts: Bool[Tensor, "batch position"]
        ) -> Float[Tensor, "token d_model"]:
            (found,) = read(ids.to(device_of(model)))
            return found[counts.to(found.device)].float()

        for block in count():
            ids = rows[(block * size + torch.arange(size)) % len(rows)]
            counts = ~torch.isin(ids, special)
            n_counted = int(counts.sum())
            n_batches = n_counted // TOKENS_A_STEP or min(n_counted, 1)
            if start >= n_batches:
                start -= n_batches
                continue
            parts = zip(torch.split(ids, batch_size), torch.split(counts, batch_size), strict=True)
            acts = torch.cat([activations(*part) for part in parts])
            order = torch.randperm(n_counted, generator=torch.Generator().manual_seed(seed + block)).to(acts.device)
            for number in range(start, n_batches):
                yield acts[order[number * TOKENS_A_STEP : (number + 1) * TOKENS_A_STEP]]
            start = 0
