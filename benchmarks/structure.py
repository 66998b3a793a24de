"""Find which part of the features' co-activation lets a bottleneck student pack real features so well.

    tl-floor measure --cost energy && python benchmarks/structure.py runs/tiny-prose --out structure.json    # 10 min

Bottleneck students are trained on the codes of a run, and on surrogates of them. A surrogate keeps the values of every
feature, and so its firing rate and amplitudes, but reassigns them to other tokens:

- `shuffled`: to any token, feature by feature.
- `in its sequence`: to a token of the same sequence, which keeps the topic.
- `on its token`: to a position with the same word piece, which keeps what the current token determines.
- `16 groups` and `2 random groups`: groups of features move together; 16 groups of features that fire together (by
  hierarchical clustering of their correlations), or 2 random halves.
- `Gaussian`: sampled from a normal copula with the features' own values as margins and, for each pair of features, the
  probability that both fire. It keeps the second moments only.

`linear` is the loss of the best linear code, x̂ = W Vᵀ x + b, which depends on the second moments only and needs no
training.
"""

import argparse
import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm

from tl_distill_floor import FeatureStats, independent_floor
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.predicting.simulation import train_bottlenecks
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.sources.teachers import special_token_ids
from tl_distill_floor.storage.atomic import write_atomically

KINDS = ("real", "on its token", "2 random groups", "16 groups", "in its sequence", "Gaussian", "shuffled")
TOKENS_AT_ONCE = 8192
MIN_CHANCE_TOKENS = 5
"""Pairs of features that would fire together on fewer tokens by chance do not count in `share_of_excess`."""


