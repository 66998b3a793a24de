"""Compare every stage of the package on a GPU with the least work that it has to do, and with other tools, in one run.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --profile energy --size pythia-410m --dtype bf16
    python benchmarks/gpu.py --device cpu --small            # a rehearsal, which takes 2 minutes on two cores

Each stage first runs with little work, as a warm-up and to choose the amount of work that keeps the limit busy for
about `--stage-seconds`. Then the limit and our stage run in turn, in `--rounds` rounds; a ratio is the median of the
ratios of the rounds. `without fixed costs` is the ratio of the seconds that more work adds. The GPU has finished
whenever the clock is read. Memory is the peak of what torch has allocated, the models included.

Stages run in order of importance. When `--seconds` have passed, the remaining ones are skipped. `--json` appends one
object per stage to a list in a file, as soon as the stage has ended; a stage that fails is recorded with its message.
"""

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch is imported, as on the command line

import torch
from gpu_environment import describe_environment
from gpu_profile import print_profile
from gpu_stages import Job, Setting, jobs
from gpu_workloads import SIZES
from rich.console import Console
from rich.table import Table
from speed_stages import Stage
from timing import time_in_turn

from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.storage.atomic import write_atomically

MAX_STAGE_SECONDS = 15.0
"""Seconds of a stage after which no further round is started."""
MAX_PEER_SECONDS = 8.0
"""Seconds that another tool may take; one that would take longer is compared on the work of the warm-up."""
SMALL_BATCH, SMALL_AMOUNT, MAX_SMALL_AMOUNT = 2, 2, 3
"""Sequences per batch and amounts of work of a rehearsal."""
COLUMNS = (
    "size", "stage", "dtype", "batch", "amount", "rate", "limit", "ratio", "without fixed costs", "target", "fixed s",
    "peak MB", "of limit", "times as fast as",
)  # fmt: skip

Row = dict[str, Any]


def main() -> None:
    """Time the stages, and print a table."""
    options = parse_arguments()
    tune_allocator()
    device = torch.device(options.device)
    setting = Setting(options.device, options.small)
    environment = describe_environment(device)
    chosen = choose_jobs(options)
    print(", ".join(f"{name}: {value}" for name, value in environment.items()), flush=True)
    with quiet_libraries():
        if options.profile:
            for job in chosen[:1]:
                print_profile(job, setting)
            return
        rows = run_jobs(chosen, setting, options, environment)
    console = Console(width=240)
    console.print(make_table(rows))
    for limit in dict.fromkeys(f"{row['stage']}: the limit is {row['limit_is']}" for row in rows if "limit_is" in row):
        console.print(limit)


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = sorted({job.stage for job in jobs()})
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stage", action="append", choices=stages, help="all stages if left out")
    parser.add_argument("--size", action="append", choices=SIZES, help="all sizes if left out")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="both if left out")
    parser.add_argument("--seconds", type=float, default=480.0, help="time after which no further stage is started")
    parser.add_argument("--stage-seconds", type=float, default=1.2, help="seconds of one run of the limit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that rows are appended to")
    parser.add_argument("--profile", choices=stages, metavar="STAGE", help="print profiles of our stage, time nothing")
    parser.add_argument("--small", action="store_true", help="rehearse with small models and little work")
    return parser.parse_args()


def choose_jobs(options: argparse.Namespace) -> list[Job]:
    """Return the jobs that the options name."""
    names = [options.profile] if options.profile else options.stage
    chosen = [
        job
        for job in jobs()
        if (not names or job.stage in names)
        and (not options.size or job.size in options.size)
        and (not options.dtype or job.dtype == options.dtype)
    ]
    if options.small:
        small = {"batch_size": SMALL_BATCH, "first_amount": SMALL_AMOUNT, "max_amount": MAX_SMALL_AMOUNT}
        chosen = list(dict.fromkeys(job._replace(**small) for job in chosen))
    return chosen


def run_jobs(
    chosen: Sequence[Job], setting: Setting, options: argparse.Namespace, environment: dict[str, Any]
) -> list[Row]:
    """Run jobs one after the other, print and save a row after each, and go on if one fails."""
    rows: list[Row] = []
    if options.json:  # fails now if the file cannot be written
        append_rows(options.json, [])
    started, unusable = time.perf_counter(), ""
    for job in chosen:
        job_started = time.perf_counter()
        row: Row = {"size": job.size, "stage": job.stage, "dtype": job.dtype, "batch_size": job.batch_size}
        if unusable or job_started - started > options.seconds:
            row |= {"status": "skipped", "message": unusable or f"{options.seconds:g} s had passed"}
        else:
            try:
                seconds_left = options.seconds - (job_started - started)
                row |= {"status": "ok", **time_job(job, setting, options, seconds_left)}
            except Exception as error:  # whatever a stage raises, the others are to run
                traceback.print_exc()
                row |= {"status": "failed", "message": f"{type(error).__name__}: {error}"}
            unusable = free_memory(setting.device)
        now = time.perf_counter()
        row |= {"job_seconds": now - job_started, "seconds_since_start": now - started}
        rows.append(row)
        if options.json:
            append_rows(options.json, [row | {"small": setting.small, **environment}])
        result = f"{row['status']}: {row['message']}" if row["status"] != "ok" else summary(row)
        print(f"{row['seconds_since_start']:5.0f} s  {job.name}: {result}", flush=True)
    return rows


