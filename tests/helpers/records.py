"""Synthetic feature statistics, and the options of a short training."""

from typing import Any

import numpy as np

from tl_distill_floor.results.block_sums import BlockSums
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.head_floor import HeadFloor

QUICK = ("--tokens", 2048, "--lr", 1e-2, "--batch-size", 4, "--context-size", 32, "--start", "random", "--seed", 1)
"""Options of a training that takes seconds. With the teacher's own seed, a random student would be its copy."""


def stats_of(
    cost: np.ndarray | None,
    *,
    rate: float = 0.1,
    n_tokens: int = 1000,
    blocks: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    **fields: Any,
) -> FeatureStats:
    """Return synthetic feature statistics.

    Args:
        cost: cost of each feature per token; not used with `blocks`.
        rate: firing rate of every feature.
        n_tokens: number of tokens.
        blocks: (tokens [block], firing counts [block, feature], summed costs [block, feature]) in place of the rest.
        fields: values of other fields of `FeatureStats`.
    """
    if blocks is None:
        assert cost is not None
        counts = np.full(len(cost), round(rate * n_tokens))
        blocks = (
            np.array([n_tokens // 2, n_tokens - n_tokens // 2]),
            np.stack([counts // 2, counts - counts // 2]),
            np.stack([cost, cost]) * n_tokens / 2,
        )
    tokens, counts, costs = (np.asarray(sums) for sums in blocks)
    n_features = counts.shape[1]
    values: dict[str, Any] = {
        "model_name": "made", "hook_name": "blocks.1.hook_resid_post", "sae_name": "made", "text_name": "made",
        "d_model": 16,
        "n_tokens": int(tokens.sum()), "n_cost_tokens": int(tokens.sum()), "n_masked": 0,
        "firing_count": counts.sum(0).astype(np.int64),
        "sum_act": counts.sum(0).astype(float), "sum_act_sq": costs.sum(0).astype(float),
        "decoder_norm": np.ones(n_features), "sum_cost": costs.sum(0).astype(float), "cost_unit": "mse",
        "sampled_tokens": 4, "sampled_sum": np.zeros(16), "sampled_sum_sq": 8.0, "sampled_error_sq": 1.0,
        "blocks": BlockSums(*[tokens.astype(np.int64)] * 2, counts.astype(np.int64), costs.astype(float)),
    }  # fmt: skip
    return FeatureStats(**(values | fields))


def made_head_floor(**changes: Any) -> HeadFloor:
    """Return a head floor of a teacher of 64 dimensions, at four widths below its own.

    Args:
        changes: values of fields that are different.
    """
    fields: dict[str, Any] = {
        "model_name": "made",
        "text_name": "text",
        "d_model": 64,
        "vocab_size": 300,
        "widths": (4, 8, 16, 32),
        "floor": (0.4, 0.2, 0.05, 0.01),
        "standard_error": (0.01, 0.005, 0.001, 0.0002),
        "half_steps": (0.41, 0.21, 0.052, 0.011),
        "encoded": (0.6, 0.35, 0.12, 0.03),
        "steps": 200,
        "n_train_tokens": 10_000,
        "n_heldout_tokens": 1000,
    }
    return HeadFloor(**fields | changes)


def narrow_head_floor(**changes: Any) -> HeadFloor:
    """Return a head floor at widths from 2 to 16; for the arguments see `made_head_floor`."""
    losses = {
        "widths": (2, 4, 8, 16),
        "floor": (0.8, 0.4, 0.2, 0.05),
        "standard_error": (0.01,) * 4,
        "half_steps": (0.9, 0.5, 0.3, 0.1),
        "encoded": (1.0, 0.6, 0.35, 0.12),
    }
    return made_head_floor(**losses | changes)
