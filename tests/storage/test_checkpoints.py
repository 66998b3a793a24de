"""Checkpoints of trainings: they load unchanged, and a changed bit or another training is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.checkpoints import load_checkpoint, save_checkpoint

IDENTITY = {"lr": 0.1, "widths": (8, 16)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Save the state of an optimizer at step 7."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "moment": torch.arange(4.0)}}, "groups": [{"lr": 0.1}, None]}
    return save_checkpoint(tmp_path / "training.safetensors", "student", {"optimizer": optimizer}, IDENTITY, step=7)


def test_states_load_unchanged(checkpoint: Path) -> None:
    states: dict[str, Any]
    states, step = load_checkpoint(checkpoint, "student", IDENTITY)
    assert step == 7
    state = states["optimizer"]["state"][0]
    assert (state["step"].item(), state["moment"].tolist()) == (3.0, [0.0, 1.0, 2.0, 3.0])
    assert states["optimizer"]["groups"] == [{"lr": 0.1}, None]


def test_a_changed_bit_is_found(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"not a complete checkpoint \(its content was changed\)"):
        load_checkpoint(checkpoint, "student", IDENTITY)


def test_another_training_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="of a training with another lr, seed; use the options"):
        load_checkpoint(checkpoint, "student", IDENTITY | {"lr": 0.2, "seed": 1})
    with pytest.raises(InputError, match="student"):
        load_checkpoint(checkpoint, "sae", IDENTITY)
