"""What a record of k-sparse probes says: how many features are enough, and which width loses some first."""

import dataclasses

import pytest

from tests.helpers.probes import concept_scores, sparse_probes
from tl_distill_floor.results.sparse_probes import ConceptScores, ScoresAtK, enough_features


def scores_at(*validation: float) -> tuple[ScoresAtK, ...]:
    """Return scores of 1, 2, ... features with the given AUROCs on validation documents."""
    return tuple(ScoresAtK(k, *[concept_scores(auroc)] * 3) for k, auroc in enumerate(validation, start=1))


def test_enough_features_have_95_percent_of_the_best_gain() -> None:
    assert enough_features(scores_at(0.6, 0.88, 0.9)) == 2  # gains 0.1, 0.38, 0.4; 95 % of the best: 0.38
    assert enough_features(scores_at(0.6, 0.87, 0.9)) == 3
    assert enough_features(scores_at(0.9, 0.95, 0.7)) == 2
    assert enough_features(scores_at(0.4, 0.45)) == 1  # none is above chance


def test_a_concept_names_its_features_and_the_widest_student_that_loses_one() -> None:
    probes = sparse_probes()
    cold = probes.of("weather: cold")
    assert (cold.enough, [feature.feature for feature in cold.core]) == (2, [12, 71])
    assert cold.best.k == 2
    assert cold.first_loss is not None
    assert (cold.first_loss.width, cold.first_loss.lost) == (8, (12,))
    assert probes.of("kept").first_loss is None
    with pytest.raises(KeyError, match="there is no concept 'hot'; choose from weather: cold, kept"):
        probes.of("hot")
    assert repr(probes) == "SparseProbes(made at blocks.1.hook_resid_post, rows: weather: cold, kept)"


def test_forecasts_are_compared_with_students() -> None:
    # The student scores 0.82; without the lost feature the sparse probe scores 0.61.
    errors = sparse_probes().forecast_error()
    assert errors == pytest.approx({"remaining": 0.21, "kept": 0.08, "bottleneck": 0.02})


def test_means_and_ranges_over_probes() -> None:
    scores = ConceptScores((0.5, 0.5), (0.7, 0.9), (0.6, 0.8), (0.5, 0.6), (0.75, 0.85))
    assert scores.mean_auroc == pytest.approx(0.8)
    assert scores.mean_f1 == pytest.approx(0.7)
    assert scores.mean_precision == pytest.approx(0.55)
    assert scores.mean_recall == pytest.approx(0.8)
    assert scores.auroc_range == pytest.approx((0.71, 0.89))


def test_rejects_incomplete_scores() -> None:
    with pytest.raises(ValueError, match="each probe needs two AUROCs"):
        ConceptScores((0.5,), (0.5, 0.5), (0.5,), (0.5,), (0.5,))
    concept = sparse_probes().concepts[0]
    with pytest.raises(ValueError, match="scores in rising order of K"):
        dataclasses.replace(concept, at=concept.at[::-1])
    with pytest.raises(ValueError, match="as many features as the largest K"):
        dataclasses.replace(concept, features=concept.features[:2])
