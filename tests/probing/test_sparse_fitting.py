"""k-sparse probes on codes with planted features, their controls, and that nothing leaks from test documents."""

import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from tests.helpers.concepts import PlantedCodes, concept_examples, planted_codes
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.config import SparseProbeConfig
from tl_distill_floor.probing.fitting import DocumentSplit
from tl_distill_floor.probing.sparse_fitting import SparseFits, fit_concept, fit_remaining, fit_sparse, split_concept
from tl_distill_floor.results.sparse_probes import enough_features


def fits_of(made: PlantedCodes, config: SparseProbeConfig) -> SparseFits:
    """Fit the probes of planted codes, where all features are alive."""
    splits = split_concept(made.concept.examples, config.n_splits, config.seed)
    return fit_sparse(made.codes, made.concept, splits, np.ones(made.codes.shape[1], bool), config)


@pytest.mark.parametrize("selection", ["mean-difference", "correlation"])
def test_finds_planted_features(selection: str) -> None:
    made = planted_codes(n_planted=6)
    fits = fits_of(made, SparseProbeConfig(k=6, selection=selection, n_splits=2, n_controls=1))
    precision = [np.isin(ranked.feature, made.planted).mean() for ranked in fits.ranked]
    assert np.mean(precision) >= 0.9
    assert all((ranked.score[np.isin(ranked.feature, made.planted)] > 0).all() for ranked in fits.ranked)
    aurocs = [at.selected.mean_auroc for at in fits.at]
    assert [at.k for at in fits.at] == [1, 2, 4, 6]
    assert aurocs == sorted(aurocs)  # the concept is spread over the planted features
    assert aurocs[-1] > 0.85
    assert fits.at[-1].random.mean_auroc < 0.65
    assert fits.at[-1].selected.mean_f1 > 0.75
    assert enough_features(fits.at) in (4, 6)


@pytest.mark.slow
def test_planted_features_are_found_at_every_k_and_random_labels_give_chance() -> None:
    precision, random_labels, shuffled, random = [], [], [], []
    for n_planted in (1, 4, 16):
        made = planted_codes(n_planted, n_features=1500, n_documents=200, seed=n_planted)
        fits = fits_of(made, SparseProbeConfig(k=n_planted, n_splits=3, n_controls=2))
        precision.append(np.mean([np.isin(ranked.feature, made.planted).mean() for ranked in fits.ranked]))
        shuffled += [auroc for at in fits.at for auroc in at.shuffled.auroc]
    for seed in range(10):
        made = planted_codes(4, n_features=600, n_documents=200, seed=seed)
        label = np.random.default_rng(1000 + seed).permutation(np.arange(200) % 2)[made.concept.examples.document]
        unrelated = made._replace(concept=concept_examples(label, made.concept.examples.document))
        fits = fits_of(unrelated, SparseProbeConfig(k=8, n_splits=2, n_controls=1, seed=seed))
        random_labels += [auroc for at in fits.at for auroc in at.selected.auroc]
        random += [auroc for at in fits.at for auroc in at.random.auroc]
    assert min(precision) >= 0.9
    assert np.mean(random_labels) == pytest.approx(0.5, abs=0.03)
    assert np.mean(random) == pytest.approx(0.5, abs=0.03)
    assert np.mean(shuffled) == pytest.approx(0.5, abs=0.03)


def test_features_that_recognise_documents_do_not_help() -> None:
    # Each document has its own feature and one label: a split by examples would give an AUROC of 1.
    document = np.repeat(np.arange(60), 10)
    label = np.random.default_rng(2).permutation(np.arange(60) % 2)[document]
    made = PlantedCodes(csr_array(np.eye(60)[document]), concept_examples(label, document), np.array([], np.int64))
    fits = fits_of(made, SparseProbeConfig(k=4, n_splits=2, n_controls=1))
    assert fits.at[-1].selected.mean_auroc == pytest.approx(0.5, abs=0.1)


def test_validation_and_test_documents_do_not_change_the_selection() -> None:
    made = planted_codes(n_planted=4, n_documents=60)
    config = SparseProbeConfig(k=4, n_splits=1, n_controls=1)
    (split,) = split_concept(made.concept.examples, 1, 0)
    expected = fits_of(made, config)
    changed = made.codes.toarray()
    changed[np.concatenate([split.validation, split.test])] = 7.0
    label = made.concept.examples.label.copy()
    label[split.test] = 1 - label[split.test]
    changed_examples = dataclasses.replace(
        made.concept, examples=dataclasses.replace(made.concept.examples, label=label)
    )
    again = fit_sparse(csr_array(changed), changed_examples, [split], np.ones(400, bool), config)
    np.testing.assert_array_equal(again.ranked[0].feature, expected.ranked[0].feature)
    np.testing.assert_array_equal(again.ranked[0].score, expected.ranked[0].score)


def test_scores_match_scikit_learn() -> None:
    random = np.random.default_rng(3)
    positive = np.arange(300) % 3 == 0
    x = np.stack([positive + random.normal(size=300), random.normal(size=300)], 1)
    split = DocumentSplit(np.arange(180), np.arange(180, 240), np.arange(240, 300))
    scores = fit_concept(x, positive, split)
    # With one informative column, all penalties rank the examples nearly as the best of them does.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x[split.train])
    logits = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0):
        model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8).fit(
            scaler.transform(x[split.train]), positive[split.train]
        )
        probability = model.predict_proba(scaler.transform(x[split.validation]))[:, 1]
        truth = positive[split.validation]
        loss = -np.log(probability[truth]).mean() - np.log(1 - probability[~truth]).mean()
        logits.append((loss, model.decision_function(scaler.transform(x[split.test]))))
    best, truth = min(logits, key=lambda each: each[0])[1], positive[split.test]
    assert scores.auroc == pytest.approx(roc_auc_score(truth, best), abs=1e-6)
    assert scores.f1 == pytest.approx(f1_score(truth, best >= 0))
    assert scores.precision == pytest.approx(precision_score(truth, best >= 0))
    assert scores.recall == pytest.approx(recall_score(truth, best >= 0))


def test_leaving_out_lost_features() -> None:
    made = planted_codes(n_planted=4)
    fits = fits_of(made, SparseProbeConfig(k=4, n_splits=2, n_controls=1))
    assert fit_remaining(fits, 4, []) == fits.at[-1].selected
    two = made.planted[:2].tolist()
    assert 0.55 < fit_remaining(fits, 4, two).mean_auroc < fits.at[-1].selected.mean_auroc
    assert fit_remaining(fits, 4, list(range(400))).auroc == (0.5, 0.5)


def test_rejects_documents_that_cannot_be_split() -> None:
    # All examples with the concept are in 3 of 20 documents, so one of the three parts often has none.
    document = np.repeat(np.arange(20), 4)
    made = concept_examples((document < 2).astype(int), document)
    with pytest.raises(InputError, match=r"made, 'yes': no split of its 20 documents has examples with and without it"):
        split_concept(made.examples, 3, 0)
