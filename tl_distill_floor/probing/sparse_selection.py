"""Select the features of a k-sparse probe on the training documents, or at random."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import csr_array

from tl_distill_floor.annotations import FeatureSelection
from tl_distill_floor.errors import InputError


class TrainingCodes(NamedTuple):
    """The SAE codes of a split's training examples, and which features can be selected."""

    codes: csr_array
    """[training example, feature], multiplied by the norm of the feature's decoder row."""
    candidates: Int64[np.ndarray, " candidate"]
    """Alive features whose code is not the same for all training examples."""
    deviation: Float64[np.ndarray, " feature"]
    """Standard deviation of each feature over the training examples."""


class RankedFeatures(NamedTuple):
    """The features that were selected on the training documents of one split."""

    feature: Int64[np.ndarray, " k"]
    """Indices in the SAE, the best first."""
    score: Float64[np.ndarray, " k"]
    """Difference between the classes; positive if the feature's mean is higher with the concept."""


def training_codes(codes: csr_array, alive: Bool[np.ndarray, " feature"], k: int) -> TrainingCodes:
    """Find the features that can be selected, without looking at the labels.

    Args:
        codes: codes of the training examples [example, feature].
        alive: which features are alive.
        k: number of features to select.

    Raises:
        InputError: fewer than `k` alive features fire on the training examples.
    """
    mean, square = (np.asarray(matrix.mean(0), dtype=np.float64).ravel() for matrix in (codes, codes * codes))
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    candidates = np.flatnonzero(alive & (deviation > 1e-6 * np.sqrt(square)))
    if len(candidates) < k:
        raise InputError(
            f"only {len(candidates):,} features fire on the training documents, and {k:,} were asked for; set --sparse"
            " lower, or give more labelled text"
        )
    return TrainingCodes(codes, candidates, deviation)


def rank_features(
    training: TrainingCodes, positive: Bool[np.ndarray, " example"], k: int, selection: FeatureSelection
) -> RankedFeatures:
    """Rank features by how much their mean differs between the two classes of the training examples.

    Args:
        training: the training examples.
        positive: which training examples have the concept.
        k: number of features to return.
        selection: "mean-difference", or "correlation" to divide the difference by the standard deviation.

    Returns:
        RankedFeatures: in falling order of the absolute score, the smaller index first among equal ones.

    Example:
        >>> feature, score = rank_features(training, positive, 8, "mean-difference")  # doctest: +SKIP
    """
    contrast = np.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum())
    score = (training.codes.T @ contrast)[training.candidates]
    if selection == "correlation":
        score = score / training.deviation[training.candidates]
    order = np.argsort(-np.abs(score), kind="stable")[:k]
    return RankedFeatures(training.candidates[order], score[order])


def random_features(training: TrainingCodes, k: int, random: np.random.Generator) -> Int64[np.ndarray, " k"]:
    """Return `k` random features of those that can be selected."""
    chosen: np.ndarray = random.choice(training.candidates, k, replace=False)
    return chosen


def shuffle_labels(
    positive: Bool[np.ndarray, " example"], document: Int64[np.ndarray, " example"], random: np.random.Generator
) -> Bool[np.ndarray, " example"]:
    """Give the labels of each document to another one, in random order within a document.

    Examples of one document keep similar labels, as real labels of documents do. Where documents differ in size, the
    labels of one may run over into the next.

    Args:
        positive: label of each example.
        document: document of each example.
        random: source of the permutation.

    Returns:
        As many positive labels, at random examples.

    Example:
        >>> shuffle_labels(np.array([True, True, False]), np.array([0, 0, 1]), np.random.default_rng(0)).sum()
        np.int64(2)
    """
    order = np.argsort(document, kind="stable")
    blocks = np.split(order, np.flatnonzero(np.diff(document[order])) + 1)
    source = np.concatenate([random.permutation(blocks[i]) for i in random.permutation(len(blocks))])
    shuffled = np.empty_like(positive)
    shuffled[order] = positive[source]
    return shuffled
