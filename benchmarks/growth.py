"""How time and memory grow with tokens, features and widths, and with what exponent.

    python benchmarks/growth.py [--of tokens] [--out benchmarks/growth.json]

Exponents are slopes of log seconds (and log megabytes beyond what was held before) against the logarithm of what grows,
over its upper half. Every size runs in a process of its own, so that no size is helped by the one before.
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
from speed_stages import drawn_codes, random_ids, random_sae

from tl_distill_floor import FeatureStats, floor_from_stats, load_sae, load_teacher, measure
from tl_distill_floor.cli.measuring import quiet_libraries
from tl_distill_floor.predicting import bottleneck
from tl_distill_floor.predicting.toy import StepCounter
from tl_distill_floor.results.feature_stats import BlockSums
from tl_distill_floor.storage.atomic import write_atomically

HOOK, WIDTHS = "blocks.1.hook_resid_post", (64, 128, 256, 512, 1024)
Prepared = Callable[[], object]


class Growth(NamedTuple):
    """Something that grows."""

    sizes: tuple[int, ...]
    prepare: Callable[[int], Prepared]
    what: str


def measured(n_tokens: int, n_features: int = 2048, batch_size: int = 8) -> Prepared:
    model, ids = load_teacher("tiny-prose").model, random_ids(n_tokens)
    embedded = n_features == 2048
    sae = load_sae(None, model_name="tiny-prose").sae if embedded else random_sae(model, n_features, HOOK)
    return lambda: measure(model, sae, ids, cost="energy", batch_size=batch_size, n_tokens=ids.numel())


def predicted(n_features: int, n_widths: int) -> Prepared:
    """Everything but the students: floors, intervals, the power law, a lost list, the files."""
    stats = made_up(n_features)
    few = n_widths == len(WIDTHS)
    widths = np.array(WIDTHS) if few else np.unique(np.linspace(1, n_features - 1, n_widths).astype(int))

    def work() -> None:
        floor = floor_from_stats(stats, widths, steps=0)
        assert floor.power_law is not None
        floor.lost(int(widths[0]))
        with tempfile.TemporaryDirectory() as folder:
            floor.save(folder)

    return work


def made_up(n: int, n_blocks: int = 64) -> FeatureStats:
    """Costs that fall as a power law, and blocks that scatter about their sums."""
    random = np.random.default_rng(0)
    of_block = 4000
    rate = np.exp(random.normal(np.log(2e-3), 1.5, n)).clip(1e-5, 0.5)
    count = np.stack([random.poisson(rate * of_block) for _ in range(n_blocks)]).clip(max=of_block)
    cost = count * (np.arange(1.0, n + 1) ** -1.1 / rate)
    whole = count.sum(0)
    return FeatureStats(
        "made-up", HOOK, "made-up-sae", "made-up text", 1024, n_blocks * of_block, 0, whole, whole.astype(float),
        whole * 2.0, np.ones(n), cost.sum(0), "mse", 4, np.zeros(1024), 8.0, 1.0,
        BlockSums(np.full(n_blocks, of_block), count, cost),
    )  # fmt: skip


def simulated(n_features: int, width: int) -> Prepared:
    codes = drawn_codes(n_features, 40, 2048)
    weight, amplitude = torch.ones(n_features), torch.ones(n_features)
    options = {"steps": 10, "batch_size": 1024, "seed": 0, "report": StepCounter(None, 1)}
    return lambda: bottleneck.train(codes, weight, amplitude, [width], **options)


GROWTHS = {
    "tokens": Growth((10_240, 40_960, 163_840, 327_680, 1_024_000), measured, "measure, energy, tiny-prose"),
    "features": Growth(
        (1000, 10_000, 100_000, 1_000_000), lambda n: predicted(n, len(WIDTHS)), "prediction of 5 widths, 64 blocks"
    ),
    "SAE features": Growth(
        (1024, 8192, 65_536, 262_144), lambda n: measured(1024, n, 1), "measure, 1,024 tokens, one sequence a batch"
    ),
    "number of widths": Growth((10, 100, 1000), lambda n: predicted(30_000, n), "prediction, 30,000 features"),
    "student features": Growth(
        (1000, 10_000, 100_000, 1_000_000), lambda n: simulated(n, 64), "14 steps of a bottleneck of width 64"
    ),
    "student width": Growth((10, 100, 1000), lambda n: simulated(10_000, n), "the same of 10,000 features"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--of", choices=GROWTHS, action="append")
    options.add_argument("--out", type=Path)
    options.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.size:
        one(GROWTHS[given.of[0]], given.size)
        return
    found = {}
    table = Table(box=None)
    for column in ("growing", "size", "seconds", "peak MB", "exponent of time", "of memory"):
        table.add_column(column, justify="left" if column == "growing" else "right")
    for name in given.of or GROWTHS:
        rows = [in_a_process(name, size) for size in GROWTHS[name].sizes]
        found[name] = {"what": GROWTHS[name].what, "rows": rows} | {
            key: exponent(rows, key) for key in ("seconds", "grown_mb")
        }
        for number, row in enumerate(rows):
            last = number + 1 == len(rows)
            exponents = [f"{found[name][key]:.2f}" if last else "" for key in ("seconds", "grown_mb")]
            table.add_row(
                name if not number else "", f"{row['size']:,}", f"{row['seconds']:.2f}", f"{row['peak_mb']:,.0f}",
                *exponents,
            )  # fmt: skip
    Console().print(table)
    if given.out:
        write_atomically(given.out, json.dumps(found, indent=1).encode())


def in_a_process(name: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--of", name, "--size", str(size)]
    found: dict[str, float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return found


def one(growth: Growth, size: int) -> None:
    torch.set_num_threads(1)
    with quiet_libraries():
        work = growth.prepare(size)
        before = peak()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    print(json.dumps({"size": size, "seconds": seconds, "peak_mb": peak(), "grown_mb": peak() - before}))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exponent(rows: list[dict[str, float]], key: str) -> float:
    upper = rows[len(rows) // 2 :] if len(rows) > 3 else rows[-2:]
    sizes, values = (np.log([max(row[name], 1e-9) for row in upper]) for name in ("size", key))
    return float(np.polyfit(sizes, values, 1)[0])


if __name__ == "__main__":
    main()
