"""Tests of hook matching: its target, and its weight during a training."""

from typing import Any

import numpy as np
import pytest
import torch

from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match
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


def test_matching_weight_falls_linearly_and_must_be_positive() -> None:
    assert [Match("h", 0, weight=2.0, until=0.5).weight_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [2, 1, 0, 0]
    with pytest.raises(InputError, match="weight above 0"):
        Match("h", 0, weight=0.0)
