"""Measure how fast students run, relative to their teacher."""

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel, ProgressMessageCallback
from tl_distill_floor.distilling.students.family_models import create_model, full_logits, refuse_failures
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.distilling.students.widths import teacher_width
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teachers import choose_context_size

TIMED_TOKENS, TIMED_ROUNDS = 1024, 3
"""Tokens per timed forward pass, and timed passes per model."""
LONGEST_TIMING = 10.0
"""Seconds after which no further pass of a pair of models is timed, if there is one."""
N_TIMED = 6
"""Students that are timed for one plan, about."""


class SpeedTimer:
    """Times students of a teacher, each at most once, and interpolates between them.

    Speeds are tokens per second of the forward pass, divided by the teacher's. Every student is timed in turns with the
    teacher, so that other work on the machine slows both. The teacher is a `transformers` model of its shape.

    Args:
        teacher: the teacher's model; students are timed on its device.
        depth: number of layers of the students; the teacher's if None.
        progress: called after each timed student with the number done, about how many there will be, and a message.
    """

    def __init__(
        self, teacher: HookedModel, depth: int | None = None, progress: ProgressMessageCallback | None = None
    ) -> None:
        self._teacher, self._depth, self._progress = teacher, depth, progress
        self._plain_teacher: nn.Module | None = None
        self.timed: dict[int, float] = {}
        """The measured speed at each width."""

    def measure(self, width: int) -> float:
        """Return the measured speed of a student.

        Args:
            width: dimensions.

        Raises:
            InputError: the student cannot be built.
        """
        if width not in self.timed:
            self.timed[width] = self._time(width)
            if self._progress is not None:
                n_timed = len(self.timed)
                self._progress(n_timed, max(N_TIMED, n_timed), "timing students")
        return self.timed[width]

    def at(self, width: int) -> float:
        """Return the speed of a student: measured, or interpolated in log speed over log width.

        Outside of the timed widths it is that of the nearest one.

        Args:
            width: dimensions.
        """
        if width in self.timed:
            return self.timed[width]
        widths = sorted(self.timed)
        log_speeds = [math.log(self.timed[timed]) for timed in widths]
        return float(np.exp(np.interp(math.log(width), np.log(widths), log_speeds)))

    def _time(self, width: int) -> float:
        """Return the ratio of the shortest times of forward passes, which other work on the machine delays least."""
        device = device_of(self._teacher)
        if self._plain_teacher is None:
            self._plain_teacher = self._create(teacher_width(self._teacher), None).to(device)
        models = (self._plain_teacher, self._create(width, self._depth).to(device))
        length = choose_context_size(self._teacher)
        ids = torch.zeros((max(1, TIMED_TOKENS // length), length), dtype=torch.long, device=device)
        seconds: list[list[float]] = [[], []]
        started = time.perf_counter()
        # The first pass of each model warms up caches.
        for n_passes in range(TIMED_ROUNDS + 1):
            if n_passes > 1 and time.perf_counter() - started > LONGEST_TIMING:
                break
            for model, model_seconds in zip(models, seconds, strict=True):
                model_seconds.append(_seconds(model, ids))
        teacher_seconds, student_seconds = (min(model_seconds[1:]) for model_seconds in seconds)
        return teacher_seconds / student_seconds

    def _create(self, width: int, depth: int | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            return create_model(student_config(hugging_face_config(self._teacher), width, depth))


@torch.no_grad()
def _seconds(model: nn.Module, ids: Tensor) -> float:
    """Return the time of one forward pass."""
    started = time.perf_counter()
    with refuse_failures(model.config, "cannot be timed"):  # type: ignore[arg-type]
        float(full_logits(model, ids)[0, 0, 0])  # waits for the device
    return time.perf_counter() - started
