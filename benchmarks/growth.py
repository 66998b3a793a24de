"""Measure how time and memory grow with tokens, features and widths.

    python benchmarks/growth.py [--of tokens] [--out benchmarks/growth.json]

The exponent of time is the slope of log seconds against log size, fitted to the upper half of the sizes. The exponent
of memory is the same slope for the memory that the work adds. Every size runs in a new process, so that no size profits
from what an earlier one has loaded.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from synthetic_data import random_codes, random_ids, random_sae, stats_with_blocks

from tl_distill_floor import floor_from_stats, load_sae, load_teacher, measure
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.predicting import bottleneck
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.storage.atomic import write_atomically

HOOK, WIDTHS = "blocks.1.hook_resid_post", (64, 128, 256, 512, 1024)
EMBEDDED_SAE_FEATURES = 2048


class Growth(NamedTuple):
    """One quantity that grows, and what is timed at each of its sizes."""

    sizes: tuple[int, ...]
    prepare: Callable[[int], Callable[[], object]]
    """Called with a size; returns the function that is timed."""
    description: str


def prepare_measurement(
    n_tokens: int, n_features: int = EMBEDDED_SAE_FEATURES, batch_size: int = 8
) -> Callable[[], object]:
    """Return a function that measures `energy` on tiny-prose, with the embedded SAE or a random one of another size."""
    model, ids = load_teacher("tiny-prose").model, random_ids(n_tokens)
    embedded = n_features == EMBEDDED_SAE_FEATURES
    sae = load_sae(None, model_name="tiny-prose").sae if embedded else random_sae(model, n_features, HOOK)
    return lambda: measure(model, sae, ids, cost="energy", batch_size=batch_size, n_tokens=ids.numel())


def prepare_prediction(n_features: int, n_widths: int) -> Callable[[], object]:
    """Return a function that makes a prediction without bottleneck students, lists lost features and saves it."""
    stats = stats_with_blocks(n_features, HOOK)
    few = n_widths == len(WIDTHS)
    widths = np.array(WIDTHS) if few else np.unique(np.linspace(1, n_features - 1, n_widths).astype(int))

    def work() -> None:
        floor = floor_from_stats(stats, widths, steps=0)
        assert floor.power_law is not None
        floor.lost(int(widths[0]))
        with tempfile.TemporaryDirectory() as directory:
            floor.save(directory)

    return work


def prepare_simulation(n_features: int, width: int) -> Callable[[], object]:
    """Return a function that trains a bottleneck student for a few steps."""
    codes = random_codes(n_features, 40, 2048)
    weight, amplitude = torch.ones(n_features), torch.ones(n_features)
    counter = StepCounter(None, 1)
    return lambda: bottleneck.train(
        codes, weight, amplitude, [width], steps=10, batch_size=1024, seed=0, counter=counter
    )


GROWTHS = {
    "tokens": Growth((10_240, 40_960, 163_840, 327_680, 1_024_000), prepare_measurement, "measure, energy, tiny-prose"),
    "features": Growth(
        (1000, 10_000, 100_000, 1_000_000),
        lambda n: prepare_prediction(n, len(WIDTHS)),
        "prediction of 5 widths, 64 blocks",
    ),
    "SAE features": Growth(
        (1024, 8192, 65_536, 262_144),
        lambda n: prepare_measurement(1024, n, 1),
        "measure, 1,024 tokens, one sequence per batch",
    ),
    "number of widths": Growth((10, 100, 1000), lambda n: prepare_prediction(30_000, n), "prediction, 30,000 features"),
    "student features": Growth(
        (1000, 10_000, 100_000, 1_000_000),
        lambda n: prepare_simulation(n, 64),
        "14 steps of a bottleneck student of width 64",
    ),
    "student width": Growth(
        (10, 100, 1000), lambda n: prepare_simulation(10_000, n), "14 steps of a bottleneck student, 10,000 features"
    ),
}


def main() -> None:
    """Measure every size in a new process, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=GROWTHS, action="append", help="what grows; everything if left out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size:
        measure_size(GROWTHS[options.of[0]], options.size)
        return
    results = {}
    table = Table(box=None)
    for column in ("growing", "size", "seconds", "peak MB", "exponent of time", "of memory"):
        table.add_column(column, justify="left" if column == "growing" else "right")
    for name in options.of or GROWTHS:
        rows = [measure_in_new_process(name, size) for size in GROWTHS[name].sizes]
        exponents = {key: fit_exponent(rows, key) for key in ("seconds", "grown_mb")}
        results[name] = {"what": GROWTHS[name].description, "rows": rows} | exponents
        for number, row in enumerate(rows):
            first, last = number == 0, number == len(rows) - 1
            table.add_row(
                name if first else "", f"{row['size']:,}", f"{row['seconds']:.2f}", f"{row['peak_mb']:,.0f}",
                *(f"{exponent:.2f}" if last else "" for exponent in exponents.values()),
            )  # fmt: skip
    Console().print(table)
    if options.out:
        write_atomically(options.out, json.dumps(results, indent=1).encode())


def measure_in_new_process(name: str, size: int) -> dict[str, float]:
    """Run `measure_size` in a new process, and return what it prints."""
    command = [sys.executable, __file__, "--of", name, "--size", str(size)]
    row: dict[str, float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return row


def measure_size(growth: Growth, size: int) -> None:
    """Time one size in this process, and print a JSON object."""
    torch.set_num_threads(1)
    tune_allocator()
    with quiet_libraries():
        work = growth.prepare(size)
        before = max_resident_mb()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    peak = max_resident_mb()
    print(json.dumps({"size": size, "seconds": seconds, "peak_mb": peak, "grown_mb": peak - before}))


def max_resident_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit_exponent(rows: list[dict[str, float]], key: str) -> float:
    """Return the slope of a value's logarithm against the logarithm of the size, over the upper half of the sizes."""
    upper = rows[len(rows) // 2 :] if len(rows) > 3 else rows[-2:]
    sizes, values = (np.log([max(row[name], 1e-9) for row in upper]) for name in ("size", key))
    return float(np.polyfit(sizes, values, 1)[0])


if __name__ == "__main__":
    main()
