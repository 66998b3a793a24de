"""What each feature fires on and which tokens it promotes: as found one by one, whatever the batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import FEATURES, VOCABULARY, WIDTH
from tests.helpers.records import stats_of
from tl_distill_floor import FeatureStats, InputError
from tl_distill_floor.measuring import strongest_contexts as measuring
from tl_distill_floor.measuring.strongest_contexts import batch_contexts, decoder_of, described, promoted_tokens
from tl_distill_floor.results.contexts import AFTER, BEFORE, N_CONTEXTS, PEAK, WINDOW, FeatureContexts

N, LENGTH = 3, 6


def same(found: FeatureContexts, expected: FeatureContexts) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def of_batch(codes: torch.Tensor, ids: torch.Tensor, first: int = 0) -> FeatureContexts:
    """Of [sequence, position, feature] codes, whose first position does not count."""
    counted = codes[:, 1:]
    place = torch.ones(counted.shape[:2]).nonzero()
    token, feature = counted.flatten(0, 1).nonzero(as_tuple=True)
    value = counted.flatten(0, 1)[token, feature]
    return batch_contexts(token, feature, value, place[:, 0] + first, place[:, 1] + 1, ids, first, codes.shape[2])


def one_by_one(codes: torch.Tensor, ids: torch.Tensor) -> list[list[tuple[float, int, list[int]]]]:
    """Of every feature: strength, sequence and window of its strongest sequences."""
    found: list[list[tuple[float, int, list[int]]]] = []
    for feature in range(codes.shape[2]):
        peaks = []
        for sequence, strengths in enumerate(codes[:, :, feature].abs().tolist()):
            strengths[0] = 0.0
            at = strengths.index(max(strengths))
            row = ids[sequence].tolist()
            window = [row[i] if 0 <= i < len(row) else -1 for i in range(at - BEFORE, at + AFTER + 1)]
            if max(strengths) > 0:
                peaks.append((max(strengths), sequence, window))
        found.append(sorted(peaks, key=lambda peak: -peak[0])[:N_CONTEXTS])
    return found


strengths = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-30])


@st.composite
def texts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """([sequence, position, feature] codes, [sequence, position] ids), with many strengths that are equal."""
    n = draw(st.integers(1, 9))
    values = draw(st.lists(strengths, min_size=n * LENGTH * N, max_size=n * LENGTH * N))
    ids = torch.arange(n * LENGTH).reshape(n, LENGTH) * 7 % 50
    return torch.tensor(values).reshape(n, LENGTH, N), ids


@given(texts())
def test_contexts_are_those_found_one_by_one(text: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = of_batch(*text)
    for feature, peaks in enumerate(one_by_one(*text)):
        assert found.n_contexts(feature) == len(peaks)
        for k, (strength, sequence, window) in enumerate(peaks):
            assert found.activation[feature, k] == np.float32(strength)
            assert found.sequence[feature, k] == sequence
            assert found.window[feature, k].tolist() == window
        assert (found.window[feature, len(peaks) :] == -1).all()
        assert (found.sequence[feature, len(peaks) :] == -1).all()


@given(texts(), st.data())
def test_batch_by_batch_equals_all_at_once_however_they_are_joined(
    text: tuple[torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    codes, ids = text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=3)))
    ends = [(a, b) for a, b in zip([0, *cuts], [*cuts, len(codes)], strict=True) if a < b]
    parts = [of_batch(codes[a:b], ids[a:b], a) for a, b in ends]
    whole = of_batch(codes, ids)
    same(joined_left(parts), whole)
    same(joined_right(parts), whole)


def joined_left(parts: Sequence[FeatureContexts]) -> FeatureContexts:
    return parts[0] if len(parts) == 1 else joined_left([parts[0].merge(parts[1]), *parts[2:]])


def joined_right(parts: Sequence[FeatureContexts]) -> FeatureContexts:
    return parts[0] if len(parts) == 1 else parts[0].merge(joined_right(parts[1:]))


def test_peaks_at_the_ends_of_a_sequence() -> None:
    codes = torch.zeros(2, 30, 1)
    codes[0, 1, 0], codes[1, 29, 0] = 3.0, -4.0
    ids = torch.arange(60).reshape(2, 30)
    found = of_batch(codes, ids, first=10)
    assert found.sequence[0].tolist() == [11, 10, -1, -1]
    assert found.activation[0].tolist() == [4.0, 3.0, 0.0, 0.0]
    # Sequence 11 holds the ids 30 to 59 and has its peak at the last; sequence 10 the ids 0 to 29, at the second.
    assert found.window[0, 0].tolist() == [*range(47, 60), *[-1] * AFTER]
    assert found.window[0, 1].tolist() == [*[-1] * (BEFORE - 1), 0, 1, 2, 3, 4, 5, 6]
    assert found.window[0, 0, PEAK] == 59


def test_half_precision_and_a_batch_without_entries() -> None:
    codes = torch.zeros(3, 5, 2, dtype=torch.bfloat16)
    same(of_batch(codes, torch.zeros(3, 5, dtype=torch.long)), FeatureContexts.nowhere(2))
    codes[1, 2, 1] = 1.5
    assert of_batch(codes, torch.zeros(3, 5, dtype=torch.long)).activation[1, 0] == 1.5


def made(seed: int = 0, first: int = 0) -> FeatureContexts:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randn(5, LENGTH, N, generator=random).relu()
    return of_batch(codes, torch.randint(0, 50, (5, LENGTH), generator=random), first)


def test_another_text_is_counted_on() -> None:
    one, other = made(), made(1)
    merged = one.merge(other)
    same(merged, one.merge(made(1, first=5)))
    expected = sorted([*one.activation[0], *other.activation[0]], reverse=True)[:N_CONTEXTS]
    assert merged.activation[0].tolist() == expected


def word(token: int) -> str:
    return f" w{token}" if token % 2 else "é\n"


def test_strings_of_what_is_used() -> None:
    contexts = made().with_promoted(np.array([[3, 4], [-1, -1], [99, 5]], dtype=np.int32))
    asked: list[int] = []
    found = contexts.with_strings(lambda token: (asked.append(token), word(token))[1])
    assert asked == sorted({*contexts.window.flatten().tolist(), 3, 4, 99, 5} - {-1})
    window = contexts.window[1, 0]
    before, peak, after = found.text(1, 0)
    assert peak == word(int(window[PEAK]))
    assert before + peak + after == "".join(word(int(t)) for t in window if t >= 0)
    assert after == "".join(word(int(t)) for t in window[PEAK + 1 :] if t >= 0)
    assert [found.promoted_tokens(i) for i in range(3)] == [[" w3", "é\n"], [], [" w99", " w5"]]


def test_without_strings_the_ids_are_shown() -> None:
    contexts = made()
    assert contexts.text(0, 0)[1] == f"⟨{contexts.window[0, 0, PEAK]}⟩"
    assert contexts.promoted_tokens(0) == []
    assert contexts.text(0, 0) == contexts.with_strings(lambda token: f"⟨{token}⟩").text(0, 0)


def test_merging_keeps_strings_where_both_have_them() -> None:
    one, other = made().with_strings(word), made(1, first=5).with_strings(word)
    same(one.merge(other), made().merge(made(1, first=5)).with_strings(word))
    assert not one.merge(made(1, first=5)).has_strings
    promoted = np.array([[1], [2], [3]], dtype=np.int32)
    assert made().merge(other.with_promoted(promoted)).promoted.tolist() == promoted.tolist()


def test_merging_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match="other shapes"):
        made().merge(FeatureContexts.nowhere(N + 1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": np.ones((N, N_CONTEXTS), dtype=np.float32)}, "must have a sequence"),
        ({"activation": np.full((N, N_CONTEXTS), np.nan, dtype=np.float32)}, "finite"),
        ({"activation": np.tile(np.arange(N_CONTEXTS, dtype=np.float32), (N, 1))}, "must fall"),
        ({"window": np.full((N, N_CONTEXTS, 2), -1, dtype=np.int32)}, "a sequence and a window"),
        ({"window": np.full((N, N_CONTEXTS, WINDOW), -2, dtype=np.int32)}, "counted from 0"),
        ({"token_id": np.array([4], dtype=np.int32)}, "must have a string"),
        ({"token_start": np.array([1])}, "hold every byte"),
    ],
)
def test_impossible_contexts_are_refused(change: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(FeatureContexts.nowhere(N), **change)


def test_statistics_carry_contexts(tmp_path: Path) -> None:
    cost = np.array([5.0, 1.0, 9.0])
    contexts = made().with_strings(word).with_promoted(np.ones((N, 2), dtype=np.int32))
    stats = stats_of(cost, contexts=contexts, neuronpedia_id="gpt2-small/8-res-jb")
    found = FeatureStats.load(stats.save(tmp_path / "x.safetensors"))
    assert found.contexts is not None
    same(found.contexts, contexts)
    assert found.neuronpedia_id == "gpt2-small/8-res-jb"
    assert FeatureStats.load(stats_of(cost).save(tmp_path / "y.safetensors")).contexts is None
    merged = stats.merge(stats_of(cost, contexts=made(1))).contexts
    assert merged is not None
    np.testing.assert_array_equal(merged.activation, contexts.merge(made(1)).activation)
    assert stats.merge(stats_of(cost)).contexts is None
    with pytest.raises(ValueError, match="contexts must be of 4 features"):
        stats_of(np.ones(4), contexts=contexts)


def test_damaged_contexts_are_refused(tmp_path: Path) -> None:
    stats = stats_of(np.array([5.0, 1.0, 9.0]), contexts=made())
    assert stats.contexts is not None
    object.__setattr__(stats.contexts, "sequence", np.zeros((N, 1), dtype=np.int64))
    with pytest.raises(InputError, match="measure again"):
        FeatureStats.load(stats.save(tmp_path / "x.safetensors"))


@pytest.fixture(scope="module")
def hooked() -> Any:
    pytest.importorskip("transformer_lens.HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=16, n_ctx=8, d_head=8, d_vocab=40, act_fn="gelu", normalization_type="LN", seed=3
    )
    model = HookedTransformer(config)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (model.ln_final.w, model.ln_final.b, model.unembed.b_U):
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


def by_hand(rows: torch.Tensor, weight: torch.Tensor, W_U: torch.Tensor, n: int) -> list[list[int]]:
    """Of a LayerNorm with a scale of its own and an unembedding [d_model, token]; biases cancel."""
    rows = rows.double()
    centred = rows - rows.mean(-1, keepdim=True)
    normed = centred / centred.square().mean(-1, keepdim=True).sqrt() * weight.double()
    return (normed @ W_U.double()).argsort(dim=1, descending=True)[:, :n].tolist()


def test_promoted_tokens_of_a_hooked_transformer(hooked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 7)[:, None]
    found = promoted_tokens(hooked, rows)
    assert found.tolist() == by_hand(rows, hooked.ln_final.w.detach(), hooked.unembed.W_U.detach(), 6)
    monkeypatch.setattr(measuring, "LOGITS_AT_ONCE", 100)  # two rows at a time
    np.testing.assert_array_equal(promoted_tokens(hooked, rows), found)
    np.testing.assert_array_equal(promoted_tokens(hooked, rows, 2), found[:, :2])


def test_of_two_texts_each_feature_that_fired_in_one_promotes_its_tokens() -> None:
    one = made().with_promoted(np.array([[5, 6], [-1, -1], [7, 8]], dtype=np.int32))
    other = replace(one, promoted=np.array([[5, 6], [3, 4], [-1, -1]], dtype=np.int32))
    for merged in (one.merge(other), other.merge(one)):
        assert merged.promoted.tolist() == [[5, 6], [3, 4], [7, 8]]


def test_a_text_in_which_nothing_fired_takes_no_strings_away() -> None:
    one, nowhere = made().with_strings(word), FeatureContexts.nowhere(N)
    for merged in (one.merge(nowhere), nowhere.merge(one)):
        assert merged.has_strings
        assert merged.text(0, 0) == one.text(0, 0)


def test_a_feature_that_never_fired_promotes_nothing(bridge: Any, sae: Any) -> None:
    whole = promoted_tokens(bridge, sae.W_dec)
    contexts = FeatureContexts.nowhere(FEATURES)
    contexts.activation[[2, 5], 0], contexts.sequence[[2, 5], 0] = 1.0, 0
    found = described(contexts, bridge, sae, "blocks.1.hook_resid_post").promoted
    assert np.flatnonzero((found >= 0).any(1)).tolist() == [2, 5]
    assert found[[2, 5]].tolist() == whole[[2, 5]].tolist()


def test_promoted_tokens_of_a_bridge(bridge: Any, sae: Any) -> None:
    model = bridge.original_model
    weight, W_U = model.gpt_neox.final_layer_norm.weight.detach(), bridge.unembed.W_U.detach()
    found = promoted_tokens(bridge, sae.W_dec)
    assert found.shape == (FEATURES, 6)
    assert found.tolist() == by_hand(sae.W_dec.detach(), weight, W_U, 6)


def test_a_row_of_zeros_promotes_nothing(hooked: Any) -> None:
    found = promoted_tokens(hooked, torch.stack([torch.zeros(16), torch.ones(16).cumsum(0)]))
    assert (found[0] == -1).all()
    assert (found[1] >= 0).all()


def test_nothing_is_promoted_outside_the_residual_stream(hooked: Any, bridge: Any, sae: Any) -> None:
    assert promoted_tokens(hooked, torch.ones(7, 24)).shape == (7, 0)
    assert promoted_tokens(hooked, torch.ones(7, 2, 8)).shape == (7, 0)
    contexts = FeatureContexts.nowhere(FEATURES)
    assert described(contexts, bridge, sae, "blocks.1.hook_resid_post").promoted.shape == (FEATURES, 6)
    assert described(contexts, bridge, sae, "blocks.1.hook_mlp_out").promoted.shape == (FEATURES, 6)
    # The heads' outputs have the residual stream's width here, but are not added to it.
    assert described(contexts, bridge, sae, "blocks.1.attn.hook_z").promoted.shape == (FEATURES, 0)


def test_the_model_is_left_as_it_was(hooked: Any) -> None:
    hooked.train()
    before = {name: parameter.clone() for name, parameter in hooked.named_parameters()}
    promoted_tokens(hooked, torch.ones(3, 16, requires_grad=True))
    assert all(module.training for module in hooked.modules())
    assert not any(point.fwd_hooks or point._forward_hooks for point in hooked.hook_dict.values())
    for name, parameter in hooked.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_strings_are_those_of_the_tokenizer(bridge: Any, sae: Any, tokenizer: Any) -> None:
    ids = tokenizer("Call me Ishmael, some years ago", return_tensors="pt")["input_ids"]
    codes = torch.zeros(*ids.shape, 1)
    codes[0, 3, 0] = 2.0
    found = of_batch(codes, ids).with_strings(decoder_of(tokenizer))
    before, peak, after = found.text(0, 0)
    assert before == tokenizer.decode(ids[0, :3])
    assert peak == tokenizer.decode(ids[0, 3:4])
    assert (before + peak + after) == tokenizer.decode(ids[0, : 4 + AFTER])


def test_a_word_of_a_sentencepiece_vocabulary_keeps_its_space() -> None:
    class Pieces:
        def decode(self, ids: list[int]) -> str:
            return {0: "the", 1: "re", 2: ","}[ids[0]]

        def convert_ids_to_tokens(self, token: int) -> str:
            return {0: "▁the", 1: "re", 2: ","}[token]

    decode = decoder_of(Pieces())
    assert "".join(decode(token) for token in (0, 1, 2)) == " there,"


def test_every_token_of_the_bridge_has_a_string(bridge: Any, sae: Any) -> None:
    contexts = FeatureContexts.nowhere(FEATURES)
    contexts.activation[:, 0], contexts.sequence[:, 0] = 1.0, 0
    found = described(contexts, bridge, sae, "blocks.1.hook_resid_post")
    assert all(len(found.promoted_tokens(feature)) == 6 for feature in range(FEATURES))
    assert found.token_id.max() < VOCABULARY
    assert sae.W_dec.shape[1] == WIDTH
