"""Ridge regression from activations to SAE features."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array, csr_array

from tests.helpers.models import CONTEXT
from tl_distill_floor import FloorPrediction, InputError, load_sae, load_teacher, load_text
from tl_distill_floor.probing import decodability as module
from tl_distill_floor.probing.decodability import EncodedText, _decodable_features, decodability, decode_features
from tl_distill_floor.results.probes import separation
from tl_distill_floor.sources.packing import Packing


def test_scores_match_the_best_linear_decoder() -> None:
    # Feature 0 is a rectified coordinate, feature 1 the sum of two coordinates, feature 2 is independent of x.
    random = np.random.default_rng(3)
    x = random.normal(size=(5000, 6)).astype(np.float32)
    codes = np.stack([np.maximum(x[:, 0] - 1, 0), x[:, 1] + x[:, 2], random.random(5000) < 0.2], axis=1)
    part = np.arange(5000) % 5
    auroc, explained = decode_features(x, csc_array(codes), part)
    assert auroc[0] > 0.97
    assert explained[1] == pytest.approx(1.0, abs=1e-3)
    assert auroc[2] == pytest.approx(0.5, abs=0.06)
    assert explained[2] == pytest.approx(0.0, abs=0.02)
    # A linear fit explains Cov(x, y)²/Var(y) of y = max(x − 1, 0), x standard normal: Cov = P(x > 1) = 0.1587,
    # E[y] = φ(1) − 0.1587 = 0.0833, E[y²] = 2 · 0.1587 − φ(1) = 0.0754, so 0.0252 / 0.0685 = 0.368.
    assert explained[0] == pytest.approx(0.368, abs=0.04)


@pytest.mark.parametrize("constant", [0.1, 1000.3])
def test_a_dimension_that_is_constant_changes_nothing(constant: float) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 4)).astype(np.float32)
    codes, part = csc_array(np.maximum(x[:, :1] - 1, 0)), np.arange(2000) % 5
    with_constant = np.concatenate([x, np.full((2000, 1), constant, np.float32)], axis=1)
    for expected, scores in zip(
        decode_features(x, codes, part), decode_features(with_constant, codes, part), strict=True
    ):
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_features_that_fire_on_every_token_are_not_decoded() -> None:
    codes = csr_array(np.stack([np.ones(500), np.arange(500) % 2, np.arange(500) % 3 == 0], axis=1))
    encoded = EncodedText(torch.zeros((0, 0), dtype=torch.long), np.zeros((0, 0), bool), codes, np.arange(500))
    features = _decodable_features(encoded, np.arange(500) % 5, np.array([True, True, True]), 0)
    assert features.tolist() == [1, 2]


def test_reads_text_and_positions_as_in_the_training_of_the_sae(
    measured: tuple[Path, Path, Path], sae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, teacher_dir, text = measured
    packings: list[Packing] = []

    def load_and_record(*args: Any, packing: Packing, **options: Any) -> Any:
        packings.append(packing)
        return load_text(*args, packing=packing, **options)

    monkeypatch.setattr(module, "load_text", load_and_record)
    floor, teacher, restricted = FloorPrediction.load(directory), load_teacher(teacher_dir), copy.deepcopy(sae)
    restricted.cfg.metadata.seqpos_slice = [4, 20]
    restricted.cfg.metadata.sequence_separator_token = None
    n_test_tokens = [
        decodability(floor, teacher, load_sae(each), [], text, n_tokens=50 * CONTEXT)[0].n_tokens
        for each in (sae, restricted)
    ]
    # Ten of the fifty sequences are the test part. Each has 31 tokens after the first, or the 16 from position 4 on.
    assert n_test_tokens == [10 * (CONTEXT - 1), 10 * 16]
    assert packings == [Packing(), Packing(separator="none")]
    # Encoding a few tokens at a time gives the same codes.
    expected = decodability(floor, teacher, load_sae(sae), [], text, n_tokens=50 * CONTEXT)
    monkeypatch.setattr(module, "tokens_at_once", lambda _n_features, _device: 7)
    (again,) = decodability(floor, teacher, load_sae(sae), [], text, n_tokens=50 * CONTEXT)
    assert again.feature == expected[0].feature
    np.testing.assert_allclose(again.explained, expected[0].explained, atol=1e-4)
    with pytest.raises(InputError, match="the text holds token id 99999, the teacher's vocabulary ends at"):
        decodability(floor, teacher, load_sae(sae), [], torch.full((9, CONTEXT), 99_999))


def test_separation_is_the_share_of_ordered_pairs() -> None:
    # Of the pairs (kept, lost), 0.9 > 0.5, 0.9 > 0.2 and 0.4 > 0.2, but 0.4 < 0.5: three of four.
    assert separation((0.9, 0.5, 0.4, 0.2), (True, False, True, False)) == 0.75
    assert separation((0.5, 0.5), (True, False)) == 0.5
    assert math.isnan(separation((0.5, 0.4), (True, True)))
