"""Load what the probes of a run share: the teacher, its SAE, the labelled examples and the students."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from tl_distill_floor.annotations import (
    LabelsLike,
    ProgressMessageCallback,
    SaeLike,
    TeacherLike,
    WidthsLike,
)
from tl_distill_floor.distilling.planning.calibrate import check_students_teacher
from tl_distill_floor.distilling.students.layers import is_residual, student_hook
from tl_distill_floor.measuring.reloading import load_measured_sae, load_measured_teacher
from tl_distill_floor.predicting.checks import integer_widths
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.config import ProbeConfig, SparseProbeConfig
from tl_distill_floor.probing.examples import TokenizedExamples, tokenize_examples
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.saes import SaeSource
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import choose_context_size, load_teacher, tokenizer_of

MAX_CODES = 2**26
"""Largest number of codes, tokens times features, that are computed at once: 256 MiB in fp32."""


class RunInputs(NamedTuple):
    """What all probes of a run share."""

    floor: FeatureFloorPrediction
    teacher: Teacher
    source: SaeSource
    """The SAE that was measured."""
    examples: TokenizedExamples
    labelled: str
    """Name of the labelled text."""
    students: tuple[StudentResult, ...]
    """Saved students that did not diverge."""
    widths: tuple[int, ...]
    """Widths of the forecasts in rising order, each once."""
    config: ProbeConfig | SparseProbeConfig
    """How probes are fitted."""
    warnings: tuple[str, ...]

    @property
    def hook_name(self) -> str:
        """The teacher's hook point."""
        return self.floor.stats.hook_name

    @property
    def device(self) -> str:
        """Torch device of the teacher."""
        return str(device_of(self.teacher.model))

    @property
    def texts_per_pass(self) -> int:
        """Texts that are encoded at once: those of a forward pass, or fewer if the SAE has very many features."""
        longest = max(len(ids) for ids in self.examples.ids)
        return max(1, min(self.config.batch_size, MAX_CODES // (longest * len(self.floor.stats.decoder_norm))))

    @property
    def trains_bottlenecks(self) -> bool:
        """Whether bottleneck students are trained, as one of the forecasts."""
        return self.floor.stats.codes is not None and self.config.bottleneck_steps > 0

    def student_hook(self, student: StudentResult) -> str:
        """Return the student's residual stream at the same relative depth as the teacher's hook point."""
        return student_hook(self.hook_name, int(self.teacher.model.cfg.n_layers), student.depth)

    def student_activations(self, student: StudentResult) -> list[Float32[np.ndarray, "_ _"]]:
        """Return a student's residual stream at the labelled examples [task][example, dimension]."""
        assert student.path is not None
        model = load_teacher(student.path, device=self.device).model
        hook_name, batch_size = self.student_hook(student), self.config.batch_size
        return collect_activations(model, hook_name, self.examples, batch_size=batch_size)["activation"]


class MessageCounter:
    """A count of steps that calls a progress callback at every step, with a message."""

    def __init__(self, progress: ProgressMessageCallback | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, message: str) -> None:
        """Report one more step as done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), message)


def load_run_inputs(
    floor: FeatureFloorPrediction,
    teacher: TeacherLike | None,
    sae: SaeLike | None,
    labelled: LabelsLike | None,
    labels: Sequence[str] | None,
    *,
    students: Sequence[StudentResult],
    widths: WidthsLike | None,
    config: ProbeConfig | SparseProbeConfig,
    device: str,
) -> RunInputs:
    """Load the teacher, the SAE and the labelled examples; for the arguments see `probe_run`.

    Raises:
        InputError: something cannot be loaded, the teacher or the SAE is not the one that was measured, a student has
            another teacher, a width is not an integer above 0, or the labels cannot be probed.
    """
    check_students_teacher(floor, students)
    stats = floor.stats
    source = load_measured_sae(stats, sae, device)
    loaded_teacher, of_teacher = load_measured_teacher(stats, teacher, source, device)
    saved_students = [student for student in students if student.path is not None and student.status != "diverged"]
    forecast_widths = _forecast_widths(floor, saved_students, widths)
    labelled_text = load_labels(labelled, labels)
    examples = tokenize_examples(
        labelled_text,
        tokenizer_of(loaded_teacher.model),
        pool=config.pool,
        context_size=int(stats.settings.get("context_size", choose_context_size(loaded_teacher.model))),
        prepend_bos=source.prepend_bos is not False,
        per_class=config.per_class,
        seed=config.seed,
    )
    warnings = (*of_teacher, *examples.warnings, *_warnings(students, stats.hook_name, source.counted_positions))
    return RunInputs(
        floor=floor,
        teacher=loaded_teacher,
        source=source,
        examples=examples,
        labelled=labelled_text.name,
        students=tuple(saved_students),
        widths=tuple(forecast_widths),
        config=config,
        warnings=warnings,
    )


def _forecast_widths(
    floor: FeatureFloorPrediction, students: Sequence[StudentResult], widths: WidthsLike | None
) -> list[int]:
    """Return the widths of the forecasts in rising order, each once."""
    chosen: list[int] = integer_widths(
        ([student.width for student in students] or floor.widths) if widths is None else widths
    ).tolist()
    return chosen


def _warnings(students: Sequence[StudentResult], hook_name: str, positions: tuple[int | None, ...] | None) -> list[str]:
    diverged = [student.name for student in students if student.status == "diverged"]
    warnings = [f"diverged, and not probed: {', '.join(diverged)}"] if diverged else []
    in_memory = [student.name for student in students if student.path is None and student.status != "diverged"]
    if in_memory:
        warnings.append(f"not saved, and not probed: {', '.join(in_memory)} (distil with out=DIRECTORY)")
    if students and not is_residual(hook_name):
        warnings.append(f"students are probed at their residual stream, the teacher at {hook_name}")
    if positions is not None:
        warnings.append(f"labels are probed at all positions, the SAE was trained on positions {list(positions)}")
    return warnings
