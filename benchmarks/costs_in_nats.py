"""Compare `fisher` costs with exact ablation, check the tail loss, and time the measurement of costs in nats.

    python benchmarks/costs_in_nats.py                                                   # tiny-prose
    python benchmarks/costs_in_nats.py smollm2-135m --sae SAE --text TEXT --tokens 8192  # another teacher

Single features: the fisher cost and the exact KL(teacher ‖ teacher without the feature) are measured on the same
tokens, for 200 features: 20 from each of ten classes of rank.

Tail loss: the features are ordered by their costs on twice as many tokens. The tail loss is measured on one half of the
sequences at the ranks of the grid, at ranks between them, and on the other half.

Speed: `energy`, `fisher` and the bare work of `fisher` (forward pass, backward pass to the hook point, `sae.encode`)
run in turn.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from timing import time_in_turn

from tl_distill_floor.measuring.activation_batch import ActiveCodes
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.costs import ablate_features, row_dot_products, sum_by_index
from tl_distill_floor.measuring.job import MeasurementJob, prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.measuring.passes import gradient_pass, rerun_pass
from tl_distill_floor.measuring.removal import measure_tail_loss
from tl_distill_floor.measuring.replacement import differentiable_forward
from tl_distill_floor.measuring.token_stream import model_input
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.tail_loss import rank_grid, ratio_standard_error
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs

N_RANK_CLASSES, FEATURES_PER_CLASS, TAIL_SAMPLES = 10, 20, 2


def main() -> None:
    """Run the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-prose")
    parser.add_argument("--sae")
    parser.add_argument("--text")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--tokens", type=int, default=16_384, help="for single features")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tail-tokens", type=int, default=32_768, help="for the tail loss, both halves together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    job = prepare_job(options.model, [options.sae], options.text, LoadConfig(dtype=options.dtype))
    results: dict[str, Any] = {"model": options.model, "tokens": options.tokens, "samples": options.samples}
    config = MeasureConfig(n_tokens=options.tokens, n_cost_tokens=options.tokens, n_samples=options.samples, n_codes=0)
    (stats,) = measure_job(job, config)
    results["single"] = compare_single_features(job, stats, options.tokens)
    n_tokens = 2 * options.tail_tokens
    config = MeasureConfig(n_tokens=n_tokens, n_cost_tokens=n_tokens, n_samples=TAIL_SAMPLES, n_codes=0)
    (stats,) = measure_job(job, config)
    results["tail"] = check_tail_loss(job, stats, options.tail_tokens)
    results["rates"] = compare_rates(job, options.rounds)
    if options.out:
        write_atomically(options.out, json.dumps(results, indent=1).encode())


def stratified_sample(stats: FeatureStats) -> np.ndarray:
    """Return feature ids, as many from each class of rank, among the features whose cost is positive."""
    order = rank_by_cost(stats.cost, stats.cost > 0)
    random = np.random.default_rng(0)
    classes = np.array_split(order, N_RANK_CLASSES)
    return np.sort(np.concatenate([random.permutation(ids)[:FEATURES_PER_CLASS] for ids in classes]))


def compare_single_features(job: MeasurementJob, stats: FeatureStats, n_tokens: int) -> dict[str, Any]:
    """Compare fisher costs with the exact KL of removing single features, in nats per token."""
    chosen = torch.from_numpy(stratified_sample(stats))
    sae, ablation, n_counted = job.saes[0].sae, np.zeros(len(chosen)), 0
    with torch.no_grad(), rerun_pass(job, 0) as step:
        for first, ids in job.token_stream.batches(0, n_tokens):
            (batch,) = step(first, ids)
            codes = sae.encode(batch.activation).flatten(1)
            token, feature = codes.nonzero(as_tuple=True)
            entries = ActiveCodes(token, feature, codes[token, feature].double())
            ablation += [float(loss.sum()) for loss in ablate_features(batch, entries, sae.W_dec.detach(), chosen)]
            n_counted += len(codes)
    ablation, fisher = ablation / n_counted, stats.cost[chosen.numpy()]
    ratio = fisher / np.maximum(ablation, 1e-300)
    spearman = spearmanr(fisher, ablation).statistic
    print(f"{len(chosen)} features on {n_counted:,} tokens: Spearman {spearman:.3f}", end="")
    low, high = np.quantile(ratio, 0.1), np.quantile(ratio, 0.9)
    print(f", fisher ÷ ablation: median {np.median(ratio):.2f} (10 % to 90 %: {low:.2f} to {high:.2f})")
    order = np.argsort(-ablation)
    for fifth in np.array_split(order, 5):
        smallest, largest = ablation[fifth].min(), ablation[fifth].max()
        print(f"  ablation {smallest:.2e} to {largest:.2e}: median ratio {np.median(ratio[fifth]):.2f}")
    return {"feature": chosen.tolist(), "fisher": fisher.tolist(), "ablation": ablation.tolist()}


