"""Tests of hook matching: its target, and its weight during a training."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import WIDTH
from tests.helpers.quick_training import QUICK
from tests.helpers.trainers import arguments
from tl_distill_floor import DistillationTrainer, distill_students
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.matching import ActivationMatcher, KeptReconstruction, Match
from tl_distill_floor.errors import InputError


def test_kept_reconstruction_weights_errors_by_their_cost(sae: Any) -> None:
    """The squared norm of a target is the cost of what the kept features write."""
    n, d = sae.W_dec.shape
    weight = np.linspace(2.0, 4.0, n)
    kept = np.zeros(n, dtype=bool)
    kept[[3, 7]] = True
    reconstruction = KeptReconstruction(sae, kept, weight)
    act = torch.randn(5, d, generator=torch.Generator().manual_seed(0)) * 3
    target = reconstruction(act)
    codes = (sae.encode(act) * torch.from_numpy(kept)).detach().double()
    rows = sae.W_dec.detach().double()
    # xᵀ Σ ρ_i ŵ_i ŵ_iᵀ x of the reconstruction x, where ρ is the weight.
    x = codes @ rows
    along = x @ torch.nn.functional.normalize(rows, dim=1).T
    expected = (along[:, [3, 7]].square() * torch.from_numpy(weight)[[3, 7]]).sum(1)
    torch.testing.assert_close(target.double().square().sum(1), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="keeps no feature"):
        KeptReconstruction(sae, np.zeros(n, dtype=bool), weight)


def test_an_sae_that_concatenates_heads_gives_the_same_target(sae: Any) -> None:
    """SAEs of `hook_z` do so themselves; activations that are matched have been concatenated already."""
    concatenating = copy.deepcopy(sae)
    concatenating.hook_z_reshaping_mode = True
    kept, act = np.arange(len(sae.W_dec)) % 2 == 0, torch.randn(5, WIDTH)
    targets = [KeptReconstruction(one, kept, np.ones(len(kept)))(act) for one in (sae, concatenating)]
    torch.testing.assert_close(*targets)


@pytest.mark.parametrize("hook_name", ["blocks.1.mlp.hook_post", "blocks.1.attn.hook_pattern"])
def test_hook_points_of_other_widths_are_refused(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, hook_name: str
) -> None:
    match = Match(hook_name, 0)
    with pytest.raises(InputError, match=r"compares \[batch, position, 24\]; name a hook point of the residual stream"):
        distill_students(bridge, [StudentSpec(8, match=match)], ids, config=QUICK)
    rows = [{"input_ids": row} for row in ids.tolist()]
    trainer = DistillationTrainer(args=arguments(tmp_path), teacher=bridge, width=8, train_dataset=rows, match=match)
    with pytest.raises(InputError, match=r"the shape \(4, .*compares \[batch, position, 24\]; name a hook point"):
        trainer.train()


def test_matching_weight_falls_linearly_and_must_be_positive() -> None:
    assert [Match("h", 0, weight=2.0, until=0.5).weight_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [2, 1, 0, 0]
    with pytest.raises(InputError, match="finite weight above 0"):
        Match("h", 0, weight=0.0)


@pytest.mark.parametrize(("targets", "variance"), [([[1.0, 0.0], [3.0, 0.0]], 1.0), ([[1.0, -2.0], [3.0, 2.0]], 5.0)])
def test_the_distance_is_a_share_of_the_variance_of_the_targets(targets: list[list[float]], variance: float) -> None:
    """The mean squared distance from the mean, summed over the dimensions: 1 + 0, and 1 + 4."""
    matcher, target = ActivationMatcher(3, 2, seed=0), torch.tensor(targets)
    matcher.set_variance(target)
    squared = (matcher.projection.bias - target).square().sum()  # the projection of a student's zeros
    assert matcher(torch.zeros(2, 3), target).item() == pytest.approx(squared.item() / variance)
