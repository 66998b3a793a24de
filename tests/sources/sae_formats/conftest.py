"""Fixtures of the tests of SAE files: weights and activations."""

import pytest
import torch

from tests.helpers.saes import D_IN, random_state


@pytest.fixture
def x() -> torch.Tensor:
    """Random activations [40, D_IN]."""
    return torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1)) + 0.3


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Random weights: W_enc [D_IN, D_SAE], W_dec [D_SAE, D_IN], b_enc and b_dec."""
    return random_state()
