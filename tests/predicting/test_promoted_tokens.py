"""Promoted tokens are computed for the features that are shown, once, and kept with the prediction."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.models import FEATURES, HOOK
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import (
    FloorPrediction,
    InputError,
    PromotedTokens,
    add_promoted_tokens,
    floor_from_stats,
    lost_features,
    measure,
    one_feature,
    predict_floor,
)
from tl_distill_floor.measuring import direct_logits as product
from tl_distill_floor.predicting import promoted_tokens as on_request
from tl_distill_floor.predicting.lost_features import features_shown_by_default

WIDTHS = [2, 8, 16]


@pytest.fixture(scope="module")
def floor(bridge: Any, sae: Any, ids: Tensor) -> FloorPrediction:
    """Predict from the random teacher, whose narrowest student loses more features than are shown."""
    return predict_floor(bridge, sae, ids, widths=WIDTHS, steps=0, cost="energy")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every product with the unembedding appends its number of features."""
    counts: list[int] = []
    compute = product.find_promoted_tokens

    def counted(model: Any, W_dec: Tensor, *rest: int) -> np.ndarray:
        counts.append(len(W_dec))
        return compute(model, W_dec, *rest)

    monkeypatch.setattr(product, "find_promoted_tokens", counted)
    return counts


def strings_of_full_product(bridge: Any, sae: Any, tokenizer: Any) -> list[tuple[str, ...]]:
    """Return the promoted tokens of every feature by a full product in float64."""
    norm = bridge.original_model.gpt_neox.final_layer_norm.weight.detach().double()
    rows = sae.W_dec.detach().double()
    centered = rows - rows.mean(1, keepdim=True)
    normed = centered / centered.square().mean(1, keepdim=True).sqrt() * norm
    ids = (normed @ bridge.unembed.W_U.detach().double()).argsort(dim=1, descending=True)[:, :6]
    return [tuple(tokenizer.decode([token]) for token in row) for row in ids.tolist()]


def test_measuring_computes_no_promoted_tokens(bridge: Any, sae: Any, ids: Tensor, products: list[int]) -> None:
    stats = measure(bridge, sae, ids, cost="energy")
    assert products == []
    assert stats.contexts is not None
    assert stats.contexts.promoted.shape == (FEATURES, 0)
    floor = floor_from_stats(stats, WIDTHS, steps=0)
    assert floor.promoted is None
    assert [feature.promoted for feature in lost_features(floor).shown] == [None] * 20


def test_a_prediction_has_them_for_the_features_that_are_shown_by_default(
    floor: FloorPrediction, bridge: Any, sae: Any, ids: Tensor, tokenizer: Any, products: list[int]
) -> None:
    predict_floor(bridge, sae, ids, widths=WIDTHS, steps=0, cost="energy")
    expected = {feature for width in WIDTHS for feature in floor.lost(width)[:20].tolist()}
    assert products == [len(expected)]
    assert len(expected) < len(floor.lost(2))
    assert floor.promoted is not None
    assert set(floor.promoted.tokens) == expected == set(features_shown_by_default(floor))
    of_all = strings_of_full_product(bridge, sae, tokenizer)
    assert floor.promoted.tokens == {feature: of_all[feature] for feature in sorted(expected)}
    for width in WIDTHS:
        shown = lost_features(floor, width).shown
        assert [feature.promoted for feature in shown] == [of_all[feature.feature] for feature in shown]


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_features_may_be_a_mask(floor: FloorPrediction, bridge: Any, sae: Any, convert: Callable[..., Any]) -> None:
    kept, empty = floor.kept(8), replace(floor, promoted=None)
    with without_type_checks():
        completed = add_promoted_tokens(empty, convert(kept), bridge, sae)
    assert completed.promoted is not None
    assert list(completed.promoted.tokens) == np.flatnonzero(kept).tolist()


def test_rejects_a_mask_of_other_features_and_fractions(floor: FloorPrediction) -> None:
    with pytest.raises(InputError, match=f"one value for each of the {FEATURES} features, got"):
        add_promoted_tokens(floor, floor.kept(8)[1:])
    with pytest.raises(InputError, match=r"a feature must be an integer, got 1\.7"), without_type_checks():
        add_promoted_tokens(floor, [1.7])


def test_adds_only_the_missing_features(
    floor: FloorPrediction, bridge: Any, sae: Any, tokenizer: Any, products: list[int]
) -> None:
    lost, known = floor.lost(2), set(features_shown_by_default(floor))
    missing = sorted(set(lost.tolist()) - known)
    completed = add_promoted_tokens(floor, lost, bridge, sae)
    assert products == [len(missing)] != [0]
    of_all = strings_of_full_product(bridge, sae, tokenizer)
    assert [feature.promoted for feature in lost_features(completed, 2, top=FEATURES).shown] == [
        of_all[feature] for feature in lost.tolist()
    ]
    assert one_feature(completed, missing[0]).at[0].promoted == of_all[missing[0]]
    assert one_feature(floor, missing[0]).at[0].promoted is None  # the prediction itself is not changed
    assert add_promoted_tokens(completed, lost, bridge, sae) is completed
    assert len(products) == 1


