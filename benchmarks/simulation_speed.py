"""Compare sparse with dense training of a bottleneck student: the floor that it reaches, and the time that it takes.

    python benchmarks/simulation_speed.py runs/tiny-prose       # floors of tiny-prose, 4 minutes

`dense` decodes every feature on every token of a batch, which gives the exact gradient. `speed.py --stage simulate`
measures the rate of a training step.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from tl_distill_floor import FeatureStats
from tl_distill_floor.predicting import sparse_batches
from tl_distill_floor.predicting.simulation import TOKENS_PER_STEP, train_bottlenecks


def main() -> None:
    """Train at two widths, with inactive features decoded on all, 256 or 64 tokens of a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    stats = FeatureStats.load(parser.parse_args().run)
    for width in (32, 128):
        for name, n_tokens in (("dense", TOKENS_PER_STEP), ("256 tokens", 256), ("64 tokens", 64)):
            sparse_batches.MIN_INACTIVE_TOKENS = sparse_batches.MAX_INACTIVE_TOKENS = n_tokens
            started = time.perf_counter()
            simulation = train_bottlenecks(stats, np.array([width]), steps=1000).simulation()
            seconds = time.perf_counter() - started
            print(f"width {width}, inactive features on {name}: floor {simulation.floor[0, 0]:.2f}", end="")
            print(f" (after 1,000 steps {simulation.reached[0, 0]:.2f}), {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
