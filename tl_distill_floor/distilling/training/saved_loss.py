"""Check that a saved student, read by plain `transformers`, has the loss that was measured in training."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from tl_distill_floor.distilling.students.family_models import full_logits
from tl_distill_floor.distilling.training.losses import summed_forward_kl
from tl_distill_floor.distilling.training.sharding import release
from tl_distill_floor.distilling.training.student_state import StudentInTraining
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import eval_mode
from tl_distill_floor.measuring.kl import forward_kl_in_chunks
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone

CHECKED_SEQUENCES = 4
"""Held-out sequences on which the two losses are compared."""
ABSOLUTE_TOLERANCE = 1e-4
"""Nats per token."""
RELATIVE_TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-3, 2e-2
"""Relative difference that rounding can make, for a teacher in fp32 and in another dtype."""


@torch.no_grad()
def saved_loss_check(sweep: Sweep, student: StudentInTraining) -> Callable[[Path], None]:
    """Return a function that raises an InputError if a saved student has another loss than the student in training.

    Both losses are KL(teacher ‖ student) on a few held-out sequences. That of the saved student is computed from the
    logits of the full models. If the teacher is sharded, all processes must call this; the function that is returned
    then runs no sharded model.

    Args:
        sweep: students whose training has ended.
        student: the student that is saved.

    Returns:
        A function of the directory of the student's checkpoint.
    """
    device = sweep.accelerator.device
    ids = sweep.split.heldout[:CHECKED_SEQUENCES].to(device)
    counted = sweep.split.stream.counted(ids)
    if not counted.any():
        return lambda _directory: None
    trained = _loss_in_training(sweep, student, ids, counted)
    teacher_logits: Iterable[Tensor] = _teacher_logits(sweep, ids)
    if sweep.is_sharded:
        teacher_logits = list(teacher_logits)

    def check(directory: Path) -> None:
        saved = _loss_of_saved(directory, ids, counted, teacher_logits)
        is_fp32 = next(sweep.teacher.model.parameters()).dtype == torch.float32
        tolerance = ABSOLUTE_TOLERANCE + (RELATIVE_TOLERANCE if is_fp32 else HALF_PRECISION_TOLERANCE) * trained
        if not abs(saved - trained) <= tolerance:
            raise InputError(
                f"{student.spec.directory}: read by transformers, the saved student has a loss of {saved:.4g} nats per"
                f" token where the student in training had {trained:.4g}, so it was not saved; use another teacher"
            )

    return check


def _loss_in_training(
    sweep: Sweep,
    student: StudentInTraining,
    ids: Int[Tensor, "sequence position"],
    counted: Bool[Tensor, "sequence position"],
) -> float:
    """Return the loss as the learning curve has it, nats per counted token."""
    backbone = student.averaged_backbone
    with teacher_backbone(sweep.teacher.model, ids=ids, runs_to_end=sweep.is_sharded) as teacher:
        summed = summed_forward_kl(
            teacher.logits(teacher(ids).last_hidden[counted]), [backbone.logits(backbone(ids).last_hidden[counted])]
        )
    release(sweep.teacher.model)
    release(backbone)
    return float(summed[0]) / int(counted.sum())


def _teacher_logits(
    sweep: Sweep, ids: Int[Tensor, "sequence position"]
) -> Iterator[Float[Tensor, "1 position vocabulary"]]:
    """Yield the logits of the full teacher for one sequence after the other."""
    for sequence in torch.split(ids, 1):
        with torch.no_grad(), eval_mode(sweep.teacher.model):  # type: ignore[arg-type]
            logits: Tensor = sweep.teacher.model(sequence)
        release(sweep.teacher.model)
        yield logits


@torch.no_grad()
def _loss_of_saved(
    directory: Path,
    ids: Int[Tensor, "sequence position"],
    counted: Bool[Tensor, "sequence position"],
    teacher_logits: Iterable[Float[Tensor, "1 position vocabulary"]],
) -> float:
    """Return the loss of the full saved model against the full teacher, nats per counted token."""
    saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(ids.device).eval()
    summed = 0.0
    for sequence, mask, logits in zip(torch.split(ids, 1), torch.split(counted, 1), teacher_logits, strict=True):
        kl = forward_kl_in_chunks(logits, full_logits(saved, sequence))
        summed += float(kl[mask].double().sum())
    return summed / int(counted.sum())
