"""Training of SAEs on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.devices import DEVICE, TRAINED, TRAINED_IN_BF16
from tests.helpers.models import HOOK
from tl_distill_floor import load_sae, train_sae
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.sae_training import activations

STEPS = 8


class StoppedError(Exception):
    """Stops a training from its progress callback."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffle fewer tokens together."""
    monkeypatch.setattr(activations, "TOKENS_PER_BLOCK", 2**13)


def unexplained(bridge: Any, directory: Path, ids: Tensor) -> float:
    """Return the share of the activations' squared norm that a saved SAE does not explain, on the CPU."""
    with activation_reader(bridge, [HOOK]) as read:
        (activation,) = read(ids)
    x, sae = activation[:, 1:].flatten(0, 1), load_sae(directory).sae
    with torch.no_grad():
        return float((x - sae.decode(sae.encode(x))).square().sum() / x.square().sum())


def train(teacher_dir: Path, ids: Tensor, out: Path, device: str, **options: Any) -> Path:
    """Train a small SAE, and return its directory."""
    defaults: dict[str, Any] = {"layer": 1, "d_sae": 32, "k": 4, "n_tokens": 4096 * STEPS, "context_size": 32}
    return train_sae(str(teacher_dir), ids, out=out, device=device, batch_size=128, **(defaults | options))


@pytest.mark.parametrize(
    ("architecture", "dtype", "tolerance"),
    [("batchtopk", "fp32", TRAINED), ("topk", "fp32", TRAINED), ("batchtopk", "bf16", TRAINED_IN_BF16)],
)
def test_trained_sae_explains_as_much_as_that_of_the_cpu(
    bridge: Any, teacher_dir: Path, ids: Tensor, tmp_path: Path, architecture: str, dtype: str, tolerance: float
) -> None:
    options = {"architecture": architecture, "dtype": dtype, "lr": 3e-3}
    shares = [
        unexplained(bridge, train(teacher_dir, ids, tmp_path / name, device, **options), ids)
        for name, device in (("device", DEVICE), ("cpu", "cpu"))
    ]
    assert shares[0] == pytest.approx(shares[1], rel=tolerance)


def test_resumes_on_the_device(bridge: Any, teacher_dir: Path, ids: Tensor, tmp_path: Path) -> None:
    def stop(done: int, _total: int, _message: str) -> None:
        if done >= 4096 * 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(teacher_dir, ids, tmp_path / "stopped", DEVICE, checkpoint_seconds=0.0, progress=stop)
    resumed = train(teacher_dir, ids, tmp_path / "stopped", DEVICE, checkpoint_seconds=0.0, resume=True)
    uninterrupted = train(teacher_dir, ids, tmp_path / "uninterrupted", DEVICE)
    shares = [unexplained(bridge, directory, ids) for directory in (resumed, uninterrupted)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)