def main() -> None:
    """Train a student on every kind of codes that is missing in --out, and print the floors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--widths", default="16,32,64,128")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("structure.json"))
    options = parser.parse_args()
    stats, widths = FeatureStats.load(options.run), np.array([int(width) for width in options.widths.split(",")])
    assert stats.codes is not None, "measure with codes"
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["widths"] = widths.tolist()
    results["independent"] = independent_floor(*stats.costs_and_rates(stats.alive()), widths).tolist()
    results["linear"] = linear_floors(stats, widths)
    for kind in KINDS:
        if kind not in results and (codes := surrogate(stats, kind)) is not None:
            simulation = train_bottlenecks(
                dataclasses.replace(stats, codes=codes), widths, steps=options.steps
            ).simulation()
            results[kind] = {
                "floor": simulation.floor[:, 0].tolist(),
                "reached": simulation.reached[:, 0].tolist(),
                "excess_carried": share_of_excess(stats.codes, codes),
            }
            write_atomically(options.out, json.dumps(results).encode())
            print(kind, simulation.floor[:, 0].round(1).tolist(), flush=True)
    print_floors(results)


def print_floors(results: dict[str, Any]) -> None:
    """Print a table of the floors, from the most independent codes to the real ones."""
    table = Table("codes", *(str(width) for width in results["widths"]), box=None)
    for name in ("independent", "linear", *reversed(KINDS)):
        if name in results:
            floors = results[name]["floor"] if isinstance(results[name], dict) else results[name]
            table.add_row(name, *(f"{floor:.4g}" for floor in floors))
    Console().print(table)


def surrogate(stats: FeatureStats, kind: str) -> Codes | None:
    """Return the codes of one kind, or None if the tokens of the text are not available."""
    codes = stats.codes
    one_block, separate = np.zeros(codes.n_tokens, dtype=np.int64), np.arange(codes.n_features)
    if kind == "real":
        return codes
    if kind == "Gaussian":
        return gaussian_codes(codes)
    if kind == "on its token":
        token_id = read_token_ids(stats)
        return None if token_id is None else permute_within_blocks(codes, separate, token_id)
    if kind == "16 groups":
        return permute_within_blocks(codes, correlated_groups(codes, 16), one_block)
    if kind == "2 random groups":
        halves = np.random.default_rng(1).integers(2, size=codes.n_features)
        return permute_within_blocks(codes, halves, one_block)
    return permute_within_blocks(codes, separate, codes.sequence if kind == "in its sequence" else one_block)


def permute_within_blocks(codes: Codes, group: np.ndarray, block: np.ndarray) -> Codes:
    """Move the codes to other tokens of the same block, with one random permutation for each group of features.

    Args:
        codes: the codes.
        group: group of each feature [feature].
        block: block of each token [token].
    """
    random = np.random.default_rng(0)
    token = codes.token
    in_block = np.argsort(block, kind="stable")
    by_group = np.argsort(group[codes.feature], kind="stable")
    ends = np.searchsorted(group[codes.feature][by_group], np.arange(group.max() + 2))
    for start, end in pairwise(ends):
        entries = by_group[start:end]
        target = np.empty(codes.n_tokens, dtype=np.int64)
        target[in_block] = np.lexsort((random.random(codes.n_tokens), block))
        token[entries] = target[token[entries]]
    return codes_from_entries(codes, token, codes.feature, codes.value)


def codes_from_entries(like: Codes, token: np.ndarray, feature: np.ndarray, value: np.ndarray) -> Codes:
    """Return codes of the size of `like` with the given entries, in any order."""
    order = np.lexsort((feature, token))
    row_start = np.searchsorted(token[order], np.arange(like.n_tokens + 1)).astype(np.int64)
    return Codes(like.n_features, row_start, feature[order], value[order], like.sequence)


def read_token_ids(stats: FeatureStats) -> np.ndarray | None:
    """Read the text again and return the token id of every row of the codes; None for any teacher but tiny-prose."""
    if stats.model_name != "tiny-prose" or stats.settings["share_of_codes"] < 1:
        return None
    job = prepare_job("tiny-prose", [None])
    ids = np.concatenate([sequence.numpy()[1:] for sequence in job.stream.text.read()])
    counted = ids[~np.isin(ids, special_token_ids(job.model))]
    return counted[: stats.codes.n_tokens] if len(counted) >= stats.codes.n_tokens else None


def second_moments(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Return how often two features both fire and the mean product of their values, per token [feature, feature]."""
    co_firing = np.zeros((codes.n_features, codes.n_features))
    product = np.zeros_like(co_firing)
    for first in range(0, codes.n_tokens, TOKENS_AT_ONCE):
        tokens = np.arange(first, min(first + TOKENS_AT_ONCE, codes.n_tokens))
        dense = torch.from_numpy(codes.select_tokens(tokens).dense())
        product += (dense.T @ dense).double().numpy()
        fired = (dense != 0).float()
        co_firing += (fired.T @ fired).double().numpy()
    return co_firing / codes.n_tokens, product / codes.n_tokens


def share_of_excess(real: Codes, other: Codes) -> float:
    """Return how much of the real codes' co-firing, beyond that of independent features, other codes have.

    It is the slope of a regression through the origin over pairs of features.
    """
    (real_rate, _), (other_rate, _) = second_moments(real), second_moments(other)
    chance = np.outer(np.diag(real_rate), np.diag(real_rate))
    pairs = np.triu(chance * real.n_tokens > MIN_CHANCE_TOKENS, 1)
    excess = (real_rate - chance)[pairs]
    return float(excess @ (other_rate - chance)[pairs] / (excess @ excess))


def correlated_groups(codes: Codes, n_groups: int) -> np.ndarray:
    """Return a group for each feature, by hierarchical clustering of the correlations of firing."""
    co_firing, _ = second_moments(codes)
    rate = np.diag(co_firing)
    deviation = np.sqrt(np.maximum(rate * (1 - rate), 1e-12))
    correlation = (co_firing - np.outer(rate, rate)) / np.outer(deviation, deviation)
    distance = np.clip(1.0 - correlation, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "ward")
    return fcluster(tree, n_groups, "maxclust") - 1