def time_job(job: Job, setting: Setting, options: argparse.Namespace, seconds_left: float) -> Row:
    """Choose the amount of work of a stage, time it with its limit and other tools, and return the fields of a row.

    Args:
        job: the stage.
        setting: where and how large everything is.
        options: options of the command line.
        seconds_left: seconds after which no further round is started.
    """
    device = torch.device(setting.device)
    prepare = job.open(job, setting)
    first = prepare(job.first_amount)
    warm_up = time_in_turn({"limit": first.limit, "ours": first.ours}, 1, 1, device)
    times_as_much = options.stage_seconds / warm_up.median("limit")
    amount = min(max(job.first_amount, round(job.first_amount * times_as_much)), job.max_amount)
    stage = prepare(amount)
    timings = time_in_turn(
        {"limit": stage.limit, "ours": stage.ours}, options.rounds, 1, device, min(MAX_STAGE_SECONDS, seconds_left)
    )
    ours, limit = timings.median("ours"), timings.median("limit")
    return {
        "amount": f"{amount} {job.unit}",
        "unit": stage.unit,
        "rate": stage.amount / ours,
        "limit_rate": stage.amount / limit,
        "ratio": timings.ratio("limit", "ours"),
        "target": job.target,
        "seconds": timings.seconds,
        "warm_up": {"amount": f"{job.first_amount} {job.unit}", "seconds": warm_up.seconds},
        **fixed_costs(first.amount, warm_up.median("ours"), warm_up.median("limit"), stage.amount, ours, limit),
        "peak_mb": timings.peak_mb["ours"],
        "limit_peak_mb": timings.peak_mb["limit"],
        "limit_is": stage.limit_is,
        "peers": {
            name: time_peer(name, first, stage, stage.amount / ours, device) for name in stage.peers
        },
    }  # fmt: skip


def fixed_costs(
    small: float, ours_small: float, limit_small: float, large: float, ours: float, limit: float
) -> dict[str, float | None]:
    """Return the seconds of our stage that do not depend on the amount of work, and the ratio without them.

    Args:
        small: amount of work of the warm-up.
        ours_small: its seconds in our stage.
        limit_small: its seconds in the limit.
        large: amount of work that was timed.
        ours: its seconds in our stage.
        limit: its seconds in the limit.
    """
    if large < 2 * small or ours <= ours_small:
        return {"fixed_seconds": None, "ratio_without_fixed": None}
    per_unit = (ours - ours_small) / (large - small)
    return {
        "fixed_seconds": ours_small - per_unit * small,
        "ratio_without_fixed": (limit - limit_small) / (ours - ours_small),
    }


def time_peer(name: str, first: Stage, stage: Stage, our_rate: float, device: torch.device) -> Row:
    """Return the rate of another tool, and how many times as fast our stage is; or why it was not timed."""
    try:
        seconds = time_in_turn({name: first.peers[name]}, 1, 1, device).median(name)
        amount = first.amount
        if seconds * stage.amount / first.amount <= MAX_PEER_SECONDS:
            seconds, amount = time_in_turn({name: stage.peers[name]}, 1, 0, device).median(name), stage.amount
    except Exception as error:  # another tool that fails does not make our stage fail
        traceback.print_exc()
        return {"message": f"{type(error).__name__}: {error}"}
    return {"rate": amount / seconds, "amount": amount, "times_as_fast": our_rate * seconds / amount}


def free_memory(device: str) -> str:
    """Free the memory of a stage; return why the device cannot be used any more, or an empty string."""
    gc.collect()
    if not device.startswith("cuda"):
        return ""
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return f"the device cannot be used any more: {error}"
    return ""


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to the list in a JSON file, which is created if it does not exist."""
    before = json.loads(path.read_text()) if path.exists() else []
    write_atomically(path, json.dumps([*before, *rows], indent=1).encode())


def summary(row: Row) -> str:
    """Return the result of a stage on one line."""
    peers = "".join(f"; {name} {_peer_text(peer)}" for name, peer in row["peers"].items())
    return f"ratio {row['ratio']:.3f}, {row['rate']:,.0f} of {row['limit_rate']:,.0f} {row['unit']}{peers}"


def _peer_text(peer: Row) -> str:
    """Return how many times as fast as another tool our stage is."""
    return f"{peer['times_as_fast']:.2f}" if "rate" in peer else "failed"


def make_table(rows: Sequence[Row]) -> Table:
    """Return a table with one row per stage."""
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("size", "stage", "times as fast as") else "right")
    for row in rows:
        cells = [row["size"], row["stage"], row["dtype"], str(row["batch_size"])]
        if row["status"] != "ok":
            table.add_row(*cells, *[""] * (len(COLUMNS) - len(cells) - 1), f"{row['status']}: {row['message'][:60]}")
            continue
        peers = "\n".join(f"{name} {_peer_text(peer)}" for name, peer in row["peers"].items())
        optional = (row["ratio_without_fixed"], row["target"], row["fixed_seconds"])
        table.add_row(
            *cells,
            row["amount"],
            f"{row['rate']:,.0f} {row['unit']}",
            f"{row['limit_rate']:,.0f}",
            f"{row['ratio']:.3f}",
            *("" if value is None else f"{value:.2f}" for value in optional),
            f"{row['peak_mb']:,.0f}",
            f"{row['limit_peak_mb']:,.0f}",
            peers,
        )
    return table


if __name__ == "__main__":
    main()
