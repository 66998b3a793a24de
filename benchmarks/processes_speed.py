"""Compare the speed of a measurement in one process with that in two processes on two cores.

    python benchmarks/processes_speed.py [--cost energy] [--tokens 131072] [--rounds 3]

Every process has one thread. The script starts itself: directly for one process, under torchrun for two. Loading does
not count. One and two processes run in turn in every round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.measuring.config import MeasureConfig
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.measuring.processes import current_process_group

WARM_UP_TOKENS = 16_384


def main() -> None:
    """Measure with one and two processes, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", default="fisher")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        tune_allocator()
        with quiet_libraries():
            run_worker(options.cost, options.tokens)
        return
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for n_processes, rates_of_rounds in rates.items():
            rates_of_rounds.append(run_processes(n_processes, options.cost, options.tokens))
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    print(f"{options.cost}: {one:,.0f} tokens/s with one process, {two:,.0f} with two", end="")
    print(f" ({two / (2 * one):.2f} of twice the rate of one)")


def run_processes(n_processes: int, cost: str, n_tokens: int) -> float:
    """Start this script in new processes and return the tokens per second that they print."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n_processes)] if n_processes > 1 else []
    command = [sys.executable, *launcher, __file__, "--worker", "--cost", cost, "--tokens", str(n_tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    completed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(completed.stdout.split()[-1])


def run_worker(cost: str, n_tokens: int) -> None:
    """Measure in this process, and print the tokens per second of all processes if it is the first."""
    torch.set_num_threads(1)
    processes = current_process_group()
    job = prepare_job("tiny-prose", ["tiny-prose-sae"])
    measure_job(job, MeasureConfig(cost=cost, n_tokens=WARM_UP_TOKENS, n_codes=0), process_group=processes)
    if processes.size > 1:
        torch.distributed.barrier()
    started = time.perf_counter()
    measure_job(job, MeasureConfig(cost=cost, n_tokens=n_tokens, n_cost_tokens=n_tokens), process_group=processes)
    if processes.is_first:
        print(n_tokens / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
