"""Results are reproducible: identical with one seed, and close whatever the batch size, threads and precision."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor import FloorPrediction, load_teacher, measure, predict_floor

WIDTHS = [6, 12, 18]


def predict(model: Any, sae: Any, ids: torch.Tensor, **options: Any) -> FloorPrediction:
    """Predict the floor of a few widths with few training steps."""
    return predict_floor(model, sae, ids, widths=WIDTHS, steps=20, **options)


@pytest.fixture(scope="module")
def reference(bridge: Any, sae: Any, ids: torch.Tensor) -> FloorPrediction:
    """Predict the floor that the others are compared with."""
    return predict(bridge, sae, ids, batch_size=8)


def assert_close(floor: FloorPrediction, reference: FloorPrediction, rel: float, features: int = 0) -> None:
    """Assert that two predictions agree up to a relative error and a number of alive features."""
    assert abs(floor.n_features - reference.n_features) <= features
    assert 1 - floor.alpha == pytest.approx(1 - reference.alpha, rel=rel)
    assert floor.critical_width == pytest.approx(reference.critical_width, rel=rel)
    for name in ("theorem", "independent", "feature_floor"):
        expected = getattr(reference, name)
        assert getattr(floor, name) == pytest.approx(expected, rel=rel, abs=rel * reference.total_loss)


def test_prediction_with_one_seed_is_identical(
    bridge: Any, sae: Any, ids: torch.Tensor, reference: FloorPrediction
) -> None:
    floor = predict(bridge, sae, ids, batch_size=8)
    assert floor.stats.digest() == reference.stats.digest()
    assert floor.feature_floor.tolist() == reference.feature_floor.tolist()
    assert floor.sampling_interval.tolist() == reference.sampling_interval.tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_prediction_does_not_depend_on_batch_size(
    bridge: Any, sae: Any, ids: torch.Tensor, reference: FloorPrediction, batch_size: int
) -> None:
    assert_close(predict(bridge, sae, ids, batch_size=batch_size), reference, rel=1e-4)


@pytest.mark.parametrize("tokens_at_once", [1, 7, 300])
def test_statistics_do_not_depend_on_tokens_encoded_at_once(
    bridge: Any, sae: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tokens_at_once: int
) -> None:
    expected = measure(bridge, sae, ids[:8], cost="energy")
    monkeypatch.setattr("tl_distill_floor.measuring.active_codes.CODES_AT_ONCE", 0)
    monkeypatch.setattr("tl_distill_floor.measuring.active_codes.LEAST_AT_ONCE", tokens_at_once)
    stats = measure(bridge, sae, ids[:8], cost="energy")
    assert stats.firing_count.tolist() == expected.firing_count.tolist()
    assert expected.codes is not None
    assert stats.codes is not None
    assert stats.codes.feature.tolist() == expected.codes.feature.tolist()
    assert stats.codes.row_start.tolist() == expected.codes.row_start.tolist()
    for name in ("sum_act", "sum_cost", "sampled_error_sq"):
        assert getattr(stats, name) == pytest.approx(getattr(expected, name), rel=1e-5)


def test_statistics_do_not_depend_on_threads(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    one_thread = measure(bridge, sae, ids[:8])
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two_threads = measure(bridge, sae, ids[:8])
    finally:
        torch.set_num_threads(n_threads)
    assert two_threads.firing_count.tolist() == one_thread.firing_count.tolist()
    assert two_threads.cost == pytest.approx(one_thread.cost, rel=1e-4, abs=1e-6 * one_thread.cost.max())


def test_float64_prediction_is_close_to_fp32(
    teacher_dir: Path, sae: Any, ids: torch.Tensor, reference: FloorPrediction
) -> None:
    model = load_teacher(teacher_dir).model.double()
    assert_close(predict(model, copy.deepcopy(sae).double(), ids, batch_size=8), reference, rel=1e-3)


def test_bf16_prediction_is_close_to_fp32(
    teacher_dir: Path, sae: Any, ids: torch.Tensor, reference: FloorPrediction
) -> None:
    floor = predict(teacher_dir, sae, ids, batch_size=8, dtype="bf16")
    assert_close(floor, reference, rel=0.1, features=3)
