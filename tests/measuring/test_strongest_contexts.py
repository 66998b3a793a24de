"""Strongest contexts, compared with searches one feature at a time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes
from tl_distill_floor.measuring.strongest_contexts import RunningContexts, batch_contexts, token_decoder
from tl_distill_floor.results.contexts import AFTER, BEFORE, N_CONTEXTS, PEAK, WINDOW, FeatureContexts

N_FEATURES, LENGTH = 3, 6


def assert_same_contexts(contexts: FeatureContexts, expected: FeatureContexts) -> None:
    """Assert that contexts are identical to the last bit."""
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(contexts, name), value, err_msg=name)


def contexts_of(codes: torch.Tensor, ids: torch.Tensor, first: int = 0) -> FeatureContexts:
    """Return the contexts of [sequence, position, feature] codes; the first position is not counted."""
    return running_contexts_of(codes, ids, first).finish()


def running_contexts_of(codes: torch.Tensor, ids: torch.Tensor, first: int = 0) -> RunningContexts:
    """Return the contexts of `contexts_of` as tensors."""
    counted = codes[:, 1:]
    place = torch.ones(counted.shape[:2]).nonzero()
    token, feature = counted.flatten(0, 1).nonzero(as_tuple=True)
    value = counted.flatten(0, 1)[token, feature]
    n, place = len(codes), place + torch.tensor([first, 1])
    batch = ActivationBatch(torch.zeros(len(place), 1), *place.T, first, n_sequences=n, n_masked=n, ids=ids)
    contexts = batch_contexts(batch, ActiveCodes(token, feature, value.double()), codes.shape[2])
    assert contexts is not None
    return contexts


def peaks_by_feature(codes: torch.Tensor, ids: torch.Tensor) -> list[list[tuple[float, int, list[int]]]]:
    """Return for each feature (strength, sequence, window) of its strongest sequences, by a plain search."""
    by_feature: list[list[tuple[float, int, list[int]]]] = []
    for feature in range(codes.shape[2]):
        peaks = []
        for sequence, strengths in enumerate(codes[:, :, feature].abs().tolist()):
            strengths[0] = 0.0
            position = strengths.index(max(strengths))
            row = ids[sequence].tolist()
            window = [row[i] if 0 <= i < len(row) else -1 for i in range(position - BEFORE, position + AFTER + 1)]
            if max(strengths) > 0:
                peaks.append((max(strengths), sequence, window))
        by_feature.append(sorted(peaks, key=lambda peak: -peak[0])[:N_CONTEXTS])
    return by_feature


strengths = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-30])


@st.composite
def texts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [sequence, position, feature] codes with many equal strengths, and [sequence, position] token ids."""
    n = draw(st.integers(1, 9))
    values = draw(st.lists(strengths, min_size=n * LENGTH * N_FEATURES, max_size=n * LENGTH * N_FEATURES))
    ids = torch.arange(n * LENGTH).reshape(n, LENGTH) * 7 % 50
    return torch.tensor(values).reshape(n, LENGTH, N_FEATURES), ids


@given(texts())
def test_contexts_match_plain_search(text: tuple[torch.Tensor, torch.Tensor]) -> None:
    contexts = contexts_of(*text)
    for feature, peaks in enumerate(peaks_by_feature(*text)):
        assert contexts.n_contexts(feature) == len(peaks)
        for k, (strength, sequence, window) in enumerate(peaks):
            assert contexts.activation[feature, k] == np.float32(strength)
            assert contexts.sequence[feature, k] == sequence
            assert contexts.window[feature, k].tolist() == window
        assert (contexts.window[feature, len(peaks) :] == -1).all()
        assert (contexts.sequence[feature, len(peaks) :] == -1).all()


@given(texts(), st.data())
def test_merged_batches_match_one_batch_in_any_order_of_merging(
    text: tuple[torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    codes, ids = text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=3)))
    ends = [(a, b) for a, b in zip([0, *cuts], [*cuts, len(codes)], strict=True) if a < b]
    parts = [contexts_of(codes[a:b], ids[a:b], a) for a, b in ends]
    expected = contexts_of(codes, ids)
    assert_same_contexts(merge_from_left(parts), expected)
    assert_same_contexts(merge_from_right(parts), expected)
    merged = RunningContexts.resume(parts[0], codes.device)
    for (a, b), part in zip(ends[1:], parts[1:], strict=True):
        merged = merged.merge(data.draw(st.sampled_from([part, running_contexts_of(codes[a:b], ids[a:b], a)])))
    assert_same_contexts(merged.finish(), expected)


