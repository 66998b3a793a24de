"""Test water-filling on toy models whose features have the rates and costs of real ones, but fire independently.

tl-floor measure --cost energy && python benchmarks/independent_surrogate.py runs/tiny-prose --widths 16,64,128  # 9 min
"""

import argparse
from pathlib import Path

import numpy as np

from tl_distill_floor import FeatureStats, allocate, toy


def main() -> None:
    """Train toy models of several widths, and print their floors next to the predicted ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--widths", default="16,64,128")
    parser.add_argument("--steps", type=int, default=8000)
    options = parser.parse_args()
    stats = FeatureStats.load(options.run)
    alive = stats.alive()
    cost, rate = stats.cost[alive], stats.firing_rate[alive]
    evenness = (stats.sum_act**2 / np.maximum(stats.firing_count * stats.sum_act_sq, 1e-300))[alive]
    print(f"E[a | on]² / E[a² | on], weighted by cost: {evenness @ cost / cost.sum():.3f} (uniform on [0, 1]: 0.750)")
    importance = 3.0 * cost / rate  # a uniform activation has E[a²] = 1/3
    result = toy.train(
        len(cost),
        1.0 - rate,
        [int(width) for width in options.widths.split(",")],
        importance=importance / importance.max(),
        n_seeds=1,
        steps=options.steps,
        batch_size=512,
        n_fresh=16_384,
    )
    for width, floor, kept in zip(result.widths, result.floor[:, 0], result.kept[:, 0], strict=True):
        reached, predicted = floor * cost.sum() / result.cost.sum(), allocate(cost, rate, int(width)).floor
        print(f"width {width:5d}  reached {reached:8.1f}  predicted {predicted:8.1f}  kept {kept:5d}")


if __name__ == "__main__":
    main()
