"""The sparse way of training a bottleneck against the dense one: the floor, and the time that it takes.

    python benchmarks/simulation_speed.py runs/tiny-prose       # floors of tiny-prose, 4 minutes

`dense` decodes every feature on every token of a batch, which is the dense way's slope. `speed.py --stage simulate` has
the rate of a step.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from tl_distill_floor import FeatureStats
from tl_distill_floor.predicting import bottleneck
from tl_distill_floor.predicting.simulation import BATCH, simulate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    floors(FeatureStats.load(options.parse_args().run))


def floors(stats: FeatureStats) -> None:
    for width in (32, 128):
        for name, least, most in (("dense", BATCH, BATCH), ("256 tokens", 256, 256), ("64 tokens", 64, 64)):
            bottleneck.LEAST_INACTIVE, bottleneck.MOST_INACTIVE = least, most
            started = time.perf_counter()
            found = simulate(stats, np.array([width]), steps=1000)
            took = time.perf_counter() - started
            print(f"width {width}, inactive features on {name}: floor {found.floor[0, 0]:.2f}", end="")
            print(f" (after 1,000 steps {found.reached[0, 0]:.2f}), {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