def linear_floors(stats: FeatureStats, widths: np.ndarray) -> list[float]:
    """Return the codes' weighted variance (MSE) beyond the first d principal components, for each width d."""
    codes = stats.codes
    _, product = second_moments(codes)
    mean = np.bincount(codes.feature, codes.value, codes.n_features) / codes.n_tokens
    scale = stats.decoder_norm
    variance = (product - np.outer(mean, mean)) * np.outer(scale, scale)
    eigenvalues = np.linalg.eigvalsh(variance)[::-1]
    return [float(eigenvalues[int(width) :].sum()) for width in widths]


def gaussian_codes(codes: Codes) -> Codes:
    """Sample codes from a normal copula whose pairs of features fire together as often as the real ones.

    The matrix of correlations is replaced by a positive semidefinite one: negative eigenvalues are set to zero.
    """
    co_firing, _ = second_moments(codes)
    rate = np.clip(np.diag(co_firing), 0.5 / codes.n_tokens, 1 - 1e-6)
    latent = tetrachoric(rate, co_firing)
    eigenvalues, vectors = np.linalg.eigh(latent)
    root = vectors * np.sqrt(np.clip(eigenvalues, 1e-9, None))
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    alive = np.bincount(codes.feature, minlength=codes.n_features) > 0
    sorted_values = [np.sort(codes.value[codes.feature == i]) for i in range(codes.n_features)]
    random, threshold = np.random.default_rng(0), norm.isf(rate)
    parts: list[tuple[np.ndarray, ...]] = []
    for first in range(0, codes.n_tokens, TOKENS_AT_ONCE):
        n_tokens = min(TOKENS_AT_ONCE, codes.n_tokens - first)
        normal = (root @ random.standard_normal((codes.n_features, n_tokens))).T
        token, feature = np.nonzero((normal > threshold) & alive)
        quantile = np.clip(1.0 - norm.sf(normal[token, feature]) / rate[feature], 0.0, 1.0 - 1e-9)
        of_feature = [sorted_values[f] for f in feature]
        value = np.array([values[int(q * len(values))] for values, q in zip(of_feature, quantile, strict=True)])
        parts.append((token + first, feature, value))
    token, feature, value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return codes_from_entries(codes, token, feature.astype(np.int32), value.astype(np.float32))


def tetrachoric(rate: np.ndarray, co_firing: np.ndarray) -> np.ndarray:
    """Return the normal correlations at which features fire together as often as given, by bisection.

    Two standard normal variables of correlation ρ both exceed their thresholds h and k with probability
    p_i p_j + 1/2π ∫ exp(-(h² + k² - 2hk sin t)/(2 cos² t)) dt, for t from 0 to asin(ρ) (Drezner and Wesolowsky 1990).

    Args:
        rate: firing rate [feature].
        co_firing: share of tokens on which two features both fire [feature, feature].
    """
    threshold = norm.isf(rate)
    i, j = np.triu_indices(len(rate), 1)
    excess, h, k = co_firing[i, j] - rate[i] * rate[j], threshold[i], threshold[j]
    nodes, weights = np.polynomial.legendre.leggauss(8)
    low, high = np.full(len(i), -0.95), np.full(len(i), 0.999)
    for _ in range(18):
        rho = (low + high) / 2
        angle = np.arcsin(rho)
        total = np.zeros_like(rho)
        for node, weight in zip(nodes, weights, strict=True):
            t = angle * (node + 1) / 2
            total += weight * np.exp(-(h**2 + k**2 - 2 * h * k * np.sin(t)) / (2 * np.cos(t) ** 2))
        below = total * angle / (4 * np.pi) < excess
        low, high = np.where(below, rho, low), np.where(below, high, rho)
    correlation = np.eye(len(rate))
    correlation[i, j] = correlation[j, i] = (low + high) / 2
    return correlation


if __name__ == "__main__":
    main()
