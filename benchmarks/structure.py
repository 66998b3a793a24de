"""Why real features pack better than independent ones: what of their co-activation a bottleneck student lives on.

    tl-floor measure --cost energy && python benchmarks/structure.py runs/tiny-prose --out structure.json    # 10 min

A bottleneck is trained on surrogates of a run's codes as on the codes themselves. Every surrogate keeps each feature's
values, and so its rate and amplitudes, but deals them to other tokens: `shuffled` to any, feature by feature; `in its
sequence` among the tokens of one sequence, so that the topic stays; `on its token` among the places where the same word
piece stands, so that what the current token says stays; `groups` moves whole groups of features together, 16 that fire
together (by hierarchical clustering of correlations) or 2 at random. `Gaussian` is drawn anew, from a normal copula
with the features' own values as margins and, pair by pair, the probability that both fire: second moments, no more.
`linear` is the best of all linear codes, x̂ = W Vᵀ x + b, which is in the second moments too and needs no training.
"""

import argparse
import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm

from tl_distill_floor import FeatureStats, independent_floor
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.predicting.simulation import simulate
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.sources.teachers import special_token_ids
from tl_distill_floor.storage.atomic import write_atomically

KINDS = ("real", "on its token", "2 random groups", "16 groups", "in its sequence", "Gaussian", "shuffled")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--widths", default="16,32,64,128")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--out", type=Path, default=Path("structure.json"))
    given = options.parse_args()
    stats, widths = FeatureStats.load(given.run), np.array([int(width) for width in given.widths.split(",")])
    assert stats.codes is not None, "measure with codes"
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    found["widths"] = widths.tolist()
    found["independent"] = independent_floor(*stats.costs_and_rates(stats.alive()), widths).tolist()
    found["linear"] = linear_floors(stats, widths)
    for kind in KINDS:
        if kind not in found and (codes := surrogate(stats, kind)) is not None:
            result = simulate(dataclasses.replace(stats, codes=codes), widths, steps=given.steps)
            found[kind] = {
                "floor": result.floor[:, 0].tolist(),
                "reached": result.reached[:, 0].tolist(),
                "excess_carried": excess_carried(stats.codes, codes),
            }
            write_atomically(given.out, json.dumps(found).encode())
            print(kind, result.floor[:, 0].round(1).tolist(), flush=True)
    show(found)


def show(found: dict) -> None:
    table = Table("codes", *(str(width) for width in found["widths"]), box=None)
    for name in ("independent", "linear", *reversed(KINDS)):
        if name in found:
            values = found[name]["floor"] if isinstance(found[name], dict) else found[name]
            table.add_row(name, *(f"{value:.4g}" for value in values))
    Console().print(table)


def surrogate(stats: FeatureStats, kind: str) -> Codes | None:
    """Codes of one kind; None where the text's tokens are not at hand."""
    codes = stats.codes
    everywhere, alone = np.zeros(codes.n_tokens, dtype=np.int64), np.arange(codes.n_features)
    if kind == "real":
        return codes
    if kind == "Gaussian":
        return gaussian(codes)
    if kind == "on its token":
        token = tokens_of(stats)
        return None if token is None else redealt(codes, alone, token)
    if kind == "16 groups":
        return redealt(codes, correlated_groups(codes, 16), everywhere)
    if kind == "2 random groups":
        return redealt(codes, np.random.default_rng(1).integers(2, size=codes.n_features), everywhere)
    return redealt(codes, alone, codes.sequence if kind == "in its sequence" else everywhere)


def redealt(codes: Codes, group: np.ndarray, block: np.ndarray) -> Codes:
    """Each group of features moved as one to other tokens of the same block."""
    random = np.random.default_rng(0)
    token = np.repeat(np.arange(codes.n_tokens), np.diff(codes.row_start))
    in_block = np.argsort(block, kind="stable")
    by_group = np.argsort(group[codes.feature], kind="stable")
    ends = np.searchsorted(group[codes.feature][by_group], np.arange(group.max() + 2))
    for start, end in pairwise(ends):
        entries = by_group[start:end]
        to = np.empty(codes.n_tokens, dtype=np.int64)
        to[in_block] = np.lexsort((random.random(codes.n_tokens), block))
        token[entries] = to[token[entries]]
    return of_entries(codes, token, codes.feature, codes.value)


def of_entries(like: Codes, token: np.ndarray, feature: np.ndarray, value: np.ndarray) -> Codes:
    order = np.lexsort((feature, token))
    row_start = np.searchsorted(token[order], np.arange(like.n_tokens + 1)).astype(np.int64)
    return Codes(like.n_features, row_start, feature[order], value[order], like.sequence)


def tokens_of(stats: FeatureStats) -> np.ndarray | None:
    """The token id under every row of the codes, read again; the embedded teacher's alone."""
    if stats.model_name != "tiny-prose" or stats.settings["share_of_codes"] < 1:
        return None
    job = prepare_job("tiny-prose", [None])
    model = job.model
    ids = np.concatenate([sequence.numpy()[1:] for sequence in job.stream.text.read()])
    kept = ids[~np.isin(ids, special_token_ids(model))]
    return kept[: stats.codes.n_tokens] if len(kept) >= stats.codes.n_tokens else None


