"""Tests of `Codes`: they are the SAE's own codes on complete sequences, and behave as a matrix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.helpers.measurements import assert_same_codes
from tests.helpers.models import CONTEXT, FEATURES
from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, InputError, measure
from tl_distill_floor.measuring.batch_sums import mask_kept_sequences
from tl_distill_floor.results.codes import Codes

COST = np.array([5.0, 1.0, 9.0])
DENSE = np.array([[0, 2, 3], [0, 0, 0], [-1, 0, 0.5], [0, 0, 4]], dtype=np.float32)
SEQUENCE = np.array([0, 0, 1, 3])
N_FEATURES = 5

floats = st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0, 1e-30])
dense_codes = st.integers(0, 6).flatmap(lambda n: arrays(np.float32, (n, N_FEATURES), elements=floats))


def test_token_of_each_entry_is_its_row() -> None:
    assert Codes.from_dense(DENSE).token.tolist() == [0, 0, 2, 2, 3]


def test_codes_match_the_sae_on_cached_activations(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    """Compare with the SAE's encoding of activations from TransformerLens's cache, sequence by sequence."""
    codes = measure(bridge, sae, ids, batch_size=7, n_tokens=ids.numel()).codes
    assert codes is not None
    assert np.unique(codes.sequence).tolist() == list(range(40))
    dense = codes.dense()
    for number, sequence in enumerate(ids):
        with torch.no_grad():
            _, cache = bridge.run_with_cache(sequence[None], names_filter="blocks.1.hook_resid_post")
            counts = (sequence != 0) & (torch.arange(CONTEXT) > 0)
            expected = sae.encode(cache["blocks.1.hook_resid_post"][0][counts]).numpy()
        np.testing.assert_allclose(dense[codes.sequence == number], expected, rtol=1e-4, atol=1e-5)


def test_codes_and_sums_cover_the_same_tokens(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    stats = measure(bridge, sae, ids)
    assert stats.codes is not None
    assert stats.codes.n_tokens == stats.n_tokens
    np.testing.assert_array_equal(np.bincount(stats.codes.feature, minlength=FEATURES), stats.firing_count)
    np.testing.assert_allclose(stats.codes.dense().astype(float).sum(0), stats.sum_act, rtol=1e-12)


def test_sampled_sequences_do_not_depend_on_the_batch_size(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    options: dict[str, Any] = {"n_tokens": ids.numel(), "n_codes": 400}
    all_codes = measure(bridge, sae, ids, n_tokens=ids.numel()).codes
    assert all_codes is not None
    sampled = mask_kept_sequences(np.arange(40), 400 / 1280)
    assert 5 <= sampled.sum() <= 20
    for batch_size in (1, 3, 40):
        sample = measure(bridge, sae, ids, batch_size=batch_size, **options).codes
        assert sample is not None
        expected = all_codes.select_tokens(np.isin(all_codes.sequence, np.flatnonzero(sampled)))
        np.testing.assert_array_equal(sample.sequence, expected.sequence)
        np.testing.assert_allclose(sample.dense(), expected.dense(), rtol=1e-3, atol=1e-4)


def test_sampling_codes_does_not_change_other_statistics(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    without, sampled = measure(bridge, sae, ids, n_codes=0), measure(bridge, sae, ids, n_tokens=1280, n_codes=300)
    assert without.codes is None
    np.testing.assert_array_equal(without.sum_act_sq, sampled.sum_act_sq)
    assert without.digest() != sampled.digest()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_keeps_the_given_share_of_sequences(share: float) -> None:
    n = 20_000
    kept = mask_kept_sequences(np.arange(n), share)
    assert kept.mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n))
    assert not (kept & ~mask_kept_sequences(np.arange(n), share + 0.1)).any()


def test_rejects_a_negative_number_of_codes(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="at least 0, got -1"):
        measure(bridge, sae, ids, n_codes=-1)


@pytest.mark.parametrize(("n_codes", "n_tokens"), [(0, 640), (300, 640), (640, 1280)])
def test_rejects_resuming_with_another_share_of_codes(
    bridge: Any, sae: Any, ids: torch.Tensor, tmp_path: Path, n_codes: int, n_tokens: int
) -> None:
    file = tmp_path / "partial.safetensors"
    measure(bridge, sae, ids, n_tokens=640, n_codes=640, checkpoint=file)
    with pytest.raises(InputError, match="share_of_codes"):
        measure(bridge, sae, ids, n_tokens=n_tokens, n_codes=n_codes, checkpoint=file, resume=True)


def test_merging_renumbers_the_sequences_of_the_second_text(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    together = measure(bridge, sae, ids, batch_size=4)
    merged = measure(bridge, sae, ids[:16], batch_size=4).merge(measure(bridge, sae, ids[16:], batch_size=4))
    assert_same_codes(merged.codes, together.codes)


def test_merging_keeps_codes_only_of_equal_shares() -> None:
    codes = Codes.from_dense(DENSE, SEQUENCE)
    half, other_half, full = (
        stats_of(COST, settings={"share_of_codes": share}, codes=codes) for share in (0.5, 0.5, 1.0)
    )
    without = stats_of(COST, settings={"share_of_codes": 0.5})
    merged = half.merge(other_half).codes
    assert merged is not None
    assert merged.sequence.tolist() == [0, 0, 1, 3, 4, 4, 5, 7]
    for one, other in ((half, full), (half, without), (without, half)):
        assert one.merge(other).codes is None
        assert one.merge(other).n_tokens == 2000


def test_saved_codes_load_unchanged(tmp_path: Path) -> None:
    stats = stats_of(COST, codes=Codes.from_dense(DENSE, SEQUENCE))
    loaded = FeatureStats.load(stats.save(tmp_path / "stats.safetensors"))
    assert_same_codes(loaded.codes, stats.codes)
    assert loaded.digest() == stats.digest()


def test_a_file_without_codes_loads_without_codes(tmp_path: Path) -> None:
    stats = stats_of(COST)
    loaded = FeatureStats.load(stats.save(tmp_path / "stats.safetensors"))
    assert loaded.codes is None
    assert loaded.digest() == stats.digest()


def test_the_digest_depends_on_every_array_of_the_codes() -> None:
    other_tokens = np.array([[0, 2, 3], [-1, 0, 0], [0, 0, 0.5], [0, 0, 4]], dtype=np.float32)
    other_features = np.array([[2, 0, 3], [0, 0, 0], [-1, 0, 0.5], [0, 0, 4]], dtype=np.float32)
    variants = [Codes.from_dense(dense, SEQUENCE) for dense in (DENSE, other_tokens, other_features, 2 * DENSE)]
    variants.append(Codes.from_dense(DENSE))
    assert len({stats_of(COST, codes=codes).digest() for codes in (None, *variants)}) == 6


def test_statistics_reject_codes_of_other_features_or_of_more_tokens() -> None:
    with pytest.raises(ValueError, match="of 3 features"):
        stats_of(COST, codes=Codes.from_dense(DENSE[:, :2]))
    with pytest.raises(ValueError, match="at most 3 tokens"):
        stats_of(COST, n_tokens=3, codes=Codes.from_dense(DENSE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": lambda v: v.astype(np.float64)}, "value must be one row of float32, got float64"),
        ({"feature": lambda v: v[None]}, "feature must be one row"),
        ({"row_start": lambda v: v[:-1]}, "every token must have a row"),
        ({"row_start": lambda v: v[:0], "sequence": lambda v: v[:0]}, "every token must have a row"),
        ({"value": lambda v: v[1:]}, "every entry a feature and a value"),
        ({"row_start": lambda v: v + 1}, "must start at 0"),
        ({"row_start": lambda v: v[[0, 2, 1, 0, 4]]}, "must not fall"),
        ({"row_start": lambda v: np.array([0, 2**63 - 1, -(2**63), -1, 5])}, "must not fall"),
        ({"row_start": lambda v: v // 2}, "end at the number of entries"),
        ({"feature": lambda v: v - 1}, "one of 3"),
        ({"feature": lambda v: v + 1}, "one of 3"),
        ({"feature": lambda v: v[::-1].copy()}, "must ascend"),
        ({"feature": lambda v: np.array([1, 1, 0, 2, 2], dtype=np.int32)}, "must ascend"),
        ({"value": lambda v: v * np.float32(np.nan)}, "not finite"),
        ({"value": lambda v: v * np.float32(np.inf)}, "not finite"),
        ({"sequence": lambda v: v - 1}, "counted from 0"),
    ],
)
def test_rejects_impossible_codes(change: dict[str, Callable[[np.ndarray], np.ndarray]], message: str) -> None:
    """Call `__post_init__` directly: only the tests check annotations, and they would raise before it does."""
    codes = object.__new__(Codes)
    vars(codes).update(vars(Codes.from_dense(DENSE, SEQUENCE)))
    codes.__post_init__()
    vars(codes).update({name: changed(getattr(codes, name)) for name, changed in change.items()})
    with pytest.raises(ValueError, match=message):
        codes.__post_init__()


def test_a_dense_matrix_is_converted_as_worked_out_by_hand() -> None:
    codes = Codes.from_dense(DENSE, SEQUENCE)
    assert (codes.n_tokens, codes.n_entries) == (4, 5)
    assert codes.row_start.tolist() == [0, 2, 2, 4, 5]
    assert codes.feature.tolist() == [1, 2, 0, 2, 2]
    assert codes.value.tolist() == [2, 3, -1, 0.5, 4]


@given(dense_codes, st.data())
def test_selected_tokens_are_rows_of_the_dense_matrix(dense: np.ndarray, data: st.DataObject) -> None:
    codes, n = Codes.from_dense(dense), len(dense)
    np.testing.assert_array_equal(codes.dense(), dense)
    mask = data.draw(arrays(bool, n))
    indices = data.draw(arrays(np.int64, st.integers(0, 9) if n else 0, elements=st.integers(0, max(n - 1, 0))))
    for chosen in (mask, indices):
        selected = codes.select_tokens(chosen)
        np.testing.assert_array_equal(selected.dense(), dense[chosen])
        np.testing.assert_array_equal(selected.sequence, np.arange(n)[chosen])


@given(dense_codes, dense_codes, dense_codes)
def test_concatenated_codes_are_concatenated_rows(one: np.ndarray, two: np.ndarray, three: np.ndarray) -> None:
    a, b, c = (Codes.from_dense(dense) for dense in (one, two, three))
    together = Codes.concatenate([a, b, c])
    np.testing.assert_array_equal(together.dense(), np.concatenate([one, two, three]))
    assert_same_codes(together, Codes.concatenate([Codes.concatenate([a, b]), c]))
    assert_same_codes(together, Codes.concatenate([a, Codes.concatenate([b, c])]))
    assert_same_codes(together.select_tokens(np.arange(len(one))), a)


def test_codes_of_different_features_cannot_be_concatenated() -> None:
    with pytest.raises(ValueError, match="different numbers of features"):
        Codes.concatenate([Codes.from_dense(DENSE), Codes.from_dense(DENSE[:, :2])])
