"""Save an interrupted sweep, and load it to resume the training."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tl_distill_floor.distilling.training.agreement import fail_together
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.storage.checkpoints import load_checkpoint, report_damaged_checkpoint, save_checkpoint

SWEEP_CHECKPOINT_FILE = "partial.safetensors"
"""File in the directory of the students."""
KIND = "students-partial"
"""Name of the format of the file."""


def save_sweep(sweep: Sweep, path: Path) -> None:
    """Write the state of all students, and the settings that must be equal when the training is resumed.

    If the students are sharded, all processes must call this; the first one writes the file. It is the same file
    whatever the number of processes.
    """
    states = {student.spec.directory: student.state_dict() for student in sweep.students}
    with fail_together(sweep.accelerator) if sweep.is_sharded else nullcontext():
        if sweep.accelerator.is_main_process:
            save_checkpoint(path, KIND, states, sweep_identity(sweep), sweep.step)


def load_sweep(sweep: Sweep, path: Path) -> None:
    """Restore what `save_sweep` wrote, if the file exists.

    Args:
        sweep: a sweep of the same settings, which is changed.
        path: the file.

    Raises:
        InputError: the file is damaged, or of a training with other settings.
    """
    if not path.exists():
        return
    states, step = load_checkpoint(path, KIND, sweep_identity(sweep))
    with report_damaged_checkpoint(path):
        for student in sweep.students:
            student.load_state_dict(states[student.spec.directory])
        sweep.step = step


def sweep_identity(sweep: Sweep) -> dict[str, Any]:
    """Return the settings that must be equal when a training is resumed; the learning rate may change."""
    settings = dataclasses.asdict(sweep.config)
    del settings["lr"]
    return {
        "teacher": sweep.teacher.name,
        "weights": sweep.teacher_digest,
        "text": sweep.split.fingerprint,
        "students": [_spec_identity(student.spec) for student in sweep.students],
        **settings,
    }


def _spec_identity(spec: StudentSpec) -> dict[str, Any]:
    fields = dataclasses.asdict(dataclasses.replace(spec, target=None))
    return fields | {"target": spec.target.digest if spec.target else None}
