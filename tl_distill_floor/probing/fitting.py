"""Fit linear probes and score them on documents that they were not fitted to.

A probe is scikit-learn's logistic regression on standardised activations. All examples of a document are on one side of
a split: of five parts of the documents, three are for training, one selects the penalty, and one is the test set.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import rankdata

from tl_distill_floor.annotations import ProbedActivation
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.examples import MIN_DOCUMENTS_PER_CLASS, TaskExamples
from tl_distill_floor.results.probes import ProbeResult

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of scikit-learn's C that are compared, from the strongest penalty to the weakest."""
MAX_ITERATIONS = 100
"""Iterations of a fit, at most; the next fit starts from its result."""
MAX_SPLIT_ATTEMPTS = 200
"""Random splits that are tried until every class is in all parts."""


class SplitScores(NamedTuple):
    """Test scores of the probes, one value per split; see `ProbeResult`."""

    accuracy: list[float]
    auroc: list[float]
    majority: list[float]
    penalty: list[float]


class DocumentSplit(NamedTuple):
    """Indices of the examples to train on, to select the penalty on, and to test on; they share no document."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def split_documents(examples: TaskExamples, seed: int) -> DocumentSplit:
    """Split the documents at random into training (3/5), validation (1/5) and test (1/5) parts.

    Splits are sampled until every class occurs in all three parts. If none of 200 does, the first one whose training
    part has every class is returned.

    Args:
        examples: the labelled examples.
        seed: seed of the split.

    Raises:
        InputError: no split has every class in its training part.
    """
    # scikit-learn's StratifiedGroupKFold returns the same split for every seed if documents differ in size.
    random = np.random.default_rng(seed)
    documents, n_classes = np.unique(examples.document), len(examples.classes)
    fallback = None
    for _ in range(MAX_SPLIT_ATTEMPTS):
        parts = np.array_split(random.permutation(documents), MIN_DOCUMENTS_PER_CLASS)
        test, validation, train = (
            np.flatnonzero(np.isin(examples.document, part)) for part in (parts[0], parts[1], np.concatenate(parts[2:]))
        )
        split = DocumentSplit(train, validation, test)
        n_present = [len(np.unique(examples.label[part])) for part in split]
        if min(n_present) == n_classes:
            return split
        if fallback is None and n_present[0] == n_classes:
            fallback = split
    if fallback is None:
        raise InputError(
            f"{examples.task}: no split of its {len(documents)} documents has every class in its training part; give"
            " more labelled text"
        )
    return fallback


def fit_probes(
    x: Float[np.ndarray, "example view"], examples: TaskExamples, *, n_splits: int, seed: int = 0
) -> SplitScores:
    """Fit one probe per split and score it on the split's test documents.

    Args:
        x: activations.
        examples: their labels and documents.
        n_splits: number of random splits.
        seed: seed of the first split; each further split adds 1.

    Raises:
        InputError: the documents cannot be split; see `split_documents`.
    """
    scores = SplitScores([], [], [], [])
    for number in range(n_splits):
        split = split_documents(examples, seed + number)
        for values, value in zip(scores, _fit_one(x, examples.label, split, len(examples.classes)), strict=True):
            values.append(value)
    return scores


def probe_result(
    examples: TaskExamples, scores: SplitScores, subject: str, kind: ProbedActivation, width: int | None, hook_name: str
) -> ProbeResult:
    """Return the scores of a task's probes as a record; for the arguments see `ProbeResult`."""
    return ProbeResult(
        task=examples.task,
        level=examples.level,
        pool=examples.pool,
        subject=subject,
        kind=kind,
        width=width,
        hook_name=hook_name,
        classes=examples.classes,
        n_items=len(examples),
        n_documents=len(np.unique(examples.document)),
        accuracy=tuple(scores.accuracy),
        auroc=tuple(scores.auroc),
        majority=tuple(scores.majority),
        penalty=tuple(scores.penalty),
    )


def _fit_one(
    x: Float[np.ndarray, "example view"], label: Int64[np.ndarray, " example"], split: DocumentSplit, n_classes: int
) -> tuple[float, float, float, float]:
    """Return (accuracy, AUROC, majority, C) of the probe whose penalty has the best validation accuracy."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x[split.train])
    train, validation, test = (scaler.transform(x[part]) for part in split)
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, tol=1e-3)
    best_accuracy, best_penalty, probability = -1.0, PENALTIES[0], np.zeros((len(test), n_classes))
    with warnings.catch_warnings():
        # Each fit starts from the previous one. A fit that has not converged is still selected on validation accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in PENALTIES:
            model.set_params(C=penalty).fit(train, label[split.train])
            accuracy = float(model.score(validation, label[split.validation]))
            if accuracy > best_accuracy:
                best_accuracy, best_penalty = accuracy, penalty
                probability = np.zeros((len(test), n_classes))
                probability[:, model.classes_] = model.predict_proba(test)
    correct: Bool[np.ndarray, " test"] = probability.argmax(1) == label[split.test]
    majority = np.bincount(label[split.test]).max() / len(test)
    return float(correct.mean()), mean_class_auroc(probability, label[split.test]), float(majority), best_penalty


def mean_class_auroc(probability: Float[np.ndarray, "example class"], label: Int64[np.ndarray, " example"]) -> float:
    """Return the AUROC of each class against the rest, averaged over the classes that occur.

    Args:
        probability: predicted probability of each class.
        label: index of the true class.

    Returns:
        The average; 0.5 if all labels are equal.
    """
    is_class = label[:, None] == np.arange(probability.shape[1])
    auroc = column_auroc(probability, is_class)
    defined = ~np.isnan(auroc)
    return float(auroc[defined].mean()) if defined.any() else 0.5


def column_auroc(
    score: Float[np.ndarray, "example column"], positive: Bool[np.ndarray, "example column"]
) -> Float64[np.ndarray, " column"]:
    """Return the AUROC of each column: the probability that a positive example is scored above a negative one.

    It equals `sklearn.metrics.roc_auc_score` of each column, computed from ranks (the Mann-Whitney U statistic), which
    takes about a quarter of the time for thousands of columns. Ties count one half.

    Args:
        score: scores [example, column].
        positive: which examples are positive in each column.

    Returns:
        AUROC [column], between 0 and 1; NaN where all examples or none are positive.

    Example:
        >>> column_auroc(np.array([[0.1], [0.4], [0.8]]), np.array([[False], [True], [True]]))
        array([1.])
    """
    n_positive = positive.sum(0)
    n_pairs = n_positive * (len(positive) - n_positive)
    rank_sum = np.array([rankdata(score[:, i])[positive[:, i]].sum() for i in range(score.shape[1])])
    u = rank_sum - n_positive * (n_positive + 1) / 2
    auroc: np.ndarray = np.divide(u, n_pairs, out=np.full(len(u), np.nan), where=n_pairs > 0)
    return auroc
