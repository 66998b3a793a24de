"""Compare every stage of the package with the least work that it has to do, and with other tools, in one run.

    python benchmarks/speed.py [--size smollm2] [--stage measure_energy] [--quick] [--json]
    python benchmarks/speed.py --predict                      # what teachers of 7 B and 70 B parameters would take

The limit of a stage is the least work that it has to do, written as plainly as possible; `speed_stages.py` has them
all. The limit, our stage and the other tools run in turn, in `--rounds` rounds; a ratio is the median of the ratios of
the rounds, and the first round counts. Peak memory is the peak of this process while one of them runs (Linux only).
`--json` prints one object: stage → rate, limit, ratio, peak_mb, limit_peak_mb, unit, limit_is, peers.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch is imported, as on the command line

import speed_stages as stages
import torch
from rich.console import Console
from rich.table import Table
from speed_model import print_predictions
from speed_stages import Stage
from speed_workloads import Workload, pythia_410m, smollm2, tiny_prose
from timing import time_in_turn

from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator

WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "tiny-prose": tiny_prose, "smollm2": smollm2, "pythia-410m": pythia_410m
}  # fmt: skip
TOKENS = {"tiny-prose": 199_936, "smollm2": 8192, "pythia-410m": 4096}
QUICK_TOKENS = {"tiny-prose": 8192, "smollm2": 2048, "pythia-410m": 2048}


def main() -> None:
    """Time the stages, and print a table or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WORKLOADS, default="tiny-prose")
    parser.add_argument("--stage", action="append", help="name of a stage; all stages if left out")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="less work: takes at most 50 s")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--predict", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.predict:
        print_predictions()
        return
    n_rounds = options.rounds or (1 if options.quick else 3)
    n_tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS)[options.size]
    rows = {}
    tune_allocator()
    with quiet_libraries():
        prepare_by_name = stages_of(options.size, n_tokens, options.quick)
        for name in options.stage or prepare_by_name:
            rows[name] = time_stage(prepare_by_name[name](), n_rounds)
    if options.as_json:
        print(json.dumps(rows))
    else:
        Console().print(make_table(options.size, rows))
        for name, row in rows.items():
            print(f"{name}: the limit is {row['limit_is']}")


def stages_of(size: str, n_tokens: int, quick: bool) -> Mapping[str, Callable[[], Stage]]:
    """Return, for every stage that is worth timing at a size, the function that prepares it."""
    workload = WORKLOADS[size](n_tokens)
    measuring = {
        "measure_energy": partial(stages.measure_energy, workload),
        "measure_fisher": partial(stages.measure_fisher, workload),
        "promoted": partial(stages.promoted, workload),
    }
    if size == "smollm2":
        return measuring
    if size == "pythia-410m":
        return measuring | {"simulate": partial(stages.simulate, 32_768, 1024, 200, 8)}
    return {
        "load": stages.load,
        **measuring,
        "simulate": partial(stages.simulate, 2048, 64, 24, 20 if quick else 200),
        "allocate": stages.allocate,
        "distil": partial(stages.distil, steps=1 if quick else 4),
        "probe": partial(stages.train_probes, workload, 1 if quick else 5),
        "report": stages.report,
    }


def time_stage(stage: Stage, n_rounds: int) -> dict[str, Any]:
    """Time a stage, its limit and the other tools; return the row that `--json` prints."""
    timings = time_in_turn({"limit": stage.limit, "ours": stage.ours, **stage.peers}, n_rounds)
    return {
        "rate": stage.amount / timings.median("ours"),
        "limit": stage.amount / timings.median("limit"),
        "ratio": timings.ratio("limit", "ours"),
        "peak_mb": timings.peak_mb["ours"],
        "limit_peak_mb": timings.peak_mb["limit"],
        "unit": stage.unit,
        "limit_is": stage.limit_is,
        "peers": {name: timings.ratio(name, "ours") for name in stage.peers},
    }


def make_table(size: str, rows: dict[str, dict[str, Any]]) -> Table:
    """Return a table with one row per stage."""
    table = Table(title=f"{size}, {torch.get_num_threads()} threads", box=None)
    for column in ("stage", "rate", "limit", "ratio", "peak MB", "of limit", "times as fast as"):
        table.add_column(column, justify="left" if column.startswith(("stage", "times")) else "right")
    for name, row in rows.items():
        rate, limit = (f"{row[key]:,.3g}" if row[key] < 100 else f"{row[key]:,.0f}" for key in ("rate", "limit"))
        peers = "\n".join(f"{peer} {ratio:.2f}" for peer, ratio in row["peers"].items())
        cells = (name, f"{rate} {row['unit']}", limit, f"{row['ratio']:.3f}", f"{row['peak_mb']:,.0f}")
        table.add_row(*cells, f"{row['limit_peak_mb']:,.0f}", peers)
    return table


if __name__ == "__main__":
    main()
