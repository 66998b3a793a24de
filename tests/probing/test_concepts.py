"""Concepts: one class of a label against all others."""

import numpy as np

from tl_distill_floor.probing.concepts import concepts_of
from tl_distill_floor.probing.examples import TaskExamples


def task(classes: tuple[str, ...], label: np.ndarray) -> TaskExamples:
    """Return examples with the given classes; each is a document of its own."""
    indices = np.arange(len(label), dtype=np.int64)
    return TaskExamples("made", "text", "mean", classes, indices, indices, label.astype(np.int64), indices)


def test_each_class_of_several_is_a_concept() -> None:
    label = np.repeat(np.arange(3), [4, 5, 6])
    concepts = concepts_of(task(("a", "b", "c"), label), 2, per_class=7, seed=0)
    assert [concept.name for concept in concepts] == ["made: a", "made: b", "made: c"]
    for index, concept in enumerate(concepts):
        assert concept.task == 2
        assert concept.examples.classes == ("other", "abc"[index])
        assert concept.examples.label.sum() == (label == index).sum()
        assert (1 - concept.examples.label).sum() == 7  # all of them would be 11, 10 and 9
        np.testing.assert_array_equal(concept.examples.label, label[concept.rows] == index)
        np.testing.assert_array_equal(concept.examples.text, concept.rows)


def test_two_classes_are_one_concept() -> None:
    (concept,) = concepts_of(task(("bad", "good"), np.arange(10) % 2), 0, per_class=100, seed=0)
    assert concept.name == "made: good"
    assert concept.rows.tolist() == list(range(10))
    assert concept.examples.label.tolist() == [0, 1] * 5


def test_a_class_that_only_affirms_is_not_named() -> None:
    for classes in (("no", "yes"), ("0", "1"), ("False", "True"), ("false", "true")):
        assert concepts_of(task(classes, np.arange(10) % 2), 0, 100, 0)[0].name == "made"


def test_class_1_of_several_is_named() -> None:
    concepts = concepts_of(task(("0", "1", "2"), np.arange(12) % 3), 0, 100, 0)
    assert [concept.name for concept in concepts] == ["made: 0", "made: 1", "made: 2"]
    assert concepts_of(task(("1", "true"), np.arange(10) % 2), 0, 100, 0)[0].name == "made: true"
