"""Predicted floors on a GPU: bottleneck students, the head floor, and the full prediction."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.devices import DEVICE, STATISTICS, TRAINED, assert_close
from tests.helpers.models import FEATURES
from tl_distill_floor import FeatureStats, head_floor, measure, predict_floor, toy
from tl_distill_floor.measuring.logit_map import LogitMap
from tl_distill_floor.predicting.bottleneck import Bottleneck, loss_gradient
from tl_distill_floor.predicting.head_contexts import best_logits
from tl_distill_floor.predicting.head_floor import _free_memory
from tl_distill_floor.predicting.simulation import train_bottlenecks
from tl_distill_floor.predicting.sparse_batches import SparseBatch, TrainingBatch
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.sources.torch_state import quiet_sparse


@pytest.fixture(scope="module")
def stats(bridge: Any, sae: Any, ids: Tensor) -> FeatureStats:
    """Measure the random SAE on the CPU."""
    return measure(bridge, sae, ids)


def some_codes(n_tokens: int) -> Codes:
    """Return random sparse codes."""
    random = np.random.default_rng(0)
    return Codes.from_dense(np.where(random.random((n_tokens, FEATURES)) < 0.1, random.random((n_tokens, FEATURES)), 0))


def some_bottleneck(width: int, device: str) -> Bottleneck:
    """Return a bottleneck student with random weights."""
    random = torch.Generator().manual_seed(0)
    W, b = 0.3 * torch.randn(FEATURES, width, generator=random), 0.1 * torch.randn(FEATURES, generator=random)
    return Bottleneck(W.to(device), b.to(device))


def test_gradient_of_a_bottleneck_student_is_that_of_the_cpu() -> None:
    batch = SparseBatch.from_codes(some_codes(200))
    gradients = []
    for device in ("cpu", DEVICE):
        there = TrainingBatch.prepare(batch, torch.ones(FEATURES, device=device), 64)
        with quiet_sparse():
            gradients.append(loss_gradient(some_bottleneck(8, device), there))
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-4, atol=1e-6)


def test_loss_of_a_part_of_the_codes_is_that_of_the_cpu() -> None:
    batch = SparseBatch.from_codes(some_codes(50))
    loss, expected = (
        some_bottleneck(8, device)
        .loss(batch.to(torch.device(device)).select_range(10, 30), torch.ones(FEATURES, device=device))
        .cpu()
        for device in (DEVICE, "cpu")
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_simulated_floors_are_those_of_the_cpu(stats: FeatureStats) -> None:
    widths = np.array([8, 16])
    simulated, expected = (
        train_bottlenecks(stats, widths, steps=100, device=device).simulation() for device in (DEVICE, "cpu")
    )
    for field in ("floor", "reached", "on_training_text"):
        assert_close(getattr(simulated, field), getattr(expected, field), TRAINED)


def test_hidden_states_read_codes_of_any_device(stats: FeatureStats) -> None:
    (hidden,) = train_bottlenecks(stats, np.array([8]), steps=10, device=DEVICE).hidden_states()
    codes = torch.rand(5, FEATURES, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden(codes).cpu(), hidden(codes.to(DEVICE)).cpu())


@pytest.mark.parametrize("cap", [None, 3.0])
def test_best_logits_are_those_of_the_cpu(cap: float | None) -> None:
    random = torch.Generator().manual_seed(0)
    decode, bias = torch.randn(60, 6, generator=random), torch.randn(60, generator=random)
    log_p = (2 * torch.randn(40, 60, generator=random)).log_softmax(-1)
    losses = [
        best_logits(
            log_p.to(device), decode.to(device), bias.to(device), torch.zeros(40, 6, device=device), LogitMap(1.0, cap)
        ).kl.cpu()
        for device in (DEVICE, "cpu")
    ]
    torch.testing.assert_close(*losses, rtol=STATISTICS, atol=1e-4)


def test_head_floor_is_that_of_the_cpu(bridge: Any, device_bridge: Any, ids: Tensor) -> None:
    """On a GPU the large products of the training are in bf16."""
    options: dict[str, Any] = {"widths": [4, 8, 16, 24], "steps": 40, "n_heldout_tokens": 200}
    head, expected = (head_floor(model, ids, **options) for model in (device_bridge, bridge))
    assert (head.n_train_tokens, head.n_heldout_tokens) == (expected.n_train_tokens, expected.n_heldout_tokens)
    for field in ("floor", "half_steps", "encoded"):
        assert_close(getattr(head, field), getattr(expected, field), TRAINED)


def test_free_memory_counts_what_torch_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device(DEVICE)
    assert _free_memory(device) > 0
    if device.type == "cuda":
        torch.zeros(2**28, dtype=torch.uint8, device=device)  # freed at once, and kept by torch
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 0))
        assert _free_memory(device) >= 2**28


def test_full_prediction_is_that_of_the_cpu(
    bridge: Any, sae: Any, device_bridge: Any, device_sae: Any, ids: Tensor
) -> None:
    options: dict[str, Any] = {"widths": [8, 16, 24], "steps": 100}
    floor = predict_floor(device_bridge, device_sae, ids, **options)
    expected = predict_floor(bridge, sae, ids, **options)
    assert floor.n_features == expected.n_features
    for field in ("alpha", "capacity", "critical_width", "theorem", "independent", "additive"):
        assert_close(getattr(floor, field), getattr(expected, field), STATISTICS)
    assert floor.simulated is not None
    assert expected.simulated is not None
    assert_close(floor.simulated, expected.simulated, TRAINED)
    assert floor.head is not None
    assert expected.head is not None
    assert_close(floor.head.floor, expected.head.floor, TRAINED)
    assert len(set(floor.lost(16)[:20].tolist()) ^ set(expected.lost(16)[:20].tolist())) <= 2


def test_toy_models_have_the_floors_of_the_cpu() -> None:
    """Their inputs are sampled on the device, so only a part of the losses is the same."""
    options: dict[str, Any] = {"n_seeds": 3, "steps": 500, "n_fresh": 8192}
    results = [toy.train(20, 0.9, [4, 8], device=device, **options) for device in (DEVICE, "cpu")]
    for one, other in zip(*(result.floor.mean(1) for result in results), strict=True):
        assert one == pytest.approx(other, rel=0.15)
