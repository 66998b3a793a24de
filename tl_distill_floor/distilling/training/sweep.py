"""`Sweep`: students that are trained together, the number of steps done, and the checkpoint of both."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tl_distill_floor.distilling.training.agreement import fail_together, of_first_process
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.sharding import shard_teacher
from tl_distill_floor.distilling.training.student_state import StudentInTraining
from tl_distill_floor.distilling.training.text_split import TextSplit
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import weights_digest
from tl_distill_floor.storage.checkpoints import (
    checkpoint_identity,
    load_checkpoint,
    report_damaged_checkpoint,
    save_checkpoint,
)

SWEEP_CHECKPOINT_FILE = "partial.safetensors"
"""Checkpoint of an interrupted training, in the directory of the students."""
KIND = "students-partial"
"""Name of the format of the file."""


class Sweep:
    """Students that are trained together, on the same batches and one forward pass of the teacher per batch.

    Args:
        teacher: the teacher.
        specs: the students, of different names.
        split: training and held-out sequences.
        config: settings of the training.
        accelerator: device and processes that the students are trained on.
        sharded: whether teacher and students are sharded over the processes; see `load_to_shard`.

    Raises:
        InputError: two students have one name, they match several hook points, a batch cannot be divided into the
            processes and parts, a student cannot be built, or the teacher cannot be sharded.
    """

    def __init__(
        self,
        teacher: Teacher,
        specs: Sequence[StudentSpec],
        split: TextSplit,
        config: DistillConfig,
        accelerator: Accelerator,
        *,
        sharded: bool = False,
    ) -> None:
        check_specs(specs)
        n_parts = accelerator.num_processes * config.accumulate
        if config.batch_size % n_parts:
            raise InputError(
                f"a batch of {config.batch_size} sequences cannot be divided into {accelerator.num_processes} processes"
                f" of {config.accumulate} parts each; set --batch-size to a multiple of {n_parts}"
            )
        self.teacher, self.split, self.config, self.accelerator = teacher, split, config, accelerator
        self.is_sharded = sharded
        """Whether teacher and students are sharded over the processes."""
        self.teacher_hook = next((spec.match.teacher_hook for spec in specs if spec.match), None)
        self.students = [
            StudentInTraining(teacher.model, spec, config, accelerator, split.heldout, sharded=sharded)
            for spec in specs
        ]
        if sharded:
            digest = weights_digest(teacher.model) if accelerator.is_main_process else ""
            self.teacher_digest = of_first_process(accelerator, digest)
            shard_teacher(teacher.model, accelerator)
        self.n_steps = split.n_steps(config)
        self.step = 0
        """Number of steps done."""

    @cached_property
    def teacher_digest(self) -> str:
        """Digest of the teacher's weights."""
        return weights_digest(self.teacher.model)

    @property
    def active(self) -> list[StudentInTraining]:
        """The students whose training has not ended."""
        return [student for student in self.students if student.status is None]

    @property
    def tokens_per_step(self) -> int:
        """Training tokens per step, over all processes."""
        return self.config.batch_size * self.split.context_size

    @property
    def lr(self) -> float:
        """Learning rate of the current step."""
        return self.config.lr_at(self.step, self.n_steps)

    def save(self, path: Path) -> None:
        """Write the state of all students, and the settings that must be equal when the training is resumed.

        If the students are sharded, all processes must call this; the first one writes the file. It is the same file
        whatever the number of processes.

        Args:
            path: the checkpoint.
        """
        states = {student.spec.directory: student.state_dict() for student in self.students}
        with fail_together(self.accelerator) if self.is_sharded else nullcontext():
            if self.accelerator.is_main_process:
                save_checkpoint(path, KIND, states, self._identity(), self.step)

    def load(self, path: Path) -> None:
        """Restore what `save` of a sweep of the same settings wrote, if the file exists.

        Args:
            path: the checkpoint.

        Raises:
            InputError: the file is damaged, or of a training with other settings.
        """
        if not path.exists():
            return
        states, step = load_checkpoint(path, KIND, self._identity())
        with report_damaged_checkpoint(path):
            for student in self.students:
                student.load_state_dict(states[student.spec.directory])
            self.step = step

    def _identity(self) -> dict[str, Any]:
        """Return the settings that must be equal when a training is resumed; the learning rate may change."""
        settings = dataclasses.asdict(self.config)
        del settings["lr"]
        return {
            "teacher": self.teacher.name,
            "weights": self.teacher_digest,
            "text": self.split.fingerprint,
            "students": [_spec_identity(student.spec) for student in self.students],
            **settings,
        }


def interrupted_widths(path: Path) -> set[int]:
    """Return the widths of the students whose training was interrupted; none without a checkpoint.

    Args:
        path: the checkpoint.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return set()
    with report_damaged_checkpoint(path):
        return {int(student["width"]) for student in checkpoint_identity(path, KIND)["students"]}


def check_specs(specs: Sequence[StudentSpec]) -> None:
    """Raise an InputError unless the students have different names and match at most one hook point."""
    names = [spec.directory for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise InputError(f"each student needs a name of its own, got {', '.join(names) or 'no student'}; set name")
    hooks = {spec.match.teacher_hook for spec in specs if spec.match}
    if len(hooks) > 1:
        raise InputError(
            f"students that are trained together match one hook point of the teacher, got {', '.join(sorted(hooks))};"
            " train them separately"
        )


def _spec_identity(spec: StudentSpec) -> dict[str, Any]:
    fields = dataclasses.asdict(dataclasses.replace(spec, target=None))
    return fields | {"target": spec.target.digest if spec.target else None}
