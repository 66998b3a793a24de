"""Whether `simulated` can be relied on: between widths, over seeds, with half the steps, with half the text.

tl-floor measure --cost energy && python benchmarks/simulation_checks.py runs/tiny-prose     # 4 minutes
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from tl_distill_floor import FeatureStats, floor_from_stats
from tl_distill_floor.predicting.floors import STEPS
from tl_distill_floor.predicting.simulation import simulate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--widths", default="16,32,64,96,128,160,192,256")
    options.add_argument("--between", default="24,48,80,112,144,224")
    given = options.parse_args()
    stats = FeatureStats.load(given.run)
    widths, between = (np.array([int(w) for w in listed.split(",")]) for listed in (given.widths, given.between))
    started = time.perf_counter()
    found = simulate(stats, widths, steps=STEPS)
    print(f"{len(widths)} widths in {time.perf_counter() - started:.0f} s")
    show("width", widths)
    show("simulated", found.floor[:, 0])
    compare("another seed", simulate(stats, widths, steps=STEPS, seed=1).floor[:, 0], found.floor[:, 0])
    compare("half the steps", simulate(stats, widths, steps=STEPS // 2).floor[:, 0], found.floor[:, 0])
    codes = stats.codes
    halved = dataclasses.replace(stats, codes=codes.of_tokens(codes.sequence % 2 == 0))
    compare("half the text", simulate(halved, widths, steps=STEPS).floor[:, 0], found.floor[:, 0])
    show("width", between)
    trained = simulate(stats, between, steps=STEPS).floor[:, 0]
    show("trained there", trained)
    interpolated = floor_from_stats(stats, between, simulation=found).simulated
    compare("interpolated", interpolated, trained)


def show(name: str, values: ArrayLike) -> None:
    print(f"{name:>16} " + " ".join(f"{value:8.4g}" for value in np.asarray(values)), flush=True)


def compare(name: str, values: np.ndarray, reference: np.ndarray) -> None:
    show(name, values)
    change = values / reference - 1.0
    print(f"{'change':>16} " + " ".join(f"{c:+8.1%}" for c in change), f" median {np.median(np.abs(change)):.1%}")


if __name__ == "__main__":
    main()