def test_known_tokens_need_neither_teacher_nor_sae(floor: FloorPrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(on_request, "load_measured_teacher", refuse)
    monkeypatch.setattr(on_request, "load_measured_sae", refuse)
    assert add_promoted_tokens(floor, features_shown_by_default(floor)) is floor
    assert add_promoted_tokens(floor, []) is floor


def test_the_teacher_and_the_sae_are_loaded_by_the_names_in_the_prediction(
    teacher_dir: Path, sae_dir: Path, ids: Tensor, bridge: Any, sae: Any, tokenizer: Any
) -> None:
    floor = predict_floor(str(teacher_dir), str(sae_dir), ids, widths=WIDTHS, steps=0, cost="energy")
    lost = floor.lost(2)
    completed = add_promoted_tokens(floor, lost).promoted
    assert completed is not None
    of_all = strings_of_full_product(bridge, sae, tokenizer)
    assert all(completed.tokens[feature] == of_all[feature] for feature in lost.tolist())


def test_tokens_of_older_files_are_not_computed_again(
    floor: FloorPrediction, bridge: Any, sae: Any, products: list[int]
) -> None:
    contexts = floor.stats.contexts
    assert contexts is not None
    ids = np.full((FEATURES, 2), 5, dtype=np.int32)
    ids[3] = -1
    contexts = contexts.with_promoted(ids).with_strings(lambda token: f"w{token}")
    older = replace(floor, stats=replace(floor.stats, contexts=contexts), promoted=None)
    assert {feature.promoted for feature in lost_features(older, 2, top=10).shown if feature.feature != 3} == {
        ("w5", "w5")
    }
    assert add_promoted_tokens(older, [0, 1, 2], bridge, sae) is older
    assert products == []
    add_promoted_tokens(older, [2, 3], bridge, sae)
    assert products == [1]


def test_a_hook_point_outside_the_residual_stream_has_none(
    floor: FloorPrediction, bridge: Any, sae: Any, products: list[int]
) -> None:
    elsewhere = replace(floor, stats=replace(floor.stats, hook_name="blocks.1.attn.hook_z"), promoted=None)
    completed = on_request.compute_promoted_tokens(elsewhere, [4, 1], bridge, sae.W_dec)
    assert completed.promoted is not None
    assert completed.promoted.tokens == {1: (), 4: ()}
    assert products == []


def test_a_prediction_saves_and_loads_its_promoted_tokens(floor: FloorPrediction, tmp_path: Path) -> None:
    floor.save(tmp_path / "run")
    loaded = FloorPrediction.load(tmp_path / "run")
    assert loaded.promoted == floor.promoted
    assert PromotedTokens.load(tmp_path / "run") == floor.promoted
    replace(floor, promoted=None).save(tmp_path / "without")
    assert FloorPrediction.load(tmp_path / "without").promoted is None


def test_promoted_tokens_of_other_statistics_are_not_read(floor: FloorPrediction, tmp_path: Path) -> None:
    floor.save(tmp_path)
    PromotedTokens("0123456789abcdef", {1: ("other",)}).save(tmp_path)
    assert FloorPrediction.load(tmp_path).promoted is None
    assert floor.promoted is not None
    with pytest.raises(ValueError, match="different statistics"):
        floor.promoted.merge(PromotedTokens("0123456789abcdef", {}))


def test_rejects_a_damaged_file(floor: FloorPrediction, tmp_path: Path) -> None:
    floor.save(tmp_path)
    (tmp_path / "promoted.json").write_text("{}")
    with pytest.raises(InputError, match=r"promoted.json has the format None"):
        FloorPrediction.load(tmp_path)


@pytest.mark.parametrize("feature", [-1, FEATURES])
def test_rejects_a_feature_that_the_sae_does_not_have(floor: FloorPrediction, feature: int) -> None:
    with pytest.raises(InputError, match=rf"features 0 to {FEATURES - 1}, got {feature}"):
        add_promoted_tokens(floor, [0, feature])


def test_rejects_another_sae(floor: FloorPrediction, bridge: Any, sae: Any) -> None:
    from copy import deepcopy

    other = deepcopy(sae)
    with torch.no_grad():
        other.W_dec.mul_(2)
    missing = [feature for feature in range(FEATURES) if feature not in features_shown_by_default(floor)]
    with pytest.raises(InputError, match="this SAE is another"):
        add_promoted_tokens(floor, missing, bridge, other)


def test_a_missing_sae_or_teacher_is_an_input_error(floor: FloorPrediction, sae: Any) -> None:
    missing = [feature for feature in range(FEATURES) if feature not in features_shown_by_default(floor)]
    with pytest.raises(InputError, match="in-memory"):
        add_promoted_tokens(floor, missing)
    assert floor.stats.hook_name == HOOK
    gone = replace(floor, stats=replace(floor.stats, model_name="/nowhere/teacher"))
    with pytest.raises(InputError, match="cannot load a teacher from '/nowhere/teacher'"):
        add_promoted_tokens(gone, missing, sae=sae)