def check_tail_loss(job: MeasurementJob, stats: FeatureStats, n_tokens: int) -> dict[str, Any]:
    """Measure the tail loss at the grid's ranks, between them, and on the other half of the sequences."""
    order = rank_by_cost(stats.cost, stats.cost > 0)
    costs, ranks = remaining_costs(stats.cost[order]), rank_grid(len(order))
    between = np.concatenate([[0], (ranks[1:] + np.append(ranks[2:], len(order))) // 2])
    sequences = np.random.default_rng(0).permutation(n_tokens // job.stream.context_size)
    halves = np.sort(sequences[::2]), np.sort(sequences[1::2])
    started = time.perf_counter()
    on_grid = measure_tail_loss(job, order, ranks, costs[ranks], halves[0])
    seconds = time.perf_counter() - started
    off_grid = measure_tail_loss(job, order, between, costs[between], halves[0])
    other_half = measure_tail_loss(job, order, ranks, costs[ranks], halves[1])
    joint = joint_form(job, order, ranks, halves[0])
    error = on_grid.loss_of_cost(costs[between][1:]) / off_grid.mean[1:] - 1
    print(f"tail loss on {on_grid.n_tokens.sum():,} tokens at {len(ranks)} ranks: {seconds:.0f} s")
    print(f"  interpolated between the ranks: median error {np.median(np.abs(error)):.1%}", end="")
    print(f", largest {np.abs(error).max():.1%}")
    width = np.hypot(*(1.96 * ratio_standard_error(half.loss, half.n_tokens) for half in (on_grid, other_half)))
    inside = np.abs(on_grid.mean - other_half.mean) <= width
    print(f"  the halves agree within the 95 % interval of their difference at {inside.sum()} of {len(inside)} ranks")
    for i, rank in enumerate(ranks):
        print(f"  {rank:6,} kept: {on_grid.mean[i]:.4g} ± {width[i] / 1.96 / 2**0.5:.2g}, other half", end=" ")
        print(f"{other_half.mean[i]:.4g}, joint form {joint[i]:.4g}, sum of costs {costs[rank]:.4g}")
    return {
        "ranks": ranks.tolist(),
        "loss": on_grid.mean.tolist(),
        "other_half": other_half.mean.tolist(),
        "joint": joint.tolist(),
        "additive": costs[ranks].tolist(),
        "between": between[1:].tolist(),
        "interpolation_error": error.tolist(),
        "seconds": seconds,
    }


def joint_form(job: MeasurementJob, order: np.ndarray, ranks: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """Return the tail loss [rank] to second order, in nats per token.

    It is ½ E[(Σ_f Σ_t a_ft ⟨G_t, w_f⟩)²] per token: the sums are over the features f beyond each rank and the tokens t
    of a sequence, a is the activation, G the gradient and w a decoder row.
    """
    decoder = job.saes[0].sae.W_dec.detach()
    rank_of_feature = np.full(len(decoder), len(order))
    rank_of_feature[order] = np.arange(len(order))
    group = torch.from_numpy(np.searchsorted(ranks, rank_of_feature, side="right") - 1)
    total, n_counted = torch.zeros(len(ranks), dtype=torch.float64), 0
    with gradient_pass(job, TAIL_SAMPLES) as step:
        for first, ids in job.token_stream.batches(0, (int(sequences.max()) + 1) * job.stream.context_size):
            wanted = torch.from_numpy(np.isin(np.arange(first, first + len(ids)), sequences))
            if not wanted.any():
                continue
            (batch,) = step(first, ids)
            codes = job.saes[0].sae.encode(batch.activation).flatten(1).detach()
            token, feature = codes.nonzero(as_tuple=True)
            cell = batch.row[token] * len(ranks) + group[feature]
            for gradient in batch.gradients:
                score = codes[token, feature].double() * row_dot_products(gradient, decoder, token, feature)
                scores = sum_by_index(cell, score, batch.n_sequences * len(ranks)).view(-1, len(ranks))
                total += scores.flip(1).cumsum(1).flip(1)[wanted].square().sum(0) / (2 * len(batch.gradients))
            n_counted += int(wanted[batch.row].sum())
    return (total / n_counted).numpy()


def compare_rates(job: MeasurementJob, n_rounds: int) -> dict[str, float]:
    """Return tokens per second of `energy`, `fisher` and the bare work of `fisher`: medians over the rounds."""
    n_tokens = 4 * job.stream.tokens_per_batch
    timings = time_in_turn(
        {
            "energy": lambda: measure_job(job, MeasureConfig(cost="energy", n_tokens=n_tokens)),
            "fisher": lambda: measure_job(job, MeasureConfig(n_tokens=n_tokens, n_cost_tokens=n_tokens)),
            "bare": lambda: run_bare_fisher(job, n_tokens),
        },
        n_rounds,
    )
    rates = {name: n_tokens / timings.median(name) for name in timings.seconds}
    print(", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items()), end="")
    print(f"; fisher ÷ bare {rates['fisher'] / rates['bare']:.3f}", end="")
    print(f", energy ÷ fisher {rates['energy'] / rates['fisher']:.2f}")
    return rates


def run_bare_fisher(job: MeasurementJob, n_tokens: int) -> None:
    """Run the forward pass, the backward pass to the hook point, and the SAE's encoder; nothing else."""
    attached = job.saes[0]
    with differentiable_forward(job.model, [attached.hook_name]) as run:
        for _, ids in job.token_stream.batches(0, n_tokens):
            logits, acts = run(model_input(job.model, ids))
            torch.autograd.grad(logits, acts, torch.ones_like(logits))
            with torch.no_grad():
                attached.sae.encode(acts[0].detach().flatten(0, 1))


if __name__ == "__main__":
    main()
