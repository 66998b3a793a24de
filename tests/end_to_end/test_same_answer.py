"""One seed, one result: whatever the batches and threads, and nearly so whatever the precision."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor import FloorPrediction, load_teacher, measure, predict_floor

WIDTHS = [6, 12, 18]


def predicted(model: Any, sae: Any, ids: torch.Tensor, cost: str = "fisher", **options: Any) -> FloorPrediction:
    return predict_floor(model, sae, ids, widths=WIDTHS, cost=cost, steps=20, **options)


@pytest.fixture(scope="module")
def first(bridge: Any, sae: Any, ids: torch.Tensor) -> FloorPrediction:
    return predicted(bridge, sae, ids, batch_size=8)


def assert_near(found: FloorPrediction, first: FloorPrediction, rel: float, features: int = 0) -> None:
    assert abs(found.n_features - first.n_features) <= features
    assert 1 - found.alpha == pytest.approx(1 - first.alpha, rel=rel)
    assert found.critical_width == pytest.approx(first.critical_width, rel=rel)
    for floor, other in ((found.theorem, first.theorem), (found.independent, first.independent)):
        assert floor == pytest.approx(other, rel=rel, abs=rel * first.total)
    assert found.expected == pytest.approx(first.expected, rel=rel, abs=rel * first.total)


def test_the_same_again_is_the_same_to_the_last_bit(
    bridge: Any, sae: Any, ids: torch.Tensor, first: FloorPrediction
) -> None:
    again = predicted(bridge, sae, ids, batch_size=8)
    assert again.stats.digest() == first.stats.digest()
    assert again.expected.tolist() == first.expected.tolist()
    assert again.interval.tolist() == first.interval.tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_batches_do_not_matter(
    bridge: Any, sae: Any, ids: torch.Tensor, first: FloorPrediction, batch_size: int
) -> None:
    assert_near(predicted(bridge, sae, ids, batch_size=batch_size), first, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 7, 300])
def test_how_many_tokens_are_encoded_at_a_time_does_not_matter(
    bridge: Any, sae: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = measure(bridge, sae, ids[:8], cost="energy")
    monkeypatch.setattr("tl_distill_floor.measuring.batch_sums.CODES_AT_ONCE", 0)
    monkeypatch.setattr("tl_distill_floor.measuring.batch_sums.LEAST_AT_ONCE", at_once)
    parts = measure(bridge, sae, ids[:8], cost="energy")
    assert parts.firing_count.tolist() == whole.firing_count.tolist()
    assert whole.codes is not None
    assert parts.codes is not None
    assert parts.codes.feature.tolist() == whole.codes.feature.tolist()
    assert parts.codes.row_start.tolist() == whole.codes.row_start.tolist()
    for name in ("sum_act", "sum_cost", "sampled_error_sq"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_threads_do_not_matter(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    one = measure(bridge, sae, ids[:8])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = measure(bridge, sae, ids[:8])
    finally:
        torch.set_num_threads(before)
    assert two.firing_count.tolist() == one.firing_count.tolist()
    assert two.cost == pytest.approx(one.cost, rel=1e-4, abs=1e-6 * one.cost.max())


def test_float64_says_the_same(teacher_dir: Path, sae: Any, ids: torch.Tensor, first: FloorPrediction) -> None:
    exact = load_teacher(teacher_dir).model.double(), copy.deepcopy(sae).double()
    assert_near(predicted(*exact, ids, batch_size=8), first, rel=1e-3)


def test_bf16_says_nearly_the_same(teacher_dir: Path, sae: Any, ids: torch.Tensor, first: FloorPrediction) -> None:
    assert_near(predicted(teacher_dir, sae, ids, batch_size=8, dtype="bf16"), first, rel=0.1, features=3)
