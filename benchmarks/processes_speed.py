"""How measuring gains from several processes of one thread: tokens a second of one, and of two on two cores.

    python benchmarks/processes_speed.py [--cost energy] [--tokens 131072] [--rounds 3]

Starts itself under torchrun for the second number; loading is not counted. Every round runs both, one after the other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from tl_distill_floor.cli.measuring import quiet_libraries
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_subject
from tl_distill_floor.measuring.processes import current_process_group

WARM_UP = 16_384


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cost", default="fisher")
    options.add_argument("--tokens", type=int, default=131_072)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        with quiet_libraries():
            work(given.cost, given.tokens)
        return
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for n, found in rates.items():
            found.append(rate(n, given.cost, given.tokens))
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    print(f"{given.cost}: one process {one:,.0f} tokens a second, two {two:,.0f}: {two / (2 * one):.2f} of twice one")


def rate(n: int, cost: str, tokens: int) -> float:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n)] if n > 1 else []
    command = [sys.executable, *launcher, __file__, "--worker", "--cost", cost, "--tokens", str(tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def work(cost: str, tokens: int) -> None:
    torch.set_num_threads(1)
    everyone = current_process_group()
    job = prepare_job("tiny-prose", ["tiny-prose-sae"])
    measure_subject(job, cost=cost, n_tokens=WARM_UP, n_codes=0, everyone=everyone)
    if everyone.n > 1:
        torch.distributed.barrier()
    started = time.perf_counter()
    measure_subject(job, cost=cost, n_tokens=tokens, everyone=everyone)
    if everyone.is_first:
        print(tokens / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
