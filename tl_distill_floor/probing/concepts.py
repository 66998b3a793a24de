"""Concepts: the examples of one class against all others, and the features that probes of a concept read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tl_distill_floor.predicting.lost_features import survives_from
from tl_distill_floor.probing.examples import TaskExamples
from tl_distill_floor.probing.sparse_selection import RankedFeatures
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.sparse_probes import ConceptFeature

NO_AND_YES = (("0", "1"), ("false", "true"), ("False", "True"), ("no", "yes"))
"""Classes of labels that only say whether a text or a word has what the label is named after."""


@dataclass(frozen=True, eq=False)
class ConceptExamples:
    """The examples of one class against all others."""

    name: str
    """Name of the label, followed by the class unless that only affirms it."""
    task: int
    """Index of the label among the tasks."""
    rows: Int64[np.ndarray, " example"]
    """Indices of the examples in their task."""
    examples: TaskExamples
    """The examples; label 1 for those of the class, 0 for the others."""


def concepts_of(task: TaskExamples, number: int, per_class: int, seed: int) -> list[ConceptExamples]:
    """Return one concept for each class; one for a label of two classes, whose positive class is the last by name.

    Args:
        task: the labelled examples.
        number: index of the task.
        per_class: largest number of examples of the class and of the others.
        seed: seed of the sample of the others.

    Example:
        >>> [concept.name for concept in concepts_of(task, 0, 1000, seed=0)]  # doctest: +SKIP
        ['author: Austen', 'author: Melville', 'author: president']
    """
    random = np.random.default_rng(seed)
    first = 1 if len(task.classes) == 2 else 0
    concepts = []
    for index, name in enumerate(task.classes[first:], start=first):
        positive, others = np.flatnonzero(task.label == index), np.flatnonzero(task.label != index)
        if len(others) > per_class:
            others = random.choice(others, per_class, replace=False)
        rows = np.sort(np.concatenate([positive, others]))
        examples = TaskExamples(
            task=task.task,
            level=task.level,
            pool=task.pool,
            classes=("other", name),
            text=task.text[rows],
            position=task.position[rows],
            label=(task.label[rows] == index).astype(np.int64),
            document=task.document[rows],
        )
        full_name = task.task if task.classes in NO_AND_YES else f"{task.task}: {name}"
        concepts.append(ConceptExamples(full_name, number, rows, examples))
    return concepts


def concept_features(
    ranked: Sequence[RankedFeatures], floor: FeatureFloorPrediction, widest: int, k: int
) -> tuple[ConceptFeature, ...]:
    """Return the `k` features with the least mean rank over splits; equal ranks in the order of their index.

    Args:
        ranked: [split] the `k` features that were selected.
        floor: the prediction, which says from which width on a feature is kept.
        widest: largest width up to which that is checked, in dimensions.
        k: number of features; also those of each split.
    """
    rank: dict[int, list[int]] = {}
    score: dict[int, float] = {}
    for of_split in ranked:
        selected = zip(of_split.feature.tolist(), of_split.score.tolist(), strict=True)
        for position, (feature, value) in enumerate(selected):
            rank.setdefault(feature, []).append(position + 1)
            score[feature] = score.get(feature, 0.0) + value
    n = len(ranked)
    mean_rank = {feature: (sum(ranks) + (n - len(ranks)) * (k + 1)) / n for feature, ranks in rank.items()}
    return tuple(
        ConceptFeature(
            feature=feature,
            mean_rank=round(mean_rank[feature], 3),
            n_splits=len(rank[feature]),
            rises=score[feature] > 0,
            survives_from=survives_from(floor, feature, widest),
            peak=_peak(floor, feature),
        )
        for feature in sorted(mean_rank, key=lambda each: (mean_rank[each], each))[:k]
    )


def _peak(floor: FeatureFloorPrediction, feature: int) -> str | None:
    """Return the token on which a feature fires most strongly, or None if contexts were not kept."""
    contexts = floor.stats.contexts
    return None if contexts is None or not contexts.n_contexts(feature) else contexts.text(feature, 0)[1]