def moments(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """(how often two features fire together, mean product of their values), each [feature, feature] per token."""
    together = np.zeros((codes.n_features, codes.n_features))
    product = np.zeros_like(together)
    for first in range(0, codes.n_tokens, 8192):
        part = torch.from_numpy(codes.of_tokens(np.arange(first, min(first + 8192, codes.n_tokens))).dense())
        product += (part.T @ part).double().numpy()
        fired = (part != 0).float()
        together += (fired.T @ fired).double().numpy()
    return together / codes.n_tokens, product / codes.n_tokens


def excess_carried(real: Codes, dealt: Codes) -> float:
    """How much of the co-firing beyond that of independent features is in other codes: the slope over the pairs.

    Of pairs that would meet by chance on more than 5 tokens.
    """
    (together, _), (of_dealt, _) = moments(real), moments(dealt)
    chance = np.outer(np.diag(together), np.diag(together))
    pairs = np.triu(chance * real.n_tokens > 5, 1)
    excess = (together - chance)[pairs]
    return float(excess @ (of_dealt - chance)[pairs] / (excess @ excess))


def correlated_groups(codes: Codes, n_groups: int) -> np.ndarray:
    together, _ = moments(codes)
    rate = np.diag(together)
    spread = np.sqrt(np.maximum(rate * (1 - rate), 1e-12))
    correlation = (together - np.outer(rate, rate)) / np.outer(spread, spread)
    distance = np.clip(1.0 - correlation, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "ward")
    return fcluster(tree, n_groups, "maxclust") - 1


def linear_floors(stats: FeatureStats, widths: np.ndarray) -> list[float]:
    """What is left of the codes' weighted variance beyond the first d principal components."""
    codes = stats.codes
    _, product = moments(codes)
    mean = np.bincount(codes.feature, codes.value, codes.n_features) / codes.n_tokens
    scale = stats.decoder_norm
    variance = (product - np.outer(mean, mean)) * np.outer(scale, scale)
    values = np.linalg.eigvalsh(variance)[::-1]
    return [float(values[int(width) :].sum()) for width in widths]


def gaussian(codes: Codes) -> Codes:
    """Codes of a normal copula whose pairs fire together as often as the real ones, nearest positive semidefinite."""
    together, _ = moments(codes)
    rate = np.clip(np.diag(together), 0.5 / codes.n_tokens, 1 - 1e-6)
    latent = tetrachoric(rate, together)
    values, vectors = np.linalg.eigh(latent)
    root = vectors * np.sqrt(np.clip(values, 1e-9, None))
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    there = np.bincount(codes.feature, minlength=codes.n_features) > 0
    own = [np.sort(codes.value[codes.feature == i]) for i in range(codes.n_features)]
    random, level = np.random.default_rng(0), norm.isf(rate)
    found: list[tuple[np.ndarray, ...]] = []
    for first in range(0, codes.n_tokens, 8192):
        n = min(8192, codes.n_tokens - first)
        normal = (root @ random.standard_normal((codes.n_features, n))).T
        token, feature = np.nonzero((normal > level) & there)
        rank = np.clip(1.0 - norm.sf(normal[token, feature]) / rate[feature], 0.0, 1.0 - 1e-9)
        value = np.array([own[f][int(r * len(own[f]))] for f, r in zip(feature, rank, strict=True)])
        found.append((token + first, feature, value))
    token, feature, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return of_entries(codes, token, feature.astype(np.int32), value.astype(np.float32))


def tetrachoric(rate: np.ndarray, together: np.ndarray) -> np.ndarray:
    """The normal correlation at which two features fire together that often, by bisection for all pairs at once.

    Both exceed their thresholds h, k with probability p_i p_j + 1/2π times the integral of
    exp(-(h² + k² - 2hk sin t)/(2 cos² t)) over t from 0 to asin(ρ) (Drezner and Wesolowsky 1990).
    """
    level = norm.isf(rate)
    i, j = np.triu_indices(len(rate), 1)
    wanted, h, k = together[i, j] - rate[i] * rate[j], level[i], level[j]
    x, weight = np.polynomial.legendre.leggauss(8)
    low, high = np.full(len(i), -0.95), np.full(len(i), 0.999)
    for _ in range(18):
        rho = (low + high) / 2
        angle = np.arcsin(rho)
        total = np.zeros_like(rho)
        for node, w in zip(x, weight, strict=True):
            t = angle * (node + 1) / 2
            total += w * np.exp(-(h**2 + k**2 - 2 * h * k * np.sin(t)) / (2 * np.cos(t) ** 2))
        below = total * angle / (4 * np.pi) < wanted
        low, high = np.where(below, rho, low), np.where(below, high, rho)
    found = np.eye(len(rate))
    found[i, j] = found[j, i] = (low + high) / 2
    return found


if __name__ == "__main__":
    main()
