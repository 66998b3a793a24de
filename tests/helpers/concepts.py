"""Synthetic SAE codes in which some features are planted to tell a concept."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tl_distill_floor.probing.concepts import ConceptExamples
from tl_distill_floor.probing.examples import TaskExamples


class PlantedCodes(NamedTuple):
    """Codes and labels of examples, of which some features depend on the label."""

    codes: csr_array
    """[example, feature]."""
    concept: ConceptExamples
    planted: np.ndarray
    """Indices of the features that fire more often with the concept."""


def concept_examples(label: np.ndarray, document: np.ndarray) -> ConceptExamples:
    """Return examples with the given labels (0 or 1) and documents."""
    indices = np.arange(len(label), dtype=np.int64)
    task = TaskExamples(
        "made", "text", "mean", ("other", "yes"), indices, indices, label.astype(np.int64), document.astype(np.int64)
    )
    return ConceptExamples("made", 0, indices, task)


def planted_codes(
    n_planted: int, n_features: int = 400, n_documents: int = 150, per_document: int = 8, seed: int = 0
) -> PlantedCodes:
    """Return codes of features that fire on a twentieth of the examples, but the planted ones on 40 % of those with it.

    Documents differ in how often each feature fires, and each has one label.

    Args:
        n_planted: number of planted features.
        n_features: number of features; the last is never active.
        n_documents: number of documents, half of them with the concept.
        per_document: examples of a document.
        seed: seed of the sample.
    """
    random = np.random.default_rng(seed)
    document = np.repeat(np.arange(n_documents), per_document)
    label = random.permutation(np.arange(n_documents) % 2)[document]
    planted = np.sort(random.choice(n_features - 1, n_planted, replace=False))
    rate = np.clip(0.05 * random.lognormal(0.0, 0.5, (n_documents, n_features)), 0.0, 0.3)[document]
    rate[:, planted] = np.where(label[:, None] == 1, 0.4, rate[:, planted])
    rate[:, -1] = 0.0
    fires = random.random(rate.shape) < rate
    codes = np.where(fires, random.gamma(4.0, 0.5, rate.shape), 0.0).astype(np.float32)
    return PlantedCodes(csr_array(codes), concept_examples(label, document), planted)
