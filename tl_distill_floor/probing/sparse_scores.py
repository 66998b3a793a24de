"""Fit the k-sparse probes of one concept, and their controls, on every split of the documents."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import csc_array, csr_array

from tl_distill_floor.probing.concepts import ConceptExamples
from tl_distill_floor.probing.config import SparseProbeConfig
from tl_distill_floor.probing.fitting import DocumentSplit
from tl_distill_floor.probing.sparse_fitting import ProbeScores, fit_concept, joined_scores
from tl_distill_floor.probing.sparse_selection import random_features, rank_features, shuffle_labels, training_codes
from tl_distill_floor.results.sparse_probes import ConceptScores, ScoresAtK


class RankedFeatures(NamedTuple):
    """The features that were selected on the training documents of one split."""

    feature: Int64[np.ndarray, " k"]
    """Indices in the SAE, the best first."""
    score: Float64[np.ndarray, " k"]
    """Difference between the classes; positive if the feature's mean is higher with the concept."""


class SparseFits(NamedTuple):
    """The k-sparse probes of one concept."""

    columns: csc_array
    """Codes of the concept's examples [example, feature]."""
    positive: Bool[np.ndarray, " example"]
    """Which examples have the concept."""
    splits: Sequence[DocumentSplit]
    ranked: list[RankedFeatures]
    """[split] selected features."""
    at: tuple[ScoresAtK, ...]


def fit_sparse(
    codes: csr_array,
    concept: ConceptExamples,
    splits: Sequence[DocumentSplit],
    alive: Bool[np.ndarray, " feature"],
    config: SparseProbeConfig,
) -> SparseFits:
    """Fit the probes of every number of features on every split, with shuffled labels and with random features.

    Nothing is learned before the split: features are selected, codes are standardised and probes are fitted on training
    documents, and the penalty is selected on validation documents. Shuffled labels stay in their part of the split.

    Args:
        codes: codes of the concept's examples [example, feature].
        concept: the examples.
        splits: splits of the documents, both classes in each part.
        alive: which features can be selected.
        config: options.

    Raises:
        InputError: fewer than `config.k` features fire on the training documents of a split.
    """
    positive, document = concept.examples.label == 1, concept.examples.document
    columns = codes.tocsc()
    names = ("selected", "shuffled", "random")
    scores: dict[str, dict[int, list[ProbeScores]]] = {name: {k: [] for k in config.ks} for name in names}

    def fit_ks(
        name: str, features: Int64[np.ndarray, " k"], labels: Bool[np.ndarray, " example"], split: DocumentSplit
    ) -> None:
        x = columns[:, features].toarray().astype(np.float64)
        for k in config.ks:
            scores[name][k].append(fit_concept(x[:, :k], labels, split))

    ranked = []
    for number, split in enumerate(splits):
        random = np.random.default_rng([config.seed, number])
        training = training_codes(codes[split.train], alive, config.k)
        ranked.append(RankedFeatures(*rank_features(training, positive[split.train], config.k, config.selection)))
        fit_ks("selected", ranked[-1].feature, positive, split)
        for _ in range(config.n_controls):
            shuffled = np.empty_like(positive)
            for part in split:
                shuffled[part] = shuffle_labels(positive[part], document[part], random)
            features, _ = rank_features(training, shuffled[split.train], config.k, config.selection)
            fit_ks("shuffled", features, shuffled, split)
            fit_ks("random", random_features(training, config.k, random), positive, split)
    at = tuple(ScoresAtK(k, *(joined_scores(scores[name][k]) for name in names)) for k in config.ks)
    return SparseFits(columns, positive, splits, ranked, at)


def fit_remaining(fits: SparseFits, k: int, lost: Sequence[int]) -> ConceptScores:
    """Fit the probes of the `k` selected features again, without those that a student loses.

    Args:
        fits: the probes of the concept.
        k: number of features before some are left out.
        lost: the features that the student loses.
    """
    scores = []
    for split, ranked in zip(fits.splits, fits.ranked, strict=True):
        features = ranked.feature[:k][~np.isin(ranked.feature[:k], lost)]
        scores.append(fit_concept(fits.columns[:, features].toarray().astype(np.float64), fits.positive, split))
    return joined_scores(scores)
