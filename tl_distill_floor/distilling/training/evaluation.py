"""Points of the learning curves: the held-out loss of the averaged weights."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_distill_floor.distilling.training.learning_rates import fit_student
from tl_distill_floor.distilling.training.losses import summed_forward_kl
from tl_distill_floor.distilling.training.sharding import release
from tl_distill_floor.distilling.training.student_module import counted_positions
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.measuring.teacher_backbone import TeacherBackbone

SEQUENCES_PER_FORWARD_PASS = 16
"""Held-out sequences that are run together."""


def add_curve_points(sweep: Sweep, teacher: TeacherBackbone) -> None:
    """Add a point to the learning curve of every active student.

    End the training of students that have diverged, and with `early_stop` also of students that have saturated.

    Args:
        sweep: the students.
        teacher: the teacher without its unembedding.
    """
    for student, loss in zip(sweep.active, heldout_losses(sweep, teacher), strict=True):
        if not math.isfinite(loss):
            student.mark_diverged(f"at step {sweep.step} (held-out loss {loss})")
            continue
        student.tokens.append(sweep.step * sweep.tokens_per_step)
        student.losses.append(loss)
        if sweep.config.early_stop and fit_student(sweep.config, student.tokens, student.losses).status == "saturated":
            student.status = "saturated"


@torch.no_grad()
def heldout_losses(sweep: Sweep, teacher: TeacherBackbone) -> list[float]:
    """Compute KL(teacher ‖ student) of every active student's averaged weights on the held-out sequences.

    Args:
        sweep: the students.
        teacher: the teacher without its unembedding.

    Returns:
        Nats per counted token, at temperature 1.
    """
    active, accelerator = sweep.active, sweep.accelerator
    summed, n_counted = torch.zeros(len(active), dtype=torch.float64), 0
    for ids, counted in _parts_of_this_process(sweep):
        positions, ids_there = counted_positions(counted, accelerator.device), ids.to(accelerator.device)
        backbones = [student.averaged_backbone for student in active]
        summed += summed_forward_kl(
            teacher.logits(teacher(ids_there).last_hidden[positions]),
            [backbone.logits(backbone(ids_there).last_hidden[positions]) for backbone in backbones],
        )
        n_counted += int(counted.sum())
    for model in [sweep.teacher.model, *(student.averaged_backbone for student in active)]:
        release(model)
    sums = torch.cat([summed, torch.tensor([float(n_counted)], dtype=torch.float64)]).to(accelerator.device)
    sums = accelerator.reduce(sums, "sum").cpu()
    losses: list[float] = (sums[:-1] / sums[-1]).clamp(min=0.0).tolist()
    return losses


def _parts_of_this_process(
    sweep: Sweep,
) -> list[tuple[Int[Tensor, "sequence position"], Bool[Tensor, "sequence position"]]]:
    """Return (token ids, which tokens are counted) of each forward pass of this process over the held-out sequences.

    Processes that share sharded weights need the same number of forward passes: a process with fewer sequences repeats
    one, of which no token is counted.
    """
    heldout, n_processes = sweep.split.heldout, sweep.accelerator.num_processes
    of_this_process = heldout[sweep.accelerator.process_index :: n_processes]
    parts = [
        (ids, sweep.split.stream.counted(ids))
        for ids in torch.split(of_this_process, SEQUENCES_PER_FORWARD_PASS)
        if len(ids)
    ]
    if not sweep.is_sharded:
        return parts
    n_parts = -(-len(heldout) // (n_processes * SEQUENCES_PER_FORWARD_PASS))
    repeated = heldout[:1]
    return parts + [(repeated, torch.zeros_like(repeated, dtype=torch.bool))] * (n_parts - len(parts))
