"""Train students until a point in time, and keep their learning curves, but no weights."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from tl_distill_floor import DistillConfig, StudentSpec
from tl_distill_floor.annotations import ProgressMessageCallback, TextLike
from tl_distill_floor.distilling.training.evaluation import add_curve_points
from tl_distill_floor.distilling.training.student_results import student_results
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_loop import train
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state

LEAST_STEP = 1.03
"""Ratio of the tokens of the last point of a learning curve to those of the point before, at least."""


class TimeIsUpError(Exception):
    """Ends a training when its time is up."""


@neutral_torch_state()
def distill_until(
    stop_at: float,
    teacher: Teacher,
    specs: Sequence[StudentSpec],
    text: TextLike,
    heldout: TextLike,
    config: DistillConfig,
    *,
    context_size: int,
    out: Path,
    progress: ProgressMessageCallback,
) -> None:
    """Train students on the same batches until their plan or the time ends.

    The learning rate should be constant for longer than the time allows, because it does not fall at the end; every
    point of a learning curve is the loss of averaged weights. After every point the `student.json` of each student is
    written, so that a training that is killed leaves its curve.

    Args:
        stop_at: time at which the training ends, in seconds since 1970.
        teacher: the teacher, on the device that the students are trained on.
        specs: the students.
        text: training text.
        heldout: held-out text.
        config: settings of the training.
        context_size: tokens per sequence.
        out: directory of the run; results are written to its `students/`.
        progress: called after every step.
    """
    device = next(teacher.model.parameters()).device
    split = read_text_split(teacher, text, heldout, config, context_size)
    sweep = Sweep(teacher, specs, split, config, Accelerator(cpu=device.type == "cpu", mixed_precision="no"))
    n_saved = 0

    def save_and_check_time(done: int, total: int, message: str) -> None:
        nonlocal n_saved
        n_points = sum(len(student.losses) for student in sweep.students)
        if n_points > n_saved:
            _save(sweep, out)
            n_saved = n_points
        progress(done, total, message)
        if time.time() > stop_at:
            raise TimeIsUpError

    with teacher_backbone(teacher.model, None, split.heldout) as backbone:
        try:
            train(sweep, backbone, None, math.inf, save_and_check_time)
        except TimeIsUpError:
            done = sweep.step * sweep.tokens_per_step
            if any(not student.tokens or done >= LEAST_STEP * student.tokens[-1] for student in sweep.active):
                add_curve_points(sweep, backbone)
    _save(sweep, out)


def _save(sweep: Sweep, out: Path) -> None:
    """Write the results of all students."""
    for result in student_results(sweep):
        directory = out / "students" / result.name
        directory.mkdir(parents=True, exist_ok=True)
        result.save(directory)
