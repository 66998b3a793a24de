"""How near distillation comes to its limit: the bare loop, on the same batches, in turn.

    python benchmarks/distill_speed.py [--dtype bf16] [--threads 1]

The bare loop is a teacher's forward pass to its logits, a student's forward and backward pass with the KL of whole
logits, and the optimisers' step: no averaging, no chunks, no clipping. A sweep of five students is held against five
single ones. The loss's memory is the growth of a new process's high-water mark over the forward and backward pass of
2,048 tokens of 49,152 logits, from hidden states on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tl_distill_floor.cli.measuring import quiet_libraries
from tl_distill_floor.distilling.build import build_student
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.forward import teacher_body
from tl_distill_floor.distilling.losses import Ends, Objective, chunked_losses
from tl_distill_floor.distilling.optimization import Trainee, optimizers_of
from tl_distill_floor.distilling.texts import texts_of
from tl_distill_floor.distilling.trainer import Sweep
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.storage.atomic import write_atomically

WIDTHS = (16, 32, 64, 96, 128)
STEPS, MEMORY_TOKENS, VOCABULARY = 4, 2048, 49_152


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dtype", default="fp32")
    options.add_argument("--threads", type=int)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path)
    options.add_argument("--memory-of", choices=["chunked", "whole"], help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.memory_of:
        print(memory_of(given.memory_of))
        return
    with quiet_libraries():
        found = rates(given.dtype, given.rounds) | memory()
    for name, value in found.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value}")
    if given.out:
        write_atomically(given.out, json.dumps(found, indent=1).encode())


def rates(dtype: str, rounds: int) -> dict[str, Any]:
    training = DistillConfig(n_tokens=10**6, dtype=dtype, n_heldout_tokens=256)
    teacher = load_teacher("tiny-prose")
    ids = torch.randint(1, 4000, (64, 256), generator=torch.Generator().manual_seed(0))
    texts = texts_of(teacher, ids[:-1], ids[-1:], training)
    accelerator = Accelerator(cpu=True)
    sweeps = {w: Sweep(teacher, [StudentSpec(w)], texts, training, accelerator) for w in WIDTHS}
    together = Sweep(teacher, [StudentSpec(w) for w in WIDTHS], texts, training, accelerator)
    single = bare(teacher.model, 64, training)
    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "singles": [], "together": []}
    with teacher_body(teacher.model) as body:

        def step(sweep: Sweep) -> None:
            sweep._one_step(body)
            sweep.step += 1

        for number in range(rounds + 1):
            took = {
                "bare": timed(lambda: single(texts.batch(0, training))),
                "ours": timed(lambda: step(sweeps[64])),
                "singles": timed(lambda: [step(sweep) for sweep in sweeps.values()]),
                "together": timed(lambda: step(together)),
            }
            for name, value in took.items() if number else ():
                seconds[name].append(value)
    n = STEPS * training.batch_size * 256
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "dtype": dtype,
        "bare tokens/s, width 64": n / middle["bare"],
        "ours tokens/s, width 64": n / middle["ours"],
        "ours : bare": statistics.median(b / o for b, o in zip(seconds["bare"], seconds["ours"], strict=True)),
        f"time of a sweep of {len(WIDTHS)} : {len(WIDTHS)} singles": statistics.median(
            t / s for t, s in zip(seconds["together"], seconds["singles"], strict=True)
        ),
    }


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return time.perf_counter() - started


def bare(teacher: Any, width: int, training: DistillConfig) -> Callable[[torch.Tensor], None]:
    """A step of the plainest loop that does the same."""
    student = build_student(teacher, width)
    optimizers = optimizers_of(Trainee(student, StudentSpec(width), int(teacher.cfg.d_model)), training)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16) if training.dtype == "bf16" else nullcontext():
            with torch.no_grad():
                of_teacher = teacher(ids)
            loss = forward_kl(of_teacher, student(ids).logits).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def memory() -> dict[str, float]:
    """Megabytes of the loss alone, chunked and whole."""
    found = {}
    for way in ("chunked", "whole"):
        command = [sys.executable, __file__, "--memory-of", way]
        found[f"loss memory, {way} (MB)"] = float(subprocess.check_output(command, text=True).split()[-1])
    chunked, whole = found.values()
    return found | {"chunked : whole": chunked / whole}


def memory_of(way: str) -> float:
    teacher = Ends(torch.randn(MEMORY_TOKENS, 576), torch.nn.Linear(576, VOCABULARY, bias=False))
    student = Ends(torch.randn(MEMORY_TOKENS, 128, requires_grad=True), torch.nn.Linear(128, VOCABULARY, bias=False))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = high_water_mark()
    if way == "chunked":
        labels = torch.zeros(MEMORY_TOKENS, dtype=torch.long)
        loss = chunked_losses(teacher, [student], labels, Objective())[0]
    else:
        with torch.no_grad():
            of_teacher = teacher.unembed(teacher.hidden)
        loss = forward_kl(of_teacher, student.unembed(student.hidden)).sum()
    loss.backward()
    return high_water_mark() - before


def high_water_mark() -> float:
    """Megabytes; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
