"""Measurements on a GPU, compared with the CPU's."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.devices import DEVICE, STATISTICS, assert_close
from tests.helpers.models import FEATURES, HOOK
from tl_distill_floor import measure
from tl_distill_floor.annotations import CostMethod
from tl_distill_floor.measuring.config import LoadConfig
from tl_distill_floor.measuring.costs import row_dot_products
from tl_distill_floor.measuring.direct_logits import find_promoted_tokens
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.removal import measure_restored_loss, measure_tail_loss
from tl_distill_floor.measuring.sampling import sample_outcomes
from tl_distill_floor.predicting.config import PredictConfig
from tl_distill_floor.predicting.predict import predict_floors
from tl_distill_floor.results.contexts import FeatureContexts


@pytest.mark.parametrize(("cost", "n_sequences"), [("energy", 20), ("fisher", 20), ("ablation", 4)])
def test_statistics_are_those_of_the_cpu(
    bridge: Any, sae: Any, device_bridge: Any, device_sae: Any, ids: Tensor, cost: CostMethod, n_sequences: int
) -> None:
    options: dict[str, Any] = {"cost": cost, "n_samples": 2, "batch_size": 8}
    stats = measure(device_bridge, device_sae, ids[:n_sequences], **options)
    expected = measure(bridge, sae, ids[:n_sequences], **options)
    # The sign of a code near 0 may differ.
    assert np.abs(stats.firing_count - expected.firing_count).sum() <= 2
    assert (stats.n_tokens, stats.n_masked, stats.alive().sum()) == (
        expected.n_tokens, expected.n_masked, expected.alive().sum()
    )  # fmt: skip
    assert_close(stats.firing_rate.mean(), expected.firing_rate.mean(), 1e-5)
    assert_close(stats.sum_act, expected.sum_act, 1e-4)
    assert_close(stats.sum_act_sq, expected.sum_act_sq, 1e-4)
    assert_close(stats.decoder_norm, expected.decoder_norm, 1e-6)
    assert_close(stats.fvu, expected.fvu, 1e-4)
    assert_close(stats.cost, expected.cost, STATISTICS)
    assert stats.codes is not None
    assert expected.codes is not None
    assert_close(stats.codes.value.sum(), expected.codes.value.sum(), 1e-4)
    assert_same_contexts(stats.contexts, expected.contexts)


def assert_same_contexts(contexts: FeatureContexts | None, expected: FeatureContexts | None) -> None:
    """Assert that nearly all of the strongest contexts are the same ones; two of them may be equally strong."""
    assert contexts is not None
    assert expected is not None
    assert_close(contexts.activation, expected.activation, 1e-4)
    assert (contexts.sequence == expected.sequence).mean() > 0.99


def test_measures_several_hook_points_in_one_pass(device_bridge: Any, device_sae: Any, sae: Any, ids: Tensor) -> None:
    """An SAE may be on another device than the teacher."""
    on_device, on_cpu = predict_floors(
        device_bridge, [device_sae, sae], ids[:12], predicting=PredictConfig(steps=0, head=False)
    )
    assert_close(on_device.stats.cost, on_cpu.stats.cost)
    assert_close(on_device.theorem, on_cpu.theorem)


def test_samples_the_outcomes_of_the_cpu() -> None:
    # Multiples of 2^-10: every sum is exact, in any order.
    random = torch.Generator().manual_seed(0)
    p = torch.randint(0, 3, (64, 700), generator=random).float()
    p /= 2.0**10
    uniform = torch.rand(64, generator=random)
    assert torch.equal(sample_outcomes(p.to(DEVICE), uniform.to(DEVICE)).cpu(), sample_outcomes(p, uniform))


@pytest.mark.parametrize("n_entries", [0, 40])
def test_row_dot_products_match_dense_ones(n_entries: int) -> None:
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 8, generator=random), torch.randn(20, 8, generator=random)
    chosen = torch.randperm(100, generator=random)[:n_entries].sort().values
    token, feature = chosen // 20, chosen % 20
    products = row_dot_products(*(tensor.to(DEVICE) for tensor in (left, right, token, feature)))
    torch.testing.assert_close(products.cpu(), (left.double() @ right.double().T)[token, feature], rtol=1e-5, atol=1e-5)


def test_tail_loss_is_that_of_the_cpu(bridge: Any, sae: Any, device_bridge: Any, device_sae: Any, ids: Tensor) -> None:
    order, ranks, sequences = np.random.default_rng(0).permutation(FEATURES), np.array([0, 10, 60]), np.array([1, 4, 5])
    tails = [
        measure_tail_loss(
            prepare_job(*pair, ids, LoadConfig(batch_size=2)), order, ranks, np.linspace(2, 0, 3), sequences
        )
        for pair in ((device_bridge, [device_sae]), (bridge, [sae]))
    ]
    assert_close(tails[0].loss, tails[1].loss)
    assert tails[0].n_tokens.tolist() == tails[1].n_tokens.tolist()


def test_restored_loss_is_that_of_the_cpu(
    bridge: Any, sae: Any, device_bridge: Any, device_sae: Any, ids: Tensor
) -> None:
    students = [lambda codes: 0.5 * codes, torch.zeros_like]
    (loss, _), (expected, _) = (
        measure_restored_loss(prepare_job(*pair, ids, LoadConfig(batch_size=2)), students, np.array([0, 3, 7]))
        for pair in ((device_bridge, [device_sae]), (bridge, [sae]))
    )
    assert_close(loss, expected)


def test_promoted_tokens_are_those_of_the_cpu(bridge: Any, sae: Any, device_bridge: Any, device_sae: Any) -> None:
    promoted, expected = (
        find_promoted_tokens(model, each.W_dec) for model, each in ((device_bridge, device_sae), (bridge, sae))
    )
    assert (promoted == expected).mean() > 0.99


def test_measures_in_bf16(teacher_dir: Any, sae_dir: Any, ids: Tensor) -> None:
    options: dict[str, Any] = {"dtype": "bf16", "hook_name": HOOK, "cost": "fisher"}
    costs = [
        measure(str(teacher_dir), str(sae_dir), ids[:20], device=device, **options).cost.sum()
        for device in (DEVICE, "cpu")
    ]
    assert costs[0] == pytest.approx(costs[1], rel=0.1)
