"""The training loop: steps, evaluations and checkpoints until every student's training has ended."""

import math
import time
from pathlib import Path

from tl_distill_floor.annotations import ProgressMessageCallback
from tl_distill_floor.distilling.training.agreement import of_first_process
from tl_distill_floor.distilling.training.evaluation import add_curve_points
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.training_step import set_matching_variance, train_step
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.teacher_backbone import TeacherBackbone


def train(
    sweep: Sweep,
    teacher: TeacherBackbone,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    progress: ProgressMessageCallback | None,
) -> None:
    """Train until all steps are done or every student's training has ended.

    Args:
        sweep: the students, whose training begins or continues at `sweep.step`.
        teacher: the teacher without its unembedding.
        checkpoint: file of the checkpoints; None to write none.
        checkpoint_seconds: time between checkpoints.
        progress: called after every step.

    Raises:
        InputError: every student diverged.
    """
    evaluation_steps = set(sweep.config.evaluation_steps(sweep.n_steps))
    set_matching_variance(sweep, teacher)
    start_time = saved_time = time.perf_counter()
    first_step = sweep.step
    while sweep.step < sweep.n_steps and sweep.active:
        _mark_diverged(sweep, train_step(sweep, teacher))
        _check_any_left(sweep, checkpoint)
        sweep.step += 1
        if sweep.step in evaluation_steps:
            add_curve_points(sweep, teacher)
            _check_any_left(sweep, checkpoint)
        now = time.perf_counter()
        if checkpoint and _saves(sweep, now - saved_time >= checkpoint_seconds):
            sweep.save(checkpoint)
            saved_time = time.perf_counter()
        if progress:
            rate = (sweep.step - first_step) * sweep.tokens_per_step / (now - start_time)
            _report_progress(sweep, progress, rate)
    if checkpoint and any(student.losses for student in sweep.students) and _saves(sweep, is_due=True):
        sweep.save(checkpoint)


def _saves(sweep: Sweep, is_due: bool) -> bool:
    """Return whether this process takes part in saving, which is due by its own clock.

    Sharded students are saved by all processes, when the first one finds that it is due, others by the first one.
    """
    if sweep.is_sharded:
        return of_first_process(sweep.accelerator, "due" if is_due else "") == "due"
    return is_due and sweep.accelerator.is_main_process


def _mark_diverged(sweep: Sweep, losses: list[float]) -> None:
    """End the training of the active students whose loss is not finite."""
    for student, loss in zip(sweep.active, losses, strict=True):
        if not math.isfinite(loss):
            student.mark_diverged(f"at step {sweep.step + 1} (loss {loss}, learning rate {sweep.lr:.3g})")


def _check_any_left(sweep: Sweep, checkpoint: Path | None) -> None:
    """Raise an InputError if every student diverged."""
    if any(student.status != "diverged" for student in sweep.students):
        return
    where = ", ".join(f"{student.spec.directory} {student.diverged_at}" for student in sweep.students)
    kept = f"; the last checkpoint is in {checkpoint}" if checkpoint and checkpoint.exists() else ""
    advice = sweep.config.objective.advice_on_infinity() if "loss inf" in where else None
    raise InputError(f"training diverged: {where}{kept}; {advice or f'try --lr {sweep.config.lr / 3:.2g}'}")


def _report_progress(sweep: Sweep, progress: ProgressMessageCallback, tokens_per_second: float) -> None:
    """Report tokens done, the total, and each student's last held-out loss."""
    losses = [
        f"{student.spec.directory.removeprefix('width')}: {student.losses[-1]:.3f}"
        for student in sweep.students
        if student.losses
    ]
    progress(
        sweep.step * sweep.tokens_per_step,
        sweep.n_steps * sweep.tokens_per_step,
        ", ".join([*losses, f"{tokens_per_second:,.0f} tokens/s"]),
    )
