"""The codes that are kept: those of the SAE itself, whole sequences of them, and the laws of their record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.helpers.measurements import same_codes
from tests.helpers.models import CONTEXT, FEATURES
from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, InputError, measure
from tl_distill_floor.measuring.batch_sums import is_kept
from tl_distill_floor.results.codes import Codes

COST = np.array([5.0, 1.0, 9.0])
MADE = np.array([[0, 2, 3], [0, 0, 0], [-1, 0, 0.5], [0, 0, 4]], dtype=np.float32)
SEQUENCE = np.array([0, 0, 1, 3])
N_FEATURES = 5

floats = st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0, 1e-30])
dense_codes = st.integers(0, 6).flatmap(lambda n: arrays(np.float32, (n, N_FEATURES), elements=floats))


def test_codes_are_those_that_the_sae_gives(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """Sequence by sequence through TransformerLens's own cache."""
    codes = measure(bridge, sae, ids, batch_size=7, n_tokens=ids.numel()).codes
    assert codes is not None
    assert np.unique(codes.sequence).tolist() == list(range(40))
    found = codes.dense()
    for number, sequence in enumerate(ids):
        with torch.no_grad():
            _, cache = bridge.run_with_cache(sequence[None], names_filter="blocks.1.hook_resid_post")
            counts = (sequence != 0) & (torch.arange(CONTEXT) > 0)
            expected = sae.encode(cache["blocks.1.hook_resid_post"][0][counts]).numpy()
        np.testing.assert_allclose(found[codes.sequence == number], expected, rtol=1e-4, atol=1e-5)


def test_codes_and_sums_are_of_the_same_tokens(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    stats = measure(bridge, sae, ids)
    assert stats.codes is not None
    assert stats.codes.n_tokens == stats.n_tokens
    np.testing.assert_array_equal(np.bincount(stats.codes.feature, minlength=FEATURES), stats.firing_count)
    np.testing.assert_allclose(stats.codes.dense().astype(float).sum(0), stats.sum_act, rtol=1e-12)


def test_a_sample_is_of_whole_sequences_whatever_the_batches(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    options: dict[str, Any] = {"n_tokens": ids.numel(), "n_codes": 400}
    every = measure(bridge, sae, ids, n_tokens=ids.numel()).codes
    assert every is not None
    drawn = is_kept(np.arange(40), 400 / 1280)
    assert 5 <= drawn.sum() <= 20
    for batch_size in (1, 3, 40):
        sample = measure(bridge, sae, ids, batch_size=batch_size, **options).codes
        assert sample is not None
        expected = every.of_tokens(np.isin(every.sequence, np.flatnonzero(drawn)))
        np.testing.assert_array_equal(sample.sequence, expected.sequence)
        np.testing.assert_allclose(sample.dense(), expected.dense(), rtol=1e-3, atol=1e-4)


def test_the_sample_changes_nothing_else(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    without, sampled = measure(bridge, sae, ids, n_codes=0), measure(bridge, sae, ids, n_tokens=1280, n_codes=300)
    assert without.codes is None
    np.testing.assert_array_equal(without.sum_act_sq, sampled.sum_act_sq)
    assert without.digest() != sampled.digest()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_as_many_sequences_are_kept_as_the_share_says(share: float) -> None:
    n = 20_000
    kept = is_kept(np.arange(n), share)
    assert kept.mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n))
    assert not (kept & ~is_kept(np.arange(n), share + 0.1)).any()


def test_fewer_codes_than_none_are_refused(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="at least 0, got -1"):
        measure(bridge, sae, ids, n_codes=-1)


@pytest.mark.parametrize(("n_codes", "n_tokens"), [(0, 640), (300, 640), (640, 1280)])
def test_resuming_with_another_share_is_refused(
    bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path, n_codes: int, n_tokens: int
) -> None:
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, n_tokens=640, n_codes=640, checkpoint=file)
    with pytest.raises(InputError, match="share_of_codes"):
        measure(bridge, sae, ids, n_tokens=n_tokens, n_codes=n_codes, checkpoint=file, resume=True)


