"""What a feature is worth in nats: `fisher` against exact ablation, the tail loss, and what measuring them takes.

    python benchmarks/costs_in_nats.py                                                   # tiny-prose
    python benchmarks/costs_in_nats.py smollm2-135m --sae SAE --text TEXT --tokens 8192  # another teacher

Fisher costs and the exact KL of removing single features are taken on the same tokens, of 200 features in equal numbers
from ten classes of rank. The tail loss, in the order of costs from twice its tokens, is measured at ranks that are not
on its grid and on the other half of the text. Rates are of batches of one run, in turn: energy, fisher, and the bare
work of fisher (the forward pass, one backward pass to the hook point, `sae.encode`).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from tl_distill_floor.measuring.activation_batch import ActiveCodes
from tl_distill_floor.measuring.costs import ablated, dots, gradient_pass, rerun_pass, summed
from tl_distill_floor.measuring.hooks import differentiator
from tl_distill_floor.measuring.job import MeasurementJob, prepare_job
from tl_distill_floor.measuring.measurement import measure_subject
from tl_distill_floor.measuring.removal import tail_losses
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.tail_loss import rank_grid, ratio_standard_error
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs

CLASSES, OF_EACH, TAIL_SAMPLES = 10, 20, 2


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="tiny-prose")
    options.add_argument("--sae")
    options.add_argument("--text")
    options.add_argument("--dtype", default="fp32")
    options.add_argument("--tokens", type=int, default=16_384, help="for single features")
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--tail-tokens", type=int, default=32_768, help="of both halves together")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    job = prepare_job(given.model, [given.sae], given.text, dtype=given.dtype)
    found: dict[str, Any] = {"model": given.model, "tokens": given.tokens, "samples": given.samples}
    (stats,) = measure_subject(job, n_tokens=given.tokens, n_samples=given.samples, n_codes=0)
    found["single"] = single_features(job, stats, given.tokens)
    (stats,) = measure_subject(job, n_tokens=2 * given.tail_tokens, n_samples=TAIL_SAMPLES, n_codes=0)
    found["tail"] = tails(job, stats, given.tail_tokens)
    found["rates"] = rates(job, given.rounds)
    if given.out:
        write_atomically(given.out, json.dumps(found, indent=1).encode())


def stratified(stats: FeatureStats) -> np.ndarray:
    """Features in equal numbers from classes of rank, among those whose cost is above 0."""
    order = rank_by_cost(stats.cost, stats.cost > 0)
    random = np.random.default_rng(0)
    return np.sort(np.concatenate([random.permutation(part)[:OF_EACH] for part in np.array_split(order, CLASSES)]))


def single_features(job: MeasurementJob, stats: FeatureStats, n_tokens: int) -> dict[str, Any]:
    chosen = torch.from_numpy(stratified(stats))
    sae, exact, n = job.saes[0].sae, np.zeros(len(chosen)), 0
    with torch.no_grad(), rerun_pass(job, 0) as step:
        for first, ids in job.token_stream.batches(0, n_tokens):
            (batch,) = step(first, ids)
            codes = sae.encode(batch.activation).flatten(1)
            token, feature = codes.nonzero(as_tuple=True)
            entries = ActiveCodes(token, feature, codes[token, feature].double())
            exact += [float(loss.sum()) for loss in ablated(batch, entries, sae.W_dec.detach(), chosen)]
            n += len(codes)
    exact, fisher = exact / n, stats.cost[chosen.numpy()]
    ratio = fisher / np.maximum(exact, 1e-300)
    print(f"{len(chosen)} features on {n:,} tokens: Spearman {spearmanr(fisher, exact).statistic:.3f}, ratio ", end="")
    print(f"fisher ÷ ablation {np.median(ratio):.2f} ({np.quantile(ratio, 0.1):.2f} to {np.quantile(ratio, 0.9):.2f})")
    order = np.argsort(-exact)
    for part in np.array_split(order, 5):
        print(f"  ablation {exact[part].min():.2e} to {exact[part].max():.2e}: ratio {np.median(ratio[part]):.2f}")
    return {"feature": chosen.tolist(), "fisher": fisher.tolist(), "ablation": exact.tolist()}


def tails(job: MeasurementJob, stats: FeatureStats, n_tokens: int) -> dict[str, Any]:
    """At the grid's ranks on one half of the sequences, between them on the same, and on the other half."""
    order = rank_by_cost(stats.cost, stats.cost > 0)
    costs, ranks = remaining_costs(stats.cost[order]), rank_grid(len(order))
    between = np.concatenate([[0], (ranks[1:] + np.append(ranks[2:], len(order))) // 2])
    numbers = np.random.default_rng(0).permutation(n_tokens // job.stream.context_size)
    halves = np.sort(numbers[::2]), np.sort(numbers[1::2])
    started = time.perf_counter()
    on_grid = tail_losses(job, order, ranks, costs[ranks], halves[0])
    took = time.perf_counter() - started
    off_grid = tail_losses(job, order, between, costs[between], halves[0])
    other = tail_losses(job, order, ranks, costs[ranks], halves[1])
    quadratic = joint_form(job, order, ranks, halves[0])
    error = on_grid.of_additive(costs[between][1:]) / off_grid.mean[1:] - 1
    print(f"tail loss, {on_grid.n_tokens.sum():,} tokens, {len(ranks)} ranks, {took:.0f} s; between the ranks ", end="")
    print(f"{np.median(np.abs(error)):.1%} off in the median, {np.abs(error).max():.1%} at most")
    width = np.hypot(*(1.96 * ratio_standard_error(half.loss, half.n_tokens) for half in (on_grid, other)))
    inside = np.abs(on_grid.mean - other.mean) <= width
    print(f"the other half within the 95 % interval of the difference at {inside.sum()} of {len(inside)} ranks")
    for i, rank in enumerate(ranks):
        print(f"  {rank:6,} kept: {on_grid.mean[i]:.4g} ± {width[i] / 1.96 / 2**0.5:.2g}, other half", end=" ")
        print(f"{other.mean[i]:.4g}, joint form {quadratic[i]:.4g}, sum of costs {costs[rank]:.4g}")
    names = {
        "ranks": ranks,
        "loss": on_grid.mean,
        "other_half": other.mean,
        "joint": quadratic,
        "additive": costs[ranks],
    }
    found = {name: values.tolist() for name, values in names.items()}
    return found | {"between": between[1:].tolist(), "interpolation_error": error.tolist(), "seconds": took}


def joint_form(job: MeasurementJob, order: np.ndarray, ranks: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """½ E[(Σ over the features beyond each rank of Σ_t a_t ⟨G_t, w⟩)²] per token: the tail's KL to second order."""
    decoder = job.saes[0].sae.W_dec.detach()
    rank = np.full(len(decoder), len(order))
    rank[order] = np.arange(len(order))
    beyond = torch.from_numpy(np.searchsorted(ranks, rank, side="right") - 1)
    total, n = torch.zeros(len(ranks), dtype=torch.float64), 0
    with gradient_pass(job, TAIL_SAMPLES) as step:
        for first, ids in job.token_stream.batches(0, (int(sequences.max()) + 1) * job.stream.context_size):
            wanted = torch.from_numpy(np.isin(np.arange(first, first + len(ids)), sequences))
            if not wanted.any():
                continue
            (batch,) = step(first, ids)
            codes = job.saes[0].sae.encode(batch.activation).flatten(1).detach()
            token, feature = codes.nonzero(as_tuple=True)
            place = batch.row[token] * len(ranks) + beyond[feature]
            for gradient in batch.gradients:
                score = codes[token, feature].double() * dots(gradient, decoder, token, feature)
                table = summed(place, score, batch.n_sequences * len(ranks)).view(-1, len(ranks))
                total += table.flip(1).cumsum(1).flip(1)[wanted].square().sum(0) / (2 * len(batch.gradients))
            n += int(wanted[batch.row].sum())
    found: np.ndarray = total.numpy() / n
    return found


def rates(job: MeasurementJob, rounds: int) -> dict[str, float]:
    """Tokens a second, medians over the rounds."""
    n = 4 * job.stream.tokens_per_batch
    ways: dict[str, Callable[[], Any]] = {
        "energy": lambda: measure_subject(job, cost="energy", n_tokens=n),
        "fisher": lambda: measure_subject(job, cost="fisher", n_tokens=n),
        "bare": lambda: bare(job, n),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    found = {name: n / float(np.median(values)) for name, values in seconds.items()}
    print(", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in found.items()), end="")
    of_bare, to_energy = found["fisher"] / found["bare"], found["energy"] / found["fisher"]
    print(f"; fisher ÷ bare {of_bare:.3f}, energy ÷ fisher {to_energy:.2f}")
    return found


def bare(job: MeasurementJob, n_tokens: int) -> None:
    attached = job.saes[0]
    with differentiator(job.model, [attached.hook_name]) as run:
        for _, ids in job.token_stream.batches(0, n_tokens):
            logits, acts = run(ids)
            torch.autograd.grad(logits, acts, torch.ones_like(logits))
            with torch.no_grad():
                attached.sae.encode(acts[0].detach().flatten(0, 1))


if __name__ == "__main__":
    main()