def merge_from_left(parts: Sequence[FeatureContexts]) -> FeatureContexts:
    """Merge the first two parts, then the result with the next."""
    return parts[0] if len(parts) == 1 else merge_from_left([parts[0].merge(parts[1]), *parts[2:]])


def merge_from_right(parts: Sequence[FeatureContexts]) -> FeatureContexts:
    """Merge the last two parts, then the part before with the result."""
    return parts[0] if len(parts) == 1 else parts[0].merge(merge_from_right(parts[1:]))


def test_windows_are_padded_at_the_ends_of_a_sequence() -> None:
    codes = torch.zeros(2, 30, 1)
    codes[0, 1, 0], codes[1, 29, 0] = 3.0, -4.0
    ids = torch.arange(60).reshape(2, 30)
    contexts = contexts_of(codes, ids, first=10)
    assert contexts.sequence[0].tolist() == [11, 10, -1, -1]
    assert contexts.activation[0].tolist() == [4.0, 3.0, 0.0, 0.0]
    # Sequence 11 holds the ids 30 to 59, with its peak at the last; sequence 10 holds 0 to 29, with its peak at 1.
    assert contexts.window[0, 0].tolist() == [*range(47, 60), *[-1] * AFTER]
    assert contexts.window[0, 1].tolist() == [*[-1] * (BEFORE - 1), 0, 1, 2, 3, 4, 5, 6]
    assert contexts.window[0, 0, PEAK] == 59


def test_bf16_codes_and_batch_without_active_codes() -> None:
    codes = torch.zeros(3, 5, 2, dtype=torch.bfloat16)
    assert_same_contexts(contexts_of(codes, torch.zeros(3, 5, dtype=torch.long)), FeatureContexts.empty(2))
    codes[1, 2, 1] = 1.5
    assert contexts_of(codes, torch.zeros(3, 5, dtype=torch.long)).activation[1, 0] == 1.5


