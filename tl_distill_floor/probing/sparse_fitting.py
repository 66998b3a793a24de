"""Fit the k-sparse probes of one concept, and their controls, on every split of the documents."""

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array, csr_array

from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.concepts import ConceptExamples
from tl_distill_floor.probing.config import SparseProbeConfig
from tl_distill_floor.probing.examples import TaskExamples
from tl_distill_floor.probing.fitting import MAX_ITERATIONS, PENALTIES, DocumentSplit, column_auroc, split_documents
from tl_distill_floor.probing.sparse_selection import (
    RankedFeatures,
    random_features,
    rank_features,
    shuffle_labels,
    training_codes,
)
from tl_distill_floor.results.sparse_probes import ConceptScores, ScoresAtK

MAX_NEWTON_COLUMNS = 64
"""Largest number of columns for Newton's method, whose steps need the matrix of second derivatives."""
DECIMALS = 5
"""Decimals of saved scores."""


class ProbeScores(NamedTuple):
    """Scores of one probe."""

    validation_auroc: float
    auroc: float
    f1: float
    precision: float
    recall: float


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


def split_concept(examples: TaskExamples, n_splits: int, seed: int) -> list[DocumentSplit]:
    """Return random splits of the documents, each with both classes in all of its parts; see `split_documents`.

    Args:
        examples: the examples of a concept.
        n_splits: number of splits.
        seed: seed of the first split; each further split adds 1.

    Raises:
        InputError: there are too few documents for such a split.
    """
    splits = [split_documents(examples, seed + number) for number in range(n_splits)]
    if any(len(np.unique(examples.label[part])) < 2 for split in splits for part in split):
        n_documents = len(np.unique(examples.document))
        raise InputError(
            f"{examples.task}, {examples.classes[1]!r}: no split of its {n_documents} documents has examples with and"
            " without it among the training, the validation and the test documents; give more labelled text"
        )
    return splits


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
        ranked.append(rank_features(training, positive[split.train], config.k, config.selection))
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


def fit_concept(
    x: Float[np.ndarray, "example column"], positive: Bool[np.ndarray, " example"], split: DocumentSplit
) -> ProbeScores:
    """Fit a probe on the training documents, and score it on the test documents.

    Both classes have the same weight in the fit. Of several penalties, the one with the least loss on the validation
    documents is used. Columns are standardised by the training documents.

    Args:
        x: what the probe reads; without columns, all examples get the same score.
        positive: which examples have the concept.
        split: training, validation and test examples.

    Returns:
        ProbeScores: AUROC on the validation documents; AUROC, F1, precision and recall on the test documents. The probe
        predicts the concept where it gives it a probability of at least one half.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if x.shape[1] == 0:
        return _scores(np.zeros(len(split.validation)), np.zeros(len(split.test)), positive, split)
    scaler = StandardScaler().fit(x[split.train])
    train, validation, test = (scaler.transform(x[part]) for part in split)
    solver = "newton-cholesky" if x.shape[1] <= MAX_NEWTON_COLUMNS else "lbfgs"
    model = LogisticRegression(
        class_weight="balanced", warm_start=True, max_iter=MAX_ITERATIONS, tol=1e-3, solver=solver
    )
    least_loss, best = np.inf, (np.zeros(len(validation)), np.zeros(len(test)))
    with warnings.catch_warnings():
        # Each fit starts from the previous one. A fit that has not converged is still judged on validation documents.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in PENALTIES:
            model.set_params(C=penalty).fit(train, positive[split.train])
            logits = model.decision_function(validation)
            loss = _balanced_loss(logits, positive[split.validation])
            if loss < least_loss:
                least_loss, best = loss, (logits, model.decision_function(test))
    return _scores(*best, positive, split)


def joined_scores(scores: Iterable[ProbeScores]) -> ConceptScores:
    """Return the scores of several probes as a record."""
    columns = np.round(np.array(list(scores), dtype=np.float64).T, DECIMALS)
    return ConceptScores(*(tuple(column.tolist()) for column in columns))


def _balanced_loss(logits: Float[np.ndarray, " example"], positive: Bool[np.ndarray, " example"]) -> float:
    """Return the logistic loss, where both classes have the same weight."""
    loss = np.logaddexp(0.0, np.where(positive, -logits, logits))
    return float(loss[positive].mean() + loss[~positive].mean())


def _scores(
    validation: Float[np.ndarray, " validation"],
    test: Float[np.ndarray, " test"],
    positive: Bool[np.ndarray, " example"],
    split: DocumentSplit,
) -> ProbeScores:
    """Return the scores of a probe from its logits."""
    of_validation, of_test = positive[split.validation], positive[split.test]
    predicted = test >= 0
    n_correct = int((predicted & of_test).sum())
    return ProbeScores(
        validation_auroc=float(column_auroc(validation[:, None], of_validation[:, None])[0]),
        auroc=float(column_auroc(test[:, None], of_test[:, None])[0]),
        f1=2 * n_correct / (int(predicted.sum()) + int(of_test.sum())),
        precision=n_correct / max(int(predicted.sum()), 1),
        recall=n_correct / int(of_test.sum()),
    )
