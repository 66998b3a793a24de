"""Sample outputs from a teacher's distribution, and the gradient of their log-probability."""

import hashlib

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tl_distill_floor.sources.devices import copy_to_device

NUMBERS_AT_ONCE = 2**22
"""Numbers (activations or logits) held at a time, in addition to what the teacher itself holds."""
NUMBERS_AT_ONCE_GPU = 2**26
"""The same on a GPU, where every chunk costs the time of some thirty kernel launches."""
GROUP_SIZE = 256
"""Outcomes in a group: first a group is sampled, then an outcome of the group."""


def uniform_hash(name: str) -> float:
    """Return a number from [0, 1) that depends on a name alone, distributed uniformly over names.

    Example:
        >>> 0 <= uniform_hash("sequence 3") < 1
        True
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def one_of_each_group(numbers: Int64[Tensor, " number"], size: int) -> Bool[Tensor, " number"]:
    """Return which numbers are chosen: one of each group of `size` successive ones, at random.

    Sequences or positions at a fixed distance could follow a period of the text, such as that of two interleaved
    datasets.

    Args:
        numbers: numbers of sequences, or positions.
        size: numbers in a group.

    Example:
        >>> one_of_each_group(torch.arange(8), 4).view(2, 4).sum(1).tolist()
        [1, 1]
    """
    places = (divmod(number, size) for number in numbers.tolist())
    return torch.tensor([place == int(size * uniform_hash(f"group {group}")) for group, place in places])


def spread_at_random(n: int, total: int) -> Int64[Tensor, " chosen"]:
    """Return `n` indices below `total`, ascending: one at random from each of `n` parts of equal size.

    They are all indices if there are fewer. The same arguments give the same indices.

    Example:
        >>> (spread_at_random(3, 12) // 4).tolist()
        [0, 1, 2]
    """
    n = min(n, total)
    starts = torch.arange(n + 1) * total // max(1, n)
    uniform = torch.tensor([uniform_hash(f"part {part}") for part in range(n)], dtype=torch.float64)
    chosen: Tensor = starts[:-1] + (uniform * starts.diff()).long()
    return chosen


def score_gradient(
    logits: Float[Tensor, "batch position vocabulary"], uniform: Float[Tensor, "batch position"]
) -> Float[Tensor, "batch position vocabulary"]:
    """Compute ∂ log p(y) / ∂ logits for an output y sampled from p = softmax(logits): 1 at y, minus p.

    Args:
        logits: the teacher's logits.
        uniform: random numbers from [0, 1), which decide the samples.

    Returns:
        The gradient at each position.
    """
    rows, targets = rearrange(logits, "batch position vocabulary -> (batch position) vocabulary"), uniform.flatten()
    targets = copy_to_device(targets, logits.device)
    at_once = NUMBERS_AT_ONCE if rows.device.type == "cpu" else NUMBERS_AT_ONCE_GPU
    gradient, size = torch.empty_like(rows), max(1, at_once // rows.shape[1])
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        p = rows[chunk].softmax(-1, dtype=torch.float32)
        outcome = sample_outcomes(p, targets[chunk])
        gradient[chunk] = p.neg_().scatter_add_(1, outcome[:, None], torch.ones_like(p[:, :1]))
    return gradient.view_as(logits)


def sample_outcomes(p: Float[Tensor, "row outcome"], uniform: Float[Tensor, " row"]) -> Int64[Tensor, " row"]:
    """Sample one outcome per row by inverting the cumulative distribution.

    A cumulative sum over all outcomes would take as long as the logits; so the group is sampled first.

    Args:
        p: probabilities of each row; their sum need not be exactly 1.
        uniform: random numbers from [0, 1).

    Returns:
        The first outcome of each row whose cumulative probability exceeds `uniform` times the row's sum.
    """
    group_sums = _sum_groups(p).cumsum(1)
    target = uniform[:, None] * group_sums[:, -1:]
    group = torch.searchsorted(group_sums, target, right=True).clamp_(max=group_sums.shape[1] - 1)
    earlier_groups = torch.where(group > 0, group_sums.gather(1, (group - 1).clamp_(min=0)), 0.0)
    outcomes = group * GROUP_SIZE + torch.arange(GROUP_SIZE, device=p.device)
    exists = outcomes < p.shape[1]
    cumulative = (p.gather(1, outcomes.clamp(max=p.shape[1] - 1)) * exists).cumsum(1)
    # Rounding can put the target above the group's own sum; then one of its last outcomes with p > 0 is sampled.
    target = torch.minimum(target - earlier_groups, cumulative[:, -1:] * (1.0 - 1e-6))
    index = torch.searchsorted(cumulative, target, right=True).clamp_(max=GROUP_SIZE - 1)
    sampled: Tensor = outcomes.gather(1, index)[:, 0].clamp_(max=p.shape[1] - 1)
    return sampled


def _sum_groups(p: Float[Tensor, "row outcome"]) -> Float[Tensor, "row group"]:
    """Sum the probabilities of each group of `GROUP_SIZE` outcomes; the last group may be smaller."""
    n_full, n_rest = divmod(p.shape[1], GROUP_SIZE)
    full = p[:, : n_full * GROUP_SIZE].reshape(len(p), n_full, GROUP_SIZE).sum(2)
    return torch.cat([full, p[:, n_full * GROUP_SIZE :].sum(1, keepdim=True)], dim=1) if n_rest else full
