"""Concepts: the examples of one class against all others."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tl_distill_floor.probing.examples import TaskExamples

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
