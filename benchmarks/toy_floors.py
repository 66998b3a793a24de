"""Compare every predictor with toy models that no predictor was fitted to.

    python benchmarks/toy_floors.py --out toy_floors.json      # about 15 minutes on one core; resumes from --out

There are three feature counts, four sparsities and four tasks: importances i^-0.5, 1/i and i^-2 at one firing rate, and
1/i at firing rates that differ between features (log-normal, σ = 1). Widths are multiples of d* from 0.25 to 2.2; five
seeds each, 8,000 steps.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from tl_distill_floor import critical_width, toy
from tl_distill_floor.display.toy_views import score_table
from tl_distill_floor.storage.atomic import write_atomically

MULTIPLES_OF_CRITICAL_WIDTH = np.array([0.25, 0.5, 0.8, 1.0, 1.2, 1.6, 2.2])
DECAY_BY_TASK = {"i^-0.5": 0.5, "1/i": 1.0, "i^-2": 2.0, "1/i, unequal rates": 1.0}


def main() -> None:
    """Train the toy models that are missing in --out, and print the scores of the predictors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("toy_floors.json"))
    file = parser.parse_args().out
    torch.set_num_threads(1)
    results = json.loads(file.read_text()) if file.exists() else []
    for n_features, alpha, task in list(product((20, 40, 80), (0.8, 0.9, 0.95, 0.99), DECAY_BY_TASK))[len(results) :]:
        results.append(train_task(n_features, alpha, task))
        write_atomically(file, json.dumps(results).encode())
    console = Console(width=120)
    for selected in (results, *([result for result in results if result["task"] == task] for task in DECAY_BY_TASK)):
        console.print(", ".join(sorted({result["task"] for result in selected})))
        console.print(score_table(selected))
    console.print("compared with the best seed instead of the mean over seeds")
    console.print(score_table([result | {"reached": result["least"]} for result in results]))


def train_task(n_features: int, alpha: float, task: str) -> dict[str, Any]:
    """Train toy models of one task at all widths, and return their floors and the predicted ones."""
    rate = np.full(n_features, 1.0 - alpha)
    if "unequal" in task:
        log_factor = np.random.default_rng([n_features, round(1000 * alpha)]).normal(0, 1, n_features)
        rate = np.clip(rate * np.exp(log_factor), 1e-4, 0.6)
    importance = np.arange(1.0, n_features + 1) ** -DECAY_BY_TASK[task]
    mean_alpha = float(1.0 - rate.mean())
    widths = np.round(critical_width(n_features, mean_alpha) * MULTIPLES_OF_CRITICAL_WIDTH)
    widths = np.unique(np.clip(widths, 1, n_features - 1)).astype(int)
    result = toy.train(n_features, 1.0 - rate, widths, importance=importance, steps=8000, n_fresh=131_072, seed=2026)
    return {
        "task": task,
        "n_features": n_features,
        "alpha": mean_alpha,
        "widths": widths.tolist(),
        "reached": result.floor.mean(1).tolist(),
        "least": result.floor.min(1).tolist(),
        "predicted": result.predicted(),
    }


if __name__ == "__main__":
    main()
