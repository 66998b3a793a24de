"""Compare the speed of distillation with a plain training loop on the same batches, and the memory of the two losses.

    python benchmarks/distill_speed.py [--dtype bf16] [--threads 1]

The plain loop has a forward pass of the teacher to its logits, a forward and backward pass of the student with the KL
of the full logits, and the optimizers' step. It has no weight averaging, no chunks and no gradient clipping. Five
students trained together are compared with the same five trained alone. The memory of a loss is how much the peak
memory of a new process grows during the forward and backward pass of 2,048 tokens with 49,152 logits, starting from
hidden states (Linux only).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timing import peak_memory_mb, reset_peak_memory, time_in_turn

from tl_distill_floor.annotations import StudentStart
from tl_distill_floor.cli.libraries import quiet_libraries
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.losses import LazyLogits, Objective, chunked_losses
from tl_distill_floor.distilling.training.optimization import create_optimizers
from tl_distill_floor.distilling.training.student_module import StudentModule
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_step import train_step
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.storage.atomic import write_atomically

WIDTHS = (16, 32, 64, 96, 128)
STEPS, CONTEXT = 4, 256
MEMORY_TOKENS, VOCABULARY = 2048, 49_152


def main() -> None:
    """Measure the rates and the memory, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=["chunked", "whole"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(loss_memory(options.memory_of))
        return
    tune_allocator()
    with quiet_libraries():
        results = compare_rates(options.dtype, options.rounds) | compare_loss_memory()
    for name, value in results.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value}")
    if options.out:
        write_atomically(options.out, json.dumps(results, indent=1).encode())


def compare_rates(dtype: str, n_rounds: int) -> dict[str, Any]:
    """Return the tokens per second of the plain loop and of ours, and the time of five students, together and alone."""
    config = DistillConfig(n_tokens=10**6, dtype=dtype, n_heldout_tokens=CONTEXT)
    teacher = load_teacher("tiny-prose")
    ids = torch.randint(1, 4000, (64, CONTEXT), generator=torch.Generator().manual_seed(0))
    split = read_text_split(teacher, ids[:-1], ids[-1:], config)
    accelerator = Accelerator(cpu=True)
    alone = {width: Sweep(teacher, [StudentSpec(width)], split, config, accelerator) for width in WIDTHS}
    together = Sweep(teacher, [StudentSpec(width) for width in WIDTHS], split, config, accelerator)
    plain_step = make_plain_step(teacher.model, 64, config)
    with teacher_backbone(teacher.model) as backbone:

        def train(*sweeps: Sweep) -> None:
            for _ in range(STEPS):
                for sweep in sweeps:
                    train_step(sweep, backbone)
                    sweep.step += 1

        def train_plainly() -> None:
            for _ in range(STEPS):
                plain_step(split.batch(0, config))

        timings = time_in_turn(
            {
                "bare": train_plainly,
                "ours": lambda: train(alone[64]),
                "singles": lambda: train(*alone.values()),
                "together": lambda: train(together),
            },
            n_rounds,
            n_warm_up_rounds=1,
        )
    n_tokens = STEPS * config.batch_size * CONTEXT
    return {
        "dtype": dtype,
        "bare tokens/s, width 64": n_tokens / timings.median("bare"),
        "ours tokens/s, width 64": n_tokens / timings.median("ours"),
        "ours : bare": timings.ratio("bare", "ours"),
        f"time of a sweep of {len(WIDTHS)} : {len(WIDTHS)} singles": timings.ratio("together", "singles"),
    }


def make_plain_step(
    teacher: Any, width: int, config: DistillConfig, start: StudentStart = "svd"
) -> Callable[[torch.Tensor], None]:
    """Return a function that trains a student on a batch of token ids as the plain loop does."""
    device = device_of(teacher)
    student = build_student(teacher, width, start=start).to(device)
    optimizers = create_optimizers(StudentModule(student, StudentSpec(width), int(teacher.cfg.d_model)), config)

    def step(ids: torch.Tensor) -> None:
        ids = ids.to(device)
        with torch.autocast(device.type, torch.bfloat16) if config.dtype == "bf16" else nullcontext():
            with torch.no_grad():
                teacher_logits = teacher(ids)
            loss = forward_kl(teacher_logits, student(ids).logits).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def compare_loss_memory() -> dict[str, float]:
    """Return the memory of the loss in MB, with the logits in chunks and in one piece."""
    chunked, whole = (
        float(subprocess.check_output([sys.executable, __file__, "--memory-of", way], text=True).split()[-1])
        for way in ("chunked", "whole")
    )
    return {
        "loss memory, chunked (MB)": chunked,
        "loss memory, whole (MB)": whole,
        "chunked : whole": chunked / whole,
    }


def loss_memory(way: str) -> float:
    """Return by how many MB the peak memory of this process grows while one loss is computed and differentiated."""
    teacher = LazyLogits(torch.randn(MEMORY_TOKENS, 576), torch.nn.Linear(576, VOCABULARY, bias=False))
    student_hidden = torch.randn(MEMORY_TOKENS, 128, requires_grad=True)
    student = LazyLogits(student_hidden, torch.nn.Linear(128, VOCABULARY, bias=False))
    reset_peak_memory()
    before = peak_memory_mb()
    if way == "chunked":
        labels = torch.zeros(MEMORY_TOKENS, dtype=torch.long)
        loss = chunked_losses(teacher, [student], labels, Objective())[0]
    else:
        with torch.no_grad():
            teacher_logits = teacher.unembed(teacher.hidden)
        loss = forward_kl(teacher_logits, student.unembed(student.hidden)).sum()
    loss.backward()
    return peak_memory_mb() - before


if __name__ == "__main__":
    main()
