"""Linear probes on activations of known decodability, and splits by document."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tl_distill_floor.probing.examples import TaskExamples
from tl_distill_floor.probing.fitting import column_auroc, fit_probes, mean_class_auroc, split_documents


def examples(label: np.ndarray, document: np.ndarray | None = None) -> TaskExamples:
    """Return examples with the given labels; each is a document of its own unless documents are given."""
    indices = np.arange(len(label), dtype=np.int64)
    classes = tuple(str(c) for c in np.unique(label))
    document = indices if document is None else document.astype(np.int64)
    return TaskExamples("made", "word", "word", classes, indices, indices, label.astype(np.int64), document)


def test_scores_match_the_best_linear_classifier() -> None:
    # Two classes at ±1 along one direction with unit noise. The best linear classifier has accuracy Φ(1) = 0.841, and
    # scores an example of one class above one of the other with probability Φ(2/√2) = 0.921.
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 6000)
    x = random.normal(size=(6000, 8))
    x[:, 3] += 2.0 * label - 1.0
    scores = fit_probes(x, examples(label), n_splits=3)
    assert np.mean(scores.accuracy) == pytest.approx(norm.cdf(1.0), abs=0.015)
    assert np.mean(scores.auroc) == pytest.approx(norm.cdf(math.sqrt(2.0)), abs=0.015)
    assert np.mean(scores.majority) == pytest.approx(0.5, abs=0.03)


def test_shuffled_labels_give_chance() -> None:
    random = np.random.default_rng(1)
    label = np.repeat(np.arange(3), 1000)
    x = random.normal(size=(3000, 6)) + 3.0 * np.eye(3, 6)[label]
    assert np.mean(fit_probes(x, examples(label), n_splits=2).accuracy) > 0.9
    shuffled = fit_probes(x, examples(random.permutation(label)), n_splits=3)
    assert np.mean(shuffled.accuracy) == pytest.approx(1 / 3, abs=0.04)
    assert np.mean(shuffled.auroc) == pytest.approx(0.5, abs=0.04)


def test_majority_is_the_share_of_the_largest_class() -> None:
    random = np.random.default_rng(3)
    label = random.permutation(np.repeat([0, 1], [350, 150]))
    scores = fit_probes(random.normal(size=(500, 2)), examples(label), n_splits=4)
    assert np.mean(scores.majority) == pytest.approx(0.7, abs=0.05)


def test_probes_do_not_learn_to_recognise_documents() -> None:
    # Each document has its own direction and a random label: a split by examples would predict the label perfectly.
    random = np.random.default_rng(2)
    document = np.repeat(np.arange(60), 20)
    label = random.permutation(np.arange(60) % 2)[document]
    x = 5.0 * np.eye(60)[document] + 0.1 * random.normal(size=(1200, 60))
    assert np.mean(fit_probes(x, examples(label, document), n_splits=5).accuracy) == pytest.approx(0.5, abs=0.15)


@settings(max_examples=40)
@given(st.integers(5, 30), st.integers(2, 4), st.integers(0, 10**6))
def test_no_document_is_in_two_parts(n_documents: int, n_classes: int, seed: int) -> None:
    document = np.repeat(np.arange(n_documents), n_classes)
    label = np.tile(np.arange(n_classes), n_documents)
    split = split_documents(examples(label, document), seed)
    train, validation, test = (set(document[part].tolist()) for part in split)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert train | validation | test == set(range(n_documents))
    assert sorted(np.concatenate(split).tolist()) == list(range(len(label)))


def test_splits_depend_on_the_seed() -> None:
    document = np.repeat(np.arange(30), 7 + np.arange(30))
    label = document % 3
    tests = {tuple(split_documents(examples(label, document), seed).test.tolist()) for seed in range(5)}
    assert len(tests) == 5


def test_column_auroc_matches_scikit_learn() -> None:
    random = np.random.default_rng(4)
    # Rounded scores have ties.
    score, positive = np.round(random.normal(size=(300, 5)), 1), random.random((300, 5)) < 0.1
    expected = [roc_auc_score(positive[:, i], score[:, i]) for i in range(5)]
    np.testing.assert_allclose(column_auroc(score, positive), expected)


def test_column_auroc_is_nan_if_all_examples_are_alike() -> None:
    positive = np.array([[True, False, True], [True, False, False]])
    auroc = column_auroc(np.array([[0.1, 0.2, 0.3], [0.2, 0.1, 0.1]]), positive)
    assert np.isnan(auroc[:2]).all()
    assert auroc[2] == 1.0


def test_mean_class_auroc_matches_scikit_learn() -> None:
    random = np.random.default_rng(5)
    label = random.integers(0, 3, 200)
    probability = random.dirichlet(np.ones(3), 200)
    expected = roc_auc_score(label, probability, multi_class="ovr", average="macro")
    assert mean_class_auroc(probability, label) == pytest.approx(expected)
    # The average is over the classes that occur.
    two = label < 2
    expected = np.mean([roc_auc_score(label[two] == c, probability[two, c]) for c in (0, 1)])
    assert mean_class_auroc(probability[two], label[two]) == pytest.approx(expected)
    assert mean_class_auroc(probability, np.zeros(200, dtype=np.int64)) == 0.5
