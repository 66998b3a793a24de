"""`FeatureSums`: merging, and the arrays that processes send to each other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts
from tl_distill_floor.results.feature_sums import SUMS, FeatureSums, pack_sums, unpack_sums


def sums_of(codes: np.ndarray, first_sequence: int = 0, **fields: Any) -> FeatureSums:
    """Return the sums of [token, feature] codes, each token a sequence of its own, with energy costs."""
    values: dict[str, Any] = {
        "n_tokens": len(codes), "n_cost_tokens": len(codes), "n_masked": 1,
        "firing_count": (codes != 0).sum(0), "sum_act": codes.sum(0),
        "sum_act_sq": (codes**2).sum(0), "sum_cost": (codes**2).sum(0), "sampled_tokens": 1,
        "sampled_sum": np.array([0.1, 0.2]), "sampled_sum_sq": 0.3, "sampled_error_sq": 0.1,
        "codes": (Codes.from_dense(codes, first_sequence + np.arange(len(codes))),),
        "contexts": FeatureContexts.empty(codes.shape[1]),
    }  # fmt: skip
    return FeatureSums(**(values | fields))


ONE, OTHER = sums_of(np.array([[1.0, 0.0], [2.0, 3.0]])), sums_of(np.array([[0.0, 0.5]]), first_sequence=2)


def test_merge_matches_sums_over_both_texts() -> None:
    merged = ONE.merge(OTHER)
    assert (merged.n_tokens, merged.n_masked, merged.n_read) == (3, 2, 5)
    assert merged.firing_count.tolist() == [2, 2]
    assert merged.sum_act.tolist() == [3.0, 3.5]
    assert merged.sum_act_sq.tolist() == [5.0, 9.25]
    codes = merged.joined_codes()
    assert codes is not None
    assert codes.dense().tolist() == [[1.0, 0.0], [2.0, 3.0], [0.0, 0.5]]
    assert codes.sequence.tolist() == [0, 1, 2]


def test_merge_keeps_codes_and_contexts_only_if_both_have_them() -> None:
    without = replace(OTHER, codes=(), contexts=None)
    for merged in (ONE.merge(without), without.merge(ONE)):
        assert merged.joined_codes() is None
        assert merged.contexts is None


def test_no_codes_yet_is_not_no_codes_kept() -> None:
    no_codes_yet = replace(OTHER, codes=(Codes.from_dense(np.zeros((0, 2))),))
    codes = no_codes_yet.joined_codes()
    assert codes is not None
    assert codes.n_tokens == 0
    merged = no_codes_yet.merge(ONE).joined_codes()
    assert merged is not None
    assert merged.n_tokens == 2


def test_arrays_keep_every_number() -> None:
    sums = [ONE.merge(OTHER), replace(OTHER, codes=(), contexts=None)]
    for received, sent in zip(unpack_sums(pack_sums(sums)), sums, strict=True):
        for name in SUMS:
            assert type(getattr(received, name)) is type(getattr(sent, name)), name
            np.testing.assert_array_equal(getattr(received, name), getattr(sent, name), err_msg=name)
        assert len(received.codes) == len(sent.codes)
        for one, other in zip(received.codes, sent.codes, strict=True):
            np.testing.assert_array_equal(one.dense(), other.dense())
        assert (received.contexts is None) == (sent.contexts is None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sum_cost": np.ones(3)}, "must have 2 features"),
        ({"sum_act": np.array([np.nan, 1.0])}, "not finite"),
        ({"sum_cost": np.array([-1.0, 1.0])}, "at least 0"),
        ({"firing_count": np.array([9, 0])}, "at least every firing count"),
        ({"codes": (Codes.from_dense(np.ones((1, 3))),)}, "the codes must be of 2 features"),
        ({"codes": (Codes.from_dense(np.ones((9, 2))),)}, "at most 2 tokens"),
        ({"contexts": FeatureContexts.empty(3)}, "the contexts must be of 2 features"),
    ],
)
def test_rejects_sums_that_do_not_fit_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), without_type_checks():
        replace(ONE, **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sum_act": np.ones(3)}, "must have 2 features"),
        ({"sum_act": np.array([1.0, np.inf])}, "not finite"),
        ({"sampled_sum": np.array([np.nan, 0.0])}, "not finite"),
        ({"sum_cost": np.array([1.0, -1.0])}, "counts, squares and costs must be at least 0"),
        ({"firing_count": np.array([3, 0])}, "at least every firing count"),
        ({"n_cost_tokens": 3}, "on some of the counted tokens"),
        ({"n_cost_tokens": -1}, "on some of the counted tokens"),
        ({"codes": (*ONE.codes, *ONE.codes)}, "of at most 2 tokens"),
        ({"contexts": FeatureContexts.empty(3)}, "must be of 2 features, got 3"),
    ],
)
def test_sums_that_do_not_fit_together_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), without_type_checks():
        replace(ONE, **change)
