"""`sparse_probe`: find the few SAE features that a concept rests on, and the students that lose them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from tl_distill_floor.annotations import LabelsLike, ProgressMessageCallback, SaeLike, TeacherLike, WidthsLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.checks import integer_widths
from tl_distill_floor.probing.concepts import ConceptExamples, concept_features, concepts_of
from tl_distill_floor.probing.config import SparseProbeConfig
from tl_distill_floor.probing.fitting import DocumentSplit
from tl_distill_floor.probing.forecasts import bottleneck_states
from tl_distill_floor.probing.run_inputs import MessageCounter, RunInputs, load_run_inputs
from tl_distill_floor.probing.sparse_codes import TeacherExamples, collect_codes
from tl_distill_floor.probing.sparse_fitting import (
    fit_concept,
    fit_remaining,
    fit_sparse,
    joined_scores,
    split_concept,
)
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.sparse_probes import (
    Concept,
    ConceptAtWidth,
    ConceptInStudent,
    ConceptScores,
    SparseProbes,
    enough_features,
)
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.torch_state import neutral_torch_state


@neutral_torch_state()
def sparse_probe(
    floor: FloorPrediction,
    teacher: TeacherLike | None = None,
    sae: SaeLike | None = None,
    labelled: LabelsLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    students: Sequence[StudentResult] = (),
    widths: WidthsLike | None = None,
    config: SparseProbeConfig | None = None,
    device: str = "cpu",
    progress: ProgressMessageCallback | None = None,
) -> SparseProbes:
    """Find the few SAE features that a concept rests on, and what students that lose some of them still represent.

    A concept is one class of a label against the others. For each split of the documents, the K features that differ
    most between the two are selected on training documents, and a logistic regression on them is scored on test
    documents, as Gurnee et al. (2023, arXiv 2305.01610) probe neurons, and Kantamneni et al. (2025, arXiv 2502.16681)
    the features of SAEs. Controls are the same probes with labels that are shuffled between documents, and probes of
    random features; the reference is a dense probe of the teacher's activation. The controls show what the procedure
    alone gives. None of these probes shows that the model uses a feature.

    Args:
        floor: prediction for the teacher; it says which features each width keeps.
        teacher: the teacher that was measured; see `load_teacher`. Loaded by the name in `floor` if None.
        sae: the SAE that was measured; see `load_sae`.
        labelled: labelled texts; see `load_labels`. The embedded passages if None.
        labels: fields that hold labels; see `load_labels`.
        students: saved students, whose residual streams are probed densely, as in `probe_run`.
        widths: widths of the forecasts, in dimensions, in addition to those of the students; those of `floor` if None
            and there are no students.
        config: how probes are fitted; `SparseProbeConfig()` if None.
        device: torch device of models and SAEs that are loaded here.
        progress: called with steps done, the total, and a short message.

    Returns:
        SparseProbes: the scores of each concept over K, its features, and the widths that lose them; save it with
        `SparseProbes.save`.

    Raises:
        InputError: the prediction has no features, something cannot be loaded, the teacher or the SAE is not the
            one that was measured, a student has another teacher, K is above the number of alive features, a width is
            not an integer above 0, or the labels cannot be probed.

    Example:
        >>> from tl_distill_floor import FloorPrediction, SparseProbeConfig, sparse_probe
        >>> floor = FloorPrediction.load("runs/tiny-prose")  # doctest: +SKIP
        >>> probes = sparse_probe(floor, labels=["author"], config=SparseProbeConfig(k=4))  # doctest: +SKIP
        >>> probes.concepts[0].core, probes.concepts[0].best.selected.mean_auroc  # doctest: +SKIP
    """
    floor, config = floor.with_features(), config or SparseProbeConfig()
    if config.k > floor.n_features:
        raise InputError(
            f"a probe cannot read {config.k:,} features, since only {floor.n_features:,} are alive; set --sparse"
            f" {floor.n_features} or less"
        )
    inputs = load_run_inputs(
        floor,
        teacher,
        sae,
        labelled,
        labels,
        students=students,
        widths=None if widths is None else [*integer_widths(widths), *(student.width for student in students)],
        config=config,
        device=device,
    )
    concepts, notes = _split_concepts(inputs, config)
    n_steps = int(inputs.trains_bottlenecks) + 1 + len(inputs.students) + len(concepts)
    steps = MessageCounter(progress, n_steps)
    activations = _collect(inputs, steps)
    kept = {width: floor.kept(width) for width in inputs.widths}
    records = []
    for concept, splits in concepts:
        records.append(_probe_concept(inputs, activations, kept, concept, splits, config))
        steps.advance(concept.name)
    return SparseProbes(
        teacher=inputs.teacher.name,
        hook_name=inputs.hook_name,
        sae_name=floor.stats.sae_name,
        labelled=inputs.labelled,
        stats=floor.stats.digest(),
        n_features=floor.n_features,
        concepts=tuple(records),
        settings=dataclasses.asdict(config),
        warnings=(*inputs.warnings, *notes),
    )


class _Activations(NamedTuple):
    """What is probed."""

    teacher: TeacherExamples
    students: list[tuple[StudentResult, list[Float32[np.ndarray, "_ _"]]]]
    """Each student with its residual stream [task][example, dimension]."""


def _split_concepts(
    inputs: RunInputs, config: SparseProbeConfig
) -> tuple[list[tuple[ConceptExamples, list[DocumentSplit]]], list[str]]:
    """Return the concepts with the splits of their documents, and a warning for each that cannot be split.

    Raises:
        InputError: no concept can be split.
    """
    concepts: list[tuple[ConceptExamples, list[DocumentSplit]]] = []
    refused: list[str] = []
    for number, task in enumerate(inputs.examples.tasks):
        for concept in concepts_of(task, number, config.per_class, config.seed):
            try:
                concepts.append((concept, split_concept(concept.examples, config.n_splits, config.seed)))
            except InputError as error:
                refused.append(str(error))
    if not concepts:
        raise InputError(refused[0])
    return concepts, refused


def _collect(inputs: RunInputs, steps: MessageCounter) -> _Activations:
    """Collect the codes and activations of the teacher, the forecasts and the students."""
    hidden = bottleneck_states(inputs)
    if hidden:
        steps.advance("bottlenecks")
    teacher = collect_codes(inputs, hidden)
    steps.advance(inputs.teacher.name)
    students = []
    for student in inputs.students:
        students.append((student, inputs.student_activations(student)))
        steps.advance(student.name)
    return _Activations(teacher, students)


def _probe_concept(
    inputs: RunInputs,
    activations: _Activations,
    kept: Mapping[int, Bool[np.ndarray, " feature"]],
    concept: ConceptExamples,
    splits: Sequence[DocumentSplit],
    config: SparseProbeConfig,
) -> Concept:
    """Fit all probes of one concept."""
    alive = inputs.floor.stats.alive(inputs.floor.min_count)
    fits = fit_sparse(activations.teacher.codes[concept.task][concept.rows], concept, splits, alive, config)
    widest = max(inputs.floor.stats.d_model, *inputs.widths, *inputs.floor.widths.tolist())
    features = concept_features(fits.ranked, inputs.floor, widest, config.k)
    core = [each.feature for each in features[: enough_features(fits.at)]]

    def fit_dense(of_tasks: Sequence[Float32[np.ndarray, "_ _"]]) -> ConceptScores:
        x = of_tasks[concept.task][concept.rows]
        return joined_scores(fit_concept(x, fits.positive, split) for split in splits)

    def fit_width(width: int) -> ConceptAtWidth:
        dense = activations.teacher.dense
        bottleneck = dense.get(f"bottleneck {width}")
        lost = tuple(feature for feature in core if not kept[width][feature])
        return ConceptAtWidth(
            width=width,
            lost=lost,
            remaining=fit_remaining(fits, len(core), lost),
            kept=fit_dense(dense[f"kept {width}"]),
            bottleneck=None if bottleneck is None else fit_dense(bottleneck),
            students=tuple(
                ConceptInStudent(student.name, fit_dense(of_tasks))
                for student, of_tasks in activations.students
                if student.width == width
            ),
        )

    return Concept(
        name=concept.name,
        level=concept.examples.level,
        n_items=len(concept.examples),
        n_documents=len(np.unique(concept.examples.document)),
        share=float(fits.positive.mean()),
        at=fits.at,
        dense=fit_dense(activations.teacher.dense["activation"]),
        features=features,
        widths=tuple(fit_width(width) for width in inputs.widths),
    )
