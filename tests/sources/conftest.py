"""Fixtures of the tests of SAEs: an empty Hub cache, and activations."""

from pathlib import Path

import pytest
import torch

from tests.helpers.hub_cache import use_cache
from tests.helpers.saes import D_IN


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, without a network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    use_cache(monkeypatch, cache)
    return cache


@pytest.fixture
def x() -> torch.Tensor:
    """Random activations [5, D_IN]."""
    return torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
