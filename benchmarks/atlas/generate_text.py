"""Generate training text with a teacher, so that its students do not see the same tokens again and again."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tl_distill_floor.measuring.sampling import sample_outcomes

MOST_SEQUENCES = {"cpu": 512, "cuda": 4096}
"""Sequences that are generated at a time, by type of device."""


@torch.no_grad()
def generate_sequences(
    model: PreTrainedModel, first_token: int, n_tokens: int, context_size: int, seed: int = 0
) -> Tensor:
    """Sample sequences from a language model at temperature 1.

    Args:
        model: the language model.
        first_token: token that every sequence begins with.
        n_tokens: tokens in all, rounded up to full sequences.
        context_size: tokens per sequence.
        seed: seed of the samples.

    Returns:
        Token ids [sequence, position], on the CPU.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    n_left = -(-n_tokens // context_size)
    batches = []
    while n_left > 0:
        n_sequences = min(n_left, MOST_SEQUENCES[model.device.type])
        batches.append(_generate_batch(model, first_token, n_sequences, context_size, generator).cpu())
        n_left -= n_sequences
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # the cache of keys and values grew token by token, in blocks of every size
    return torch.cat(batches)


def _generate_batch(
    model: PreTrainedModel, first_token: int, n_sequences: int, context_size: int, generator: torch.Generator
) -> Tensor:
    """Return token ids [sequence, position] of one batch of samples."""
    ids = torch.full((n_sequences, context_size), first_token, device=model.device)
    cache = DynamicCache(config=model.config)
    for position in range(1, context_size):
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(ids[:, position - 1 : position], past_key_values=cache, use_cache=True).logits[:, -1]
        uniform = torch.rand(n_sequences, device=ids.device, generator=generator)
        ids[:, position] = sample_outcomes(logits.float().softmax(-1), uniform)
    return ids
