"""Selection of features on training documents, and shuffling of labels by document."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.feature_selection import f_classif

from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.sparse_selection import (
    random_features,
    rank_features,
    shuffle_labels,
    training_codes,
)

POSITIVE = np.array([True, True, False, False])
CODES = csr_array(
    np.array(
        [
            # Differences of the means: 1, -3, 0 (never fires), 3, 2 (but not alive), 0 (the same for all).
            [2.0, 0.0, 0.0, 4.0, 4.0, 1.0],
            [0.0, 0.0, 0.0, 2.0, 0.0, 1.0],
            [0.0, 6.0, 0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        ]
    )
)
ALIVE = np.array([True, True, True, True, False, True])


def test_ranks_by_the_difference_of_means_worked_out_by_hand() -> None:
    training = training_codes(CODES, ALIVE, 3)
    assert training.candidates.tolist() == [0, 1, 3]
    features, scores = rank_features(training, POSITIVE, 3, "mean-difference")
    assert features.tolist() == [1, 3, 0]  # equal scores in the order of the features
    assert scores.tolist() == [-3.0, 3.0, 1.0]
    # Standard deviations: √0.75, √6.75, √2.75.
    features, scores = rank_features(training, POSITIVE, 2, "correlation")
    assert features.tolist() == [3, 0]
    np.testing.assert_allclose(scores, [3 / np.sqrt(2.75), 1 / np.sqrt(0.75)])


def test_correlation_ranks_as_the_f_test_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    codes = np.where(random.random((60, 20)) < 0.3, random.random((60, 20)), 0.0)
    positive = random.random(60) < 0.4
    features, _ = rank_features(training_codes(csr_array(codes), np.ones(20, bool), 20), positive, 20, "correlation")
    assert features.tolist() == np.argsort(-f_classif(codes, positive)[0]).tolist()


def test_random_features_are_alive_and_fire_on_the_training_documents() -> None:
    training = training_codes(CODES, ALIVE, 3)
    assert sorted(random_features(training, 3, np.random.default_rng(0)).tolist()) == [0, 1, 3]


def test_rejects_more_features_than_fire() -> None:
    with pytest.raises(InputError, match="only 3 features fire on the training documents, and 4 were asked for"):
        training_codes(CODES, ALIVE, 4)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 10**6))
def test_shuffling_moves_the_labels_of_documents_together(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    document = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    positive = random.random(len(document)) < 0.5
    shuffled = shuffle_labels(positive, document, random)
    assert shuffled.sum() == positive.sum()
    if len(set(sizes)) == 1:
        # Each document has the labels of one document, in some order.
        counts = [np.bincount(document, labels).tolist() for labels in (positive, shuffled)]
        assert sorted(counts[0]) == sorted(counts[1])


def test_shuffling_keeps_documents_of_one_label() -> None:
    document = np.repeat(np.arange(40), 5)
    positive = document % 2 == 0
    shuffled = shuffle_labels(positive, document, np.random.default_rng(1))
    share = np.bincount(document, shuffled) / 5
    assert set(share.tolist()) == {0.0, 1.0}
    assert 0.2 < (share == (np.arange(40) % 2 == 0)).mean() < 0.8