def test_merging_numbers_the_second_texts_sequences_on(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    whole = measure(bridge, sae, ids, batch_size=4)
    merged = measure(bridge, sae, ids[:16], batch_size=4).merge(measure(bridge, sae, ids[16:], batch_size=4))
    same_codes(merged.codes, whole.codes)


def test_merging_keeps_codes_only_of_equal_shares() -> None:
    codes = Codes.from_dense(MADE, SEQUENCE)
    half, other_half, whole = (
        stats_of(COST, settings={"share_of_codes": share}, codes=codes) for share in (0.5, 0.5, 1.0)
    )
    without = stats_of(COST, settings={"share_of_codes": 0.5})
    joined = half.merge(other_half).codes
    assert joined is not None
    assert joined.sequence.tolist() == [0, 0, 1, 3, 4, 4, 5, 7]
    for one, other in ((half, whole), (half, without), (without, half)):
        assert one.merge(other).codes is None
        assert one.merge(other).n_tokens == 2000


def test_codes_come_back_as_they_were(tmp_path: Path) -> None:
    stats = stats_of(COST, codes=Codes.from_dense(MADE, SEQUENCE))
    found = FeatureStats.load(stats.save(tmp_path / "stats.safetensors"))
    same_codes(found.codes, stats.codes)
    assert found.digest() == stats.digest()


def test_a_file_without_codes_has_none(tmp_path: Path) -> None:
    stats = stats_of(COST)
    found = FeatureStats.load(stats.save(tmp_path / "stats.safetensors"))
    assert found.codes is None
    assert found.digest() == stats.digest()


def test_every_part_of_the_codes_is_in_the_digest() -> None:
    moved = np.array([[0, 2, 3], [-1, 0, 0], [0, 0, 0.5], [0, 0, 4]], dtype=np.float32)
    elsewhere = np.array([[2, 0, 3], [0, 0, 0], [-1, 0, 0.5], [0, 0, 4]], dtype=np.float32)
    made = [Codes.from_dense(dense, SEQUENCE) for dense in (MADE, moved, elsewhere, 2 * MADE)]
    made.append(Codes.from_dense(MADE))
    assert len({stats_of(COST, codes=codes).digest() for codes in (None, *made)}) == 6


def test_codes_of_other_features_or_more_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="of 3 features"):
        stats_of(COST, codes=Codes.from_dense(MADE[:, :2]))
    with pytest.raises(ValueError, match="at most 3 tokens"):
        stats_of(COST, n_tokens=3, codes=Codes.from_dense(MADE))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": lambda v: v.astype(np.float64)}, "value must be one row of float32, got float64"),
        ({"feature": lambda v: v[None]}, "feature must be one row"),
        ({"row_start": lambda v: v[:-1]}, "every token must have a row"),
        ({"row_start": lambda v: v[:0], "sequence": lambda v: v[:0]}, "every token must have a row"),
        ({"value": lambda v: v[1:]}, "every entry a feature and a value"),
        ({"row_start": lambda v: v + 1}, "follow each other"),
        ({"row_start": lambda v: v[[0, 2, 1, 0, 4]]}, "follow each other"),
        ({"row_start": lambda v: np.array([0, 2**63 - 1, -(2**63), -1, 5])}, "follow each other"),
        ({"row_start": lambda v: v // 2}, "hold every entry"),
        ({"feature": lambda v: v - 1}, "one of 3"),
        ({"feature": lambda v: v + 1}, "one of 3"),
        ({"feature": lambda v: v[::-1].copy()}, "must ascend"),
        ({"feature": lambda v: np.array([1, 1, 0, 2, 2], dtype=np.int32)}, "must ascend"),
        ({"value": lambda v: v * np.float32(np.nan)}, "not finite"),
        ({"value": lambda v: v * np.float32(np.inf)}, "not finite"),
        ({"sequence": lambda v: v - 1}, "counted from 0"),
    ],
)
def test_impossible_codes_are_refused(change: dict[str, Callable[[np.ndarray], np.ndarray]], says: str) -> None:
    """By the record itself: outside of these tests no annotation is checked before it."""
    codes = object.__new__(Codes)
    vars(codes).update(vars(Codes.from_dense(MADE, SEQUENCE)))
    codes.__post_init__()
    vars(codes).update({name: made(getattr(codes, name)) for name, made in change.items()})
    with pytest.raises(ValueError, match=says):
        codes.__post_init__()


def test_rows_by_hand() -> None:
    codes = Codes.from_dense(MADE, SEQUENCE)
    assert (codes.n_tokens, codes.n_entries) == (4, 5)
    assert codes.row_start.tolist() == [0, 2, 2, 4, 5]
    assert codes.feature.tolist() == [1, 2, 0, 2, 2]
    assert codes.value.tolist() == [2, 3, -1, 0.5, 4]


@given(dense_codes, st.data())
def test_chosen_tokens_are_the_dense_rows(dense: np.ndarray, data: st.DataObject) -> None:
    codes, n = Codes.from_dense(dense), len(dense)
    np.testing.assert_array_equal(codes.dense(), dense)
    mask = data.draw(arrays(bool, n))
    places = data.draw(arrays(np.int64, st.integers(0, 9) if n else 0, elements=st.integers(0, max(n - 1, 0))))
    for chosen in (mask, places):
        found = codes.of_tokens(chosen)
        np.testing.assert_array_equal(found.dense(), dense[chosen])
        np.testing.assert_array_equal(found.sequence, np.arange(n)[chosen])


@given(dense_codes, dense_codes, dense_codes)
def test_codes_that_follow_are_rows_below(one: np.ndarray, two: np.ndarray, three: np.ndarray) -> None:
    a, b, c = (Codes.from_dense(dense) for dense in (one, two, three))
    joined = a.followed_by(b).followed_by(c)
    np.testing.assert_array_equal(joined.dense(), np.concatenate([one, two, three]))
    same_codes(joined, Codes.joined([a, b, c]))
    same_codes(joined, a.followed_by(b.followed_by(c)))
    same_codes(joined.of_tokens(np.arange(len(one))), a)


def test_codes_of_other_features_do_not_follow() -> None:
    with pytest.raises(ValueError, match="other numbers of features"):
        Codes.from_dense(MADE).followed_by(Codes.from_dense(MADE[:, :2]))
