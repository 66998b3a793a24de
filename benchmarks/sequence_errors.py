"""Measure how often the errors over a text's sequences hold what other texts give.

    python benchmarks/sequence_errors.py CORPUS/train.jsonl.gz

The documents of a corpus are shuffled and divided into texts. Features are ranked and bottleneck students are trained
on the first one. Their losses in nats are then measured on every sixth sequence of each text, about as many as a
prediction measures. An interval of 1.96 standard errors holds if the mean of the other texts is inside. The errors are
those of the package, and those of sequences that count as independent (Cochran 1977, chapter 6).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from sampling_intervals import Z_95, texts_of

from tl_distill_floor import load_teacher
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.measuring.removal import measure_restored_loss, measure_tail_loss
from tl_distill_floor.predicting.simulation import train_bottlenecks
from tl_distill_floor.results.tail_loss import ratio_standard_error
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs

RANKS, WIDTHS, STEPS = np.array([0, 500, 1500]), np.array([16, 64]), 100
CASES = (*(f"tail loss, {rank:,} features kept" for rank in RANKS), *(f"bottleneck student, width {w}" for w in WIDTHS))
TOKENS, COST_TOKENS, CODES, EVERY = 100_000, 25_000, 30_000, 6


class Losses(NamedTuple):
    """Losses of one text in each of `CASES`."""

    loss: np.ndarray
    """[case, sequence] in nats, summed over tokens."""
    n_tokens: np.ndarray
    """[sequence]."""

    @property
    def mean(self) -> np.ndarray:
        """[case] nats per token."""
        return np.asarray(self.loss.sum(1) / self.n_tokens.sum())

    @property
    def error_of_independent(self) -> np.ndarray:
        """[case] standard error of `mean` if sequences are independent."""
        n = len(self.n_tokens)
        residual = self.loss - self.mean[:, None] * self.n_tokens
        return np.asarray(np.sqrt((residual**2).sum(1) * n / (n - 1)) / self.n_tokens.sum())


def measured(texts: list[list[str]]) -> list[Losses]:
    """Return the losses of each text."""
    teacher, load = load_teacher("tiny-prose"), LoadConfig()
    (stats,) = measure_job(
        prepare_job(teacher, ["tiny-prose-sae"], texts[0], load),
        MeasureConfig(n_tokens=TOKENS, n_cost_tokens=COST_TOKENS, n_codes=CODES),
    )
    order = rank_by_cost(stats.cost, stats.alive(1))
    costs = remaining_costs(stats.cost[order])[RANKS]
    students = train_bottlenecks(stats, WIDTHS, steps=STEPS).restore_functions()
    sequences = np.arange(0, TOKENS // stats.settings["context_size"], EVERY)
    results = []
    for text in texts:
        job = prepare_job(teacher, ["tiny-prose-sae"], text, load)
        tail = measure_tail_loss(job, order, RANKS, costs, sequences)
        restored, n_tokens = measure_restored_loss(job, students, sequences)
        results.append(Losses(np.concatenate([tail.loss, restored]), n_tokens))
    return results


def print_table(results: list[Losses]) -> None:
    """Print the spread over the texts, relative to both errors, and how often intervals hold the mean of the others."""
    means = np.array([result.mean for result in results])
    others = (means.sum(0) - means) / (len(means) - 1)
    print(f"{len(results)} texts\n| | spread | held | spread, if independent | held |\n| --- | --- | --- | --- | --- |")
    errors = (
        np.array([ratio_standard_error(result.loss, result.n_tokens) for result in results]),
        np.array([result.error_of_independent for result in results]),
    )
    for case, name in enumerate(CASES):
        cells = []
        for error in errors:
            spread = means[:, case].std(ddof=1) / np.sqrt((error[:, case] ** 2).mean())
            held = np.abs(means - others)[:, case] <= Z_95 * error[:, case]
            cells += [f"{spread:.2f}", f"{held.mean():.0%}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main(corpus: Path, texts: int = 22) -> None:
    """Measure the texts and print the table."""
    print_table(measured(texts_of(corpus, ["sotu", "moby", "austen"], TOKENS)[:texts]))


if __name__ == "__main__":
    typer.run(main)
