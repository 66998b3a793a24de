"""`probe_run`: probe a teacher, its students, and the forecasts of what each width still represents."""

import dataclasses
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from tl_distill_floor.annotations import (
    LabelsLike,
    ProbedActivation,
    ProgressMessageCallback,
    SaeLike,
    TeacherLike,
    TextLike,
    WidthsLike,
)
from tl_distill_floor.distilling.layers import is_residual, student_hook
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.reloading import load_measured_sae, measured_dtype
from tl_distill_floor.measuring.token_stream import device_of
from tl_distill_floor.predicting.bottleneck_task import HiddenStates
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.config import ProbeConfig
from tl_distill_floor.probing.decodability import decodability
from tl_distill_floor.probing.examples import TokenizedExamples, tokenize_examples
from tl_distill_floor.probing.fitting import fit_probes, probe_result
from tl_distill_floor.probing.forecasts import bottleneck_states, teacher_views
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.probes import Decodability, ProbeResult, Probes
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.saes import SaeSource
from tl_distill_floor.sources.teachers import Teacher, choose_context_size, load_teacher, tokenizer_of
from tl_distill_floor.sources.torch_state import neutral_torch_state


@neutral_torch_state()
def probe_run(
    floor: FloorPrediction,
    teacher: TeacherLike | None = None,
    sae: SaeLike | None = None,
    labelled: LabelsLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    students: Sequence[StudentResult] = (),
    widths: WidthsLike | None = None,
    text: TextLike | None = None,
    config: ProbeConfig | None = None,
    device: str = "cpu",
    progress: ProgressMessageCallback | None = None,
) -> Probes:
    """Probe the teacher, the distilled students, and two forecasts of what a student of each width still represents.

    The forecasts are the teacher's activation reconstructed from the features that a width is expected to keep, and the
    hidden state of the bottleneck student of that width. In addition, the teacher's SAE features are decoded from each
    model; see `Decodability`.

    Args:
        floor: prediction for the teacher; it says which features each width keeps.
        teacher: the teacher that was measured; see `load_teacher`. Loaded by the name in `floor` if None.
        sae: the SAE that was measured; see `load_sae`.
        labelled: labelled texts; see `load_labels`. The embedded passages if None.
        labels: fields that hold labels; see `load_labels`.
        students: saved students. Each is probed at its residual stream, at the same relative depth as the teacher's
            hook point. Diverged students are left out, with a warning.
        widths: widths of the forecasts, in dimensions; those of the students if None, or those of `floor` without
            students.
        text: text from which features are decoded; see `load_text`.
        config: how probes are fitted; `ProbeConfig()` if None.
        device: torch device of models and SAEs that are loaded here.
        progress: called with steps done, the total, and a short message.

    Returns:
        Probes: all results; save them with `Probes.save`.

    Raises:
        InputError: the prediction has no features, something cannot be loaded, the SAE is not the one that was
            measured, a width is below 1, or the labels cannot be probed.

    Example:
        >>> from tl_distill_floor import FeatureFloorPrediction, FloorPrediction, probe_run
        >>> probes = probe_run(FloorPrediction.load("runs/tiny-prose"), widths=[16, 64])  # doctest: +SKIP
        >>> probes.plot()  # doctest: +SKIP
    """
    floor = floor.with_features()
    config, stats = config or ProbeConfig(), floor.stats
    source = load_measured_sae(stats, sae, device)
    loaded_teacher = load_teacher(
        teacher or stats.model_name, device=device, dtype=measured_dtype(stats), model_kwargs=source.model_kwargs
    )
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
    run = _ProbedRun(floor, loaded_teacher, source, examples, config)
    steps = _StepCounter(progress, _count_steps(run, len(saved_students), len(forecast_widths)))
    # Features come first: probes take longer, and the text may turn out to be too short.
    features: list[Decodability] = []
    if config.n_feature_tokens:
        features = decodability(
            floor,
            loaded_teacher,
            source,
            saved_students,
            text,
            n_tokens=config.n_feature_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            on_model_done=steps.advance,
        )
    results = _probe_teacher(run, forecast_widths, steps)
    for student in saved_students:
        results += _probe_student(run, student, steps)
    return Probes(
        teacher=loaded_teacher.name,
        hook_name=stats.hook_name,
        labelled=labelled_text.name,
        stats=stats.digest(),
        results=tuple(results),
        features=tuple(features),
        settings=dataclasses.asdict(config),
        warnings=(*examples.warnings, *_warnings(students, stats.hook_name, source.counted_positions)),
    )


