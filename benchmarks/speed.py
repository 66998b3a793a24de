"""How near every stage comes to its limit, and to what others would run, in one run.

    python benchmarks/speed.py [--size smollm2] [--stage measure_energy] [--quick] [--json]
    python benchmarks/speed.py --predict                      # what 7 B and 70 B parameters would cost

The limit is the least that a stage must do, done barely; `speed_stages` says what it is. The limit, ours and the peers
run in turn, `--rounds` times, and the ratio is the median of the rounds' ratios, of which the first warms up too. Peak
memory is the process's high-water mark while the limit or ours, which comes after it, runs (Linux). `--json` prints one
object: stage → rate, limit, ratio, peak_mb, limit_peak_mb, unit, limit_is, peers.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch is imported, as the command line does

import speed_stages as stages
import torch
from rich.console import Console
from rich.table import Table
from speed_model import predict
from speed_stages import Stage, Subject, Work

from tl_distill_floor.cli.measuring import quiet_libraries

SIZES: dict[str, Callable[[int], Subject]] = {
    "tiny-prose": stages.tiny_prose, "smollm2": stages.smollm2, "pythia-410m": stages.pythia_410m
}  # fmt: skip
TOKENS = {"tiny-prose": 199_936, "smollm2": 8192, "pythia-410m": 4096}
QUICK_TOKENS = {"tiny-prose": 8192, "smollm2": 2048, "pythia-410m": 2048}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="tiny-prose")
    options.add_argument("--stage", action="append", help="one of them; all when left out")
    options.add_argument("--tokens", type=int)
    options.add_argument("--rounds", type=int)
    options.add_argument("--threads", type=int)
    options.add_argument("--quick", action="store_true", help="within 50 s")
    options.add_argument("--json", action="store_true", dest="as_json")
    options.add_argument("--predict", action="store_true")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.predict:
        predict()
        return
    rounds = given.rounds or (1 if given.quick else 3)
    tokens = given.tokens or (QUICK_TOKENS if given.quick else TOKENS)[given.size]
    found = {}
    with quiet_libraries():
        made = of_size(given.size, tokens, given.quick)
        for name in given.stage or made:
            found[name] = timed(made[name](), rounds)
    if given.as_json:
        print(json.dumps(found))
    else:
        Console().print(table(given.size, found))
        for name, row in found.items():
            print(f"{name}: the limit is {row['limit_is']}")


def of_size(size: str, tokens: int, quick: bool) -> dict[str, Callable[[], Stage]]:
    """The stages that say something at that size, each made when it is its turn."""
    subject = SIZES[size](tokens)
    measuring = {
        "measure_energy": partial(stages.measure_energy, subject),
        "measure_fisher": partial(stages.measure_fisher, subject),
        "promoted": partial(stages.promoted, subject),
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
        "probe": partial(stages.probing, subject, 1 if quick else 5),
        "report": stages.report,
    }


def timed(stage: Stage, rounds: int) -> dict[str, Any]:
    """What `--json` says of one stage."""
    works: dict[str, Work] = {"limit": stage.limit, "ours": stage.ours, **stage.peers}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks = dict.fromkeys(works, 0.0)
    for _ in range(rounds):
        for name, work in works.items():
            peaks[name] = max(peaks[name], peak_mb(partial(clocked, work, seconds[name])))

    def ratio_to(name: str) -> float:
        return statistics.median(other / ours for other, ours in zip(seconds[name], seconds["ours"], strict=True))

    return {
        "rate": stage.amount / statistics.median(seconds["ours"]),
        "limit": stage.amount / statistics.median(seconds["limit"]),
        "ratio": ratio_to("limit"),
        "peak_mb": peaks["ours"],
        "limit_peak_mb": peaks["limit"],
        "unit": stage.unit,
        "limit_is": stage.limit_is,
        "peers": {name: ratio_to(name) for name in stage.peers},
    }


def clocked(work: Work, seconds: list[float]) -> None:
    started = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - started)


def peak_mb(work: Work) -> float:
    """Megabytes that the process holds at most while that runs; 0 where the system does not say."""
    mark = Path("/proc/self/clear_refs")
    if not mark.exists():
        work()
        return 0.0
    mark.write_text("5")  # the high-water mark falls to what is held now
    work()
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def table(size: str, found: dict[str, dict[str, Any]]) -> Table:
    made = Table(title=f"{size}, {torch.get_num_threads()} threads", box=None)
    for column in ("stage", "rate", "limit", "ratio", "peak MB", "of limit", "times as fast as"):
        made.add_column(column, justify="left" if column.startswith(("stage", "times")) else "right")
    for name, row in found.items():
        rate, limit = (f"{row[key]:,.3g}" if row[key] < 100 else f"{row[key]:,.0f}" for key in ("rate", "limit"))
        peers = "\n".join(f"{peer} {ratio:.2f}" for peer, ratio in row["peers"].items())
        cells = (name, f"{rate} {row['unit']}", limit, f"{row['ratio']:.3f}", f"{row['peak_mb']:,.0f}")
        made.add_row(*cells, f"{row['limit_peak_mb']:,.0f}", peers)
    return made


if __name__ == "__main__":
    main()
