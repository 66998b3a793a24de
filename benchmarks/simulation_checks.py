"""Check how stable `simulated` is: between widths, with another seed, with half the steps, and with half the text.

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
from tl_distill_floor.predicting.simulation import train_bottlenecks


def main() -> None:
    """Simulate the floors with every change, and print the relative differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--widths", default="16,32,64,96,128,160,192,256")
    parser.add_argument("--between", default="24,48,80,112,144,224", help="widths at which floors are interpolated")
    options = parser.parse_args()
    stats = FeatureStats.load(options.run)
    widths, between = (np.array([int(w) for w in listed.split(",")]) for listed in (options.widths, options.between))
    started = time.perf_counter()
    simulation = train_bottlenecks(stats, widths, steps=STEPS).simulation()
    floor = simulation.floor[:, 0]
    print(f"{len(widths)} widths in {time.perf_counter() - started:.0f} s")
    print_row("width", widths)
    print_row("simulated", floor)
    print_change("another seed", train_bottlenecks(stats, widths, steps=STEPS, seed=1).simulation().floor[:, 0], floor)
    print_change("half the steps", train_bottlenecks(stats, widths, steps=STEPS // 2).simulation().floor[:, 0], floor)
    codes = stats.codes
    half_of_text = dataclasses.replace(stats, codes=codes.select_tokens(codes.sequence % 2 == 0))
    print_change("half the text", train_bottlenecks(half_of_text, widths, steps=STEPS).simulation().floor[:, 0], floor)
    print_row("width", between)
    trained = train_bottlenecks(stats, between, steps=STEPS).simulation().floor[:, 0]
    print_row("trained there", trained)
    interpolated = floor_from_stats(stats, between, simulation=simulation).simulated
    print_change("interpolated", interpolated, trained)


def print_row(name: str, values: ArrayLike) -> None:
    """Print a row of numbers."""
    print(f"{name:>16} " + " ".join(f"{value:8.4g}" for value in np.asarray(values)), flush=True)


def print_change(name: str, values: np.ndarray, reference: np.ndarray) -> None:
    """Print a row of numbers, and below it the relative change from a reference."""
    print_row(name, values)
    change = values / reference - 1.0
    print(f"{'change':>16} " + " ".join(f"{c:+8.1%}" for c in change), f" median {np.median(np.abs(change)):.1%}")


if __name__ == "__main__":
    main()
