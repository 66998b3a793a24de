"""`probe_run`: probe a teacher, its students, and the forecasts of what each width still represents."""

import dataclasses
from collections.abc import Sequence
from itertools import product

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
from tl_distill_floor.probing.activations import collect_activations
from tl_distill_floor.probing.config import ProbeConfig
from tl_distill_floor.probing.decodability import decodability
from tl_distill_floor.probing.fitting import fit_probes, probe_result
from tl_distill_floor.probing.forecasts import bottleneck_states, teacher_views
from tl_distill_floor.probing.run_inputs import MessageCounter, RunInputs, load_run_inputs
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.probes import Decodability, ProbeResult, Probes
from tl_distill_floor.results.student import StudentResult
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
        InputError: the prediction has no features, something cannot be loaded, the teacher or the SAE is not the
            one that was measured, a student has another teacher, a width is not an integer above 0, or the labels
            cannot be probed.

    Example:
        >>> from tl_distill_floor import FloorPrediction, probe_run
        >>> probes = probe_run(FloorPrediction.load("runs/tiny-prose"), widths=[16, 64])  # doctest: +SKIP
        >>> probes.plot()  # doctest: +SKIP
    """
    floor, config = floor.with_features(), config or ProbeConfig()
    inputs = load_run_inputs(
        floor,
        teacher,
        sae,
        labelled,
        labels,
        students=students,
        widths=widths,
        config=config,
        device=device,
    )
    steps = MessageCounter(progress, _count_steps(inputs, config))
    # Features come first: probes take longer, and the text may turn out to be too short.
    features: list[Decodability] = []
    if config.n_feature_tokens:
        features = decodability(
            floor,
            inputs.teacher,
            inputs.source,
            inputs.students,
            text,
            n_tokens=config.n_feature_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            on_model_done=steps.advance,
        )
    results = _probe_teacher(inputs, steps)
    for student in inputs.students:
        activations, hook_name = inputs.student_activations(student), inputs.student_hook(student)
        results += _fit_tasks(inputs, activations, student.name, "student", student.width, hook_name, steps)
    return Probes(
        teacher=inputs.teacher.name,
        hook_name=inputs.hook_name,
        labelled=inputs.labelled,
        stats=floor.stats.digest(),
        results=tuple(results),
        features=tuple(features),
        settings=dataclasses.asdict(config),
        warnings=inputs.warnings,
    )


def _count_steps(inputs: RunInputs, config: ProbeConfig) -> int:
    """Return the number of steps that `MessageCounter` will count."""
    n_students = len(inputs.students)
    n_forecasts = len(inputs.widths) * (2 if inputs.trains_bottlenecks else 1)
    n_probes = len(inputs.examples.tasks) * (1 + n_students + n_forecasts)
    n_decoded_models = 1 + n_students if config.n_feature_tokens else 0
    return n_probes + int(inputs.trains_bottlenecks) + n_decoded_models


def _probe_teacher(inputs: RunInputs, steps: MessageCounter) -> list[ProbeResult]:
    """Probe the teacher's activation and the forecasts for each width."""
    hidden = bottleneck_states(inputs)
    if hidden:
        steps.advance("bottlenecks")
    activations = collect_activations(
        inputs.teacher.model,
        inputs.hook_name,
        inputs.examples,
        teacher_views(inputs, hidden),
        batch_size=inputs.texts_per_pass,
    )
    teacher, hook_name = inputs.teacher.name, inputs.hook_name
    results = _fit_tasks(inputs, activations.pop("activation"), teacher, "teacher", None, hook_name, steps)
    kinds: tuple[ProbedActivation, ...] = ("kept", "bottleneck") if hidden else ("kept",)
    for kind, width in product(kinds, inputs.widths):
        forecast = activations[f"{kind} {width}"]
        results += _fit_tasks(inputs, forecast, f"{kind} at {width}", kind, width, hook_name, steps)
    return results


def _fit_tasks(
    inputs: RunInputs,
    activations: Sequence[Float32[np.ndarray, "_ view"]],
    subject: str,
    kind: ProbedActivation,
    width: int | None,
    hook_name: str,
    steps: MessageCounter,
) -> list[ProbeResult]:
    """Fit the probes of every task to one kind of activation."""
    results = []
    for x, task in zip(activations, inputs.examples.tasks, strict=True):
        scores = fit_probes(x, task, n_splits=inputs.config.n_splits, seed=inputs.config.seed)
        results.append(probe_result(task, scores, subject, kind, width, hook_name))
        steps.advance(f"{task.task} in {subject}")
    return results
