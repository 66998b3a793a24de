"""Synthetic token ids, SAEs, codes and statistics of any size, for the speed and growth benchmarks."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tl_distill_floor import FeatureStats, FloorPrediction, floor_from_stats
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import N_CONTEXTS, WINDOW, FeatureContexts
from tl_distill_floor.sources.devices import device_of

CONTEXT = 256
MAX_DENSE_CODES = 2**23
"""Numbers in a dense matrix of codes that is held in memory at once."""


def random_ids(n_tokens: int) -> torch.Tensor:
    """Return random token ids [sequence, CONTEXT]."""
    return torch.randint(1000, 4000, (n_tokens // CONTEXT, CONTEXT), generator=torch.Generator().manual_seed(0))


def random_sae(model: Any, d_sae: int, hook_name: str, l0: int = 40) -> Any:
    """Return a random JumpReLU SAE on the model's device, whose threshold lets about `l0` features per token fire."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    device = device_of(model)
    d_in, metadata = model.cfg.d_model, SAEMetadata(hook_name=hook_name, context_size=CONTEXT, prepend_bos=False)
    config = JumpReLUSAEConfig(
        d_in=d_in, d_sae=d_sae, normalize_activations="none", metadata=metadata, device=str(device)
    )
    sae = JumpReLUSAE(config).to(device)
    torch.manual_seed(0)
    with torch.no_grad(), activation_reader(model, [hook_name]) as read:
        sae.W_enc.copy_(torch.randn(d_in, d_sae, device=device) / d_in**0.5)
        sae.W_dec.copy_(sae.W_enc.T)
        pre_activation = read(random_ids(CONTEXT).to(device))[0].flatten(0, 1)[1::8].float() @ sae.W_enc
        sae.threshold.fill_(float(pre_activation.flatten().topk(len(pre_activation) * l0).values[-1]))
    return sae


@lru_cache(maxsize=1)
def random_codes(n_features: int, l0: int, n_tokens: int) -> Codes:
    """Return codes with `l0` features per token, whose firing rates decrease as i^-½."""
    random = np.random.default_rng(0)
    minus_log_rate = 0.5 * np.log(np.arange(1, n_features + 1))
    parts, tokens_per_part = [], max(1, MAX_DENSE_CODES // n_features)
    for first in range(0, n_tokens, tokens_per_part):
        dense = np.zeros((min(tokens_per_part, n_tokens - first), n_features), dtype=np.float32)
        # Gumbel noise makes the smallest keys a sample without replacement.
        sampled = np.argpartition(minus_log_rate - random.gumbel(size=dense.shape), l0, axis=1)[:, :l0]
        np.put_along_axis(dense, sampled, random.random(sampled.shape) + 0.5, axis=1)
        parts.append(Codes.from_dense(dense))
    return Codes.concatenate(parts)


def prediction_with_contexts(n_features: int) -> FloorPrediction:
    """Return a prediction from statistics whose costs follow a power law, with four contexts per feature."""
    random = np.random.default_rng(0)
    n_tokens = 100_000
    cost = np.arange(1.0, n_features + 1) ** -1.2
    count = np.maximum(1, random.lognormal(np.log(300), 1.5, n_features)).astype(np.int64).clip(max=n_tokens)
    activation = -np.sort(-random.random((n_features, N_CONTEXTS)).astype(np.float32) - 0.1, axis=1)
    window = random.integers(0, 4096, (n_features, N_CONTEXTS, WINDOW)).astype(np.int32)
    contexts = FeatureContexts.from_arrays(activation, np.tile(np.arange(N_CONTEXTS), (n_features, 1)), window)
    contexts = contexts.with_promoted(window[:, 0, :5]).with_strings(lambda token: f" word{token}")
    blocks = BlockSums(np.array([n_tokens]), np.array([n_tokens]), count[None], cost[None] * n_tokens)
    stats = _feature_stats("blocks.12.hook_resid_post", blocks, contexts=contexts)
    return floor_from_stats(stats, [64, 128, 256, 512, 1024])


def stats_with_blocks(n_features: int, hook_name: str, n_blocks: int = 64, block_tokens: int = 4000) -> FeatureStats:
    """Return statistics whose costs follow a power law, with firing counts that vary between the blocks of the text."""
    random = np.random.default_rng(0)
    rate = np.exp(random.normal(np.log(2e-3), 1.5, n_features)).clip(1e-5, 0.5)
    cost_per_token = np.arange(1.0, n_features + 1) ** -1.1 / rate
    blocks = BlockSums(  # with the dtypes that a measurement gives them
        np.full(n_blocks, block_tokens),
        np.full(n_blocks, block_tokens),
        np.empty((n_blocks, n_features), dtype=np.int32),
        np.empty((n_blocks, n_features), dtype=np.float32),
    )
    for count, cost in zip(blocks.firing_count, blocks.cost, strict=True):
        count[:] = random.poisson(rate * block_tokens).clip(max=block_tokens)
        cost[:] = count * cost_per_token
    return _feature_stats(hook_name, blocks)


def _feature_stats(hook_name: str, blocks: BlockSums, contexts: FeatureContexts | None = None) -> FeatureStats:
    """Return statistics with the given sums over blocks of the text."""
    count, cost = blocks.firing_count.sum(0, dtype=np.int64), blocks.cost.sum(0, dtype=np.float64)
    return FeatureStats(
        "made-up", hook_name, "made-up-sae", "made-up text", 1024,
        int(blocks.n_tokens.sum()), int(blocks.n_cost_tokens.sum()), 0,
        count, count.astype(float), count * 2.0, np.ones(len(count)), cost, "mse", 4, np.zeros(1024), 8.0, 1.0,
        blocks, contexts=contexts,
    )  # fmt: skip