def random_contexts(seed: int = 0, first: int = 0) -> FeatureContexts:
    """Return the contexts of five random sequences."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randn(5, LENGTH, N_FEATURES, generator=random).relu()
    return contexts_of(codes, torch.randint(0, 50, (5, LENGTH), generator=random), first)


def test_merge_renumbers_the_sequences_of_another_text() -> None:
    one, other = random_contexts(), random_contexts(1)
    merged = one.merge(other)
    assert_same_contexts(merged, one.merge(random_contexts(1, first=5)))
    expected = sorted([*one.activation[0], *other.activation[0]], reverse=True)[:N_CONTEXTS]
    assert merged.activation[0].tolist() == expected


def decode_token(token: int) -> str:
    """Return a made-up string for a token id."""
    return f" w{token}" if token % 2 else "é\n"


def test_strings_are_stored_for_tokens_that_occur() -> None:
    contexts = random_contexts().with_promoted(np.array([[3, 4], [-1, -1], [99, 5]], dtype=np.int32))
    decoded: list[int] = []
    described = contexts.with_strings(lambda token: (decoded.append(token), decode_token(token))[1])
    assert decoded == sorted({*contexts.window.flatten().tolist(), 3, 4, 99, 5} - {-1})
    window = contexts.window[1, 0]
    before, peak, after = described.text(1, 0)
    assert peak == decode_token(int(window[PEAK]))
    assert before + peak + after == "".join(decode_token(int(t)) for t in window if t >= 0)
    assert after == "".join(decode_token(int(t)) for t in window[PEAK + 1 :] if t >= 0)
    assert [described.promoted_tokens(i) for i in range(3)] == [[" w3", "é\n"], [], [" w99", " w5"]]


def test_text_shows_ids_without_strings() -> None:
    contexts = random_contexts()
    assert contexts.text(0, 0)[1] == f"⟨{contexts.window[0, 0, PEAK]}⟩"
    assert contexts.promoted_tokens(0) == []
    assert contexts.text(0, 0) == contexts.with_strings(lambda token: f"⟨{token}⟩").text(0, 0)


def test_merge_keeps_strings_if_both_have_them() -> None:
    one, other = random_contexts().with_strings(decode_token), random_contexts(1, first=5).with_strings(decode_token)
    assert_same_contexts(
        one.merge(other), random_contexts().merge(random_contexts(1, first=5)).with_strings(decode_token)
    )
    assert not one.merge(random_contexts(1, first=5)).has_strings
    promoted = np.array([[1], [2], [3]], dtype=np.int32)
    assert random_contexts().merge(other.with_promoted(promoted)).promoted.tolist() == promoted.tolist()


def test_rejects_merge_with_other_number_of_features() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        random_contexts().merge(FeatureContexts.empty(N_FEATURES + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": np.ones((N_FEATURES, N_CONTEXTS), dtype=np.float32)}, "must have a sequence"),
        ({"activation": np.full((N_FEATURES, N_CONTEXTS), np.nan, dtype=np.float32)}, "finite"),
        ({"activation": -np.eye(N_FEATURES, N_CONTEXTS, dtype=np.float32)}, "at least 0"),
        ({"activation": np.eye(N_FEATURES, N_CONTEXTS, k=1, dtype=np.float32)}, "must fall"),
        ({"window": np.full((N_FEATURES, N_CONTEXTS, 2), -1, dtype=np.int32)}, "a sequence and a window"),
        ({"window": np.full((N_FEATURES, N_CONTEXTS, WINDOW), -2, dtype=np.int32)}, "counted from 0"),
        ({"token_id": np.array([4], dtype=np.int32)}, "must have a string"),
        ({"token_start": np.array([1])}, "end at the number of bytes"),
    ],
)
def test_rejects_inconsistent_contexts(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FeatureContexts.empty(N_FEATURES), **change)


def test_statistics_save_and_merge_contexts(tmp_path: Path) -> None:
    cost = np.array([5.0, 1.0, 9.0])
    contexts = random_contexts().with_strings(decode_token).with_promoted(np.ones((N_FEATURES, 2), dtype=np.int32))
    stats = stats_of(cost, contexts=contexts, neuronpedia_id="gpt2-small/8-res-jb")
    loaded = FeatureStats.load(stats.save(tmp_path / "x.safetensors"))
    assert loaded.contexts is not None
    assert_same_contexts(loaded.contexts, contexts)
    assert loaded.neuronpedia_id == "gpt2-small/8-res-jb"
    assert FeatureStats.load(stats_of(cost).save(tmp_path / "y.safetensors")).contexts is None
    merged = stats.merge(stats_of(cost, contexts=random_contexts(1))).contexts
    assert merged is not None
    np.testing.assert_array_equal(merged.activation, contexts.merge(random_contexts(1)).activation)
    assert stats.merge(stats_of(cost)).contexts is None
    with pytest.raises(ValueError, match="contexts must be of 4 features"):
        stats_of(np.ones(4), contexts=contexts)


def test_rejects_damaged_contexts(tmp_path: Path) -> None:
    stats = stats_of(np.array([5.0, 1.0, 9.0]), contexts=random_contexts())
    assert stats.contexts is not None
    object.__setattr__(stats.contexts, "sequence", np.zeros((N_FEATURES, 1), dtype=np.int64))
    with pytest.raises(InputError, match="measure again"):
        FeatureStats.load(stats.save(tmp_path / "x.safetensors"))


def test_merge_keeps_promoted_tokens_of_features_that_fired_in_either_text() -> None:
    one = random_contexts().with_promoted(np.array([[5, 6], [-1, -1], [7, 8]], dtype=np.int32))
    other = replace(one, promoted=np.array([[5, 6], [3, 4], [-1, -1]], dtype=np.int32))
    for merged in (one.merge(other), other.merge(one)):
        assert merged.promoted.tolist() == [[5, 6], [3, 4], [7, 8]]


def test_merge_with_empty_contexts_keeps_strings() -> None:
    one, empty = random_contexts().with_strings(decode_token), FeatureContexts.empty(N_FEATURES)
    for merged in (one.merge(empty), empty.merge(one)):
        assert merged.has_strings
        assert merged.text(0, 0) == one.text(0, 0)


def test_strings_match_the_tokenizer(bridge: Any, sae: Any, tokenizer: Any) -> None:
    ids = tokenizer("Call me Ishmael, some years ago", return_tensors="pt")["input_ids"]
    codes = torch.zeros(*ids.shape, 1)
    codes[0, 3, 0] = 2.0
    contexts = contexts_of(codes, ids).with_strings(token_decoder(tokenizer))
    before, peak, after = contexts.text(0, 0)
    assert before == tokenizer.decode(ids[0, :3])
    assert peak == tokenizer.decode(ids[0, 3:4])
    assert (before + peak + after) == tokenizer.decode(ids[0, : 4 + AFTER])


def test_words_of_a_sentencepiece_vocabulary_keep_their_space() -> None:
    class SentencePieceTokenizer:
        def decode(self, ids: list[int]) -> str:
            return {0: "the", 1: "re", 2: ","}[ids[0]]

        def convert_ids_to_tokens(self, token: int) -> str:
            return {0: "▁the", 1: "re", 2: ","}[token]

    decode = token_decoder(SentencePieceTokenizer())
    assert "".join(decode(token) for token in (0, 1, 2)) == " there,"