class _ProbedRun(NamedTuple):
    """What all probes of a run share."""

    floor: FeatureFloorPrediction
    teacher: Teacher
    source: SaeSource
    examples: TokenizedExamples
    config: ProbeConfig

    @property
    def trains_bottlenecks(self) -> bool:
        """Whether bottleneck students are trained."""
        return self.floor.stats.codes is not None and self.config.bottleneck_steps > 0


class _StepCounter:
    """Progress of a run in steps."""

    def __init__(self, progress: ProgressMessageCallback | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, message: str) -> None:
        """Report one more step as done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), message)


def _count_steps(run: _ProbedRun, n_students: int, n_widths: int) -> int:
    """Return the number of steps that `_StepCounter` will count."""
    n_forecasts = n_widths * (2 if run.trains_bottlenecks else 1)
    n_probes = len(run.examples.tasks) * (1 + n_students + n_forecasts)
    n_decoded_models = 1 + n_students if run.config.n_feature_tokens else 0
    return n_probes + int(run.trains_bottlenecks) + n_decoded_models


def _forecast_widths(floor: FloorPrediction, students: Sequence[StudentResult], widths: WidthsLike | None) -> list[int]:
    """Return the widths of the forecasts in rising order, each once."""
    given = [] if widths is None else [int(width) for width in widths]
    chosen = sorted(set(given or [student.width for student in students] or floor.widths.tolist()))
    if chosen[0] < 1:
        raise InputError(f"a width must be at least 1 dimension, got {chosen[0]}")
    return chosen


def _probe_teacher(run: _ProbedRun, widths: Sequence[int], steps: _StepCounter) -> list[ProbeResult]:
    """Probe the teacher's activation and the forecasts for each width."""
    hidden: dict[int, HiddenStates] = {}
    if run.trains_bottlenecks:
        device = str(device_of(run.teacher.model))
        hidden = bottleneck_states(run.floor, widths, run.config.bottleneck_steps, device)
        steps.advance("bottlenecks")
    hook_name = run.floor.stats.hook_name
    views = teacher_views(run.floor, run.teacher, run.source.sae, widths, hidden)
    activations = collect_activations(
        run.teacher.model, hook_name, run.examples, views, batch_size=run.config.batch_size
    )
    results = _fit_tasks(run, activations.pop("activation"), run.teacher.name, "teacher", None, hook_name, steps)
    kinds: tuple[ProbedActivation, ...] = ("kept", "bottleneck") if hidden else ("kept",)
    for kind, width in product(kinds, widths):
        forecast = activations[f"{kind} {width}"]
        results += _fit_tasks(run, forecast, f"{kind} at {width}", kind, width, hook_name, steps)
    return results


def _probe_student(run: _ProbedRun, student: StudentResult, steps: _StepCounter) -> list[ProbeResult]:
    """Probe a student's residual stream."""
    assert student.path is not None
    model = load_teacher(student.path, device=str(device_of(run.teacher.model))).model
    n_layers = int(run.teacher.model.cfg.n_layers)
    hook_name = student_hook(run.floor.stats.hook_name, n_layers, student.depth)
    activations = collect_activations(model, hook_name, run.examples, batch_size=run.config.batch_size)["activation"]
    return _fit_tasks(run, activations, student.name, "student", student.width, hook_name, steps)


def _fit_tasks(
    run: _ProbedRun,
    activations: Sequence[Float32[np.ndarray, "_ view"]],
    subject: str,
    kind: ProbedActivation,
    width: int | None,
    hook_name: str,
    steps: _StepCounter,
) -> list[ProbeResult]:
    """Fit the probes of every task to one kind of activation."""
    results = []
    for x, task in zip(activations, run.examples.tasks, strict=True):
        scores = fit_probes(x, task, n_splits=run.config.n_splits, seed=run.config.seed)
        results.append(probe_result(task, scores, subject, kind, width, hook_name))
        steps.advance(f"{task.task} in {subject}")
    return results


def _warnings(students: Sequence[StudentResult], hook_name: str, positions: tuple[int | None, ...] | None) -> list[str]:
    diverged = [student.name for student in students if student.status == "diverged"]
    warnings = [f"diverged, and not probed: {', '.join(diverged)}"] if diverged else []
    if students and not is_residual(hook_name):
        warnings.append(f"students are probed at their residual stream, the teacher at {hook_name}")
    if positions is not None:
        warnings.append(f"labels are probed at all positions, the SAE was trained on positions {list(positions)}")
    return warnings
