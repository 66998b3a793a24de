"""Training of students on a GPU: losses of the CPU, hook matching, checkpoints and saved students."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.helpers.devices import TRAINED, TRAINED_IN_BF16
from tests.helpers.models import HOOK
from tl_distill_floor import DistillConfig, StudentResult, StudentSpec, distill_students
from tl_distill_floor.annotations import Dtype, OptimizerName
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match

QUICK = DistillConfig(n_tokens=32 * 8 * 8, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)
"""8 steps of 8 sequences of 32 tokens."""


class StoppedError(Exception):
    """Stops a training from its progress callback."""


def losses_of(teacher: Any, ids: Tensor, specs: list[StudentSpec], config: DistillConfig, **options: Any) -> np.ndarray:
    """Train students, and return their learning curves [student, point]."""
    AcceleratorState._reset_state(reset_partial_state=True)
    students: list[StudentResult] = distill_students(teacher, specs, ids, config=config, **options)
    return np.array([student.losses for student in students])


@pytest.mark.parametrize(
    ("optimizer", "dtype", "tolerance"),
    [
        ("muon", "fp32", TRAINED),
        ("adamw", "fp32", TRAINED),
        ("muon", "bf16", TRAINED_IN_BF16),
        ("adamw", "bf16", TRAINED_IN_BF16),
    ],
)
def test_learning_curves_are_those_of_the_cpu(
    bridge: Any, device_bridge: Any, ids: Tensor, optimizer: OptimizerName, dtype: Dtype, tolerance: float
) -> None:
    config = dataclasses.replace(QUICK, optimizer=optimizer, dtype=dtype, accumulate=2)
    specs = [StudentSpec(8), StudentSpec(16, match=Match(HOOK, 1), start="teacher-slice")]
    losses, expected = (losses_of(teacher, ids, specs, config) for teacher in (device_bridge, bridge))
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert (losses[:, -1] < losses[:, 0]).all()


def test_other_objectives_have_the_losses_of_the_cpu(bridge: Any, device_bridge: Any, ids: Tensor) -> None:
    config = dataclasses.replace(QUICK, objective=Objective("reverse-kl", temperature=2.0, cross_entropy=0.3))
    losses, expected = (losses_of(teacher, ids, [StudentSpec(8)], config) for teacher in (device_bridge, bridge))
    np.testing.assert_allclose(losses, expected, rtol=TRAINED)


@pytest.mark.parametrize("sae_is_on_device", [True, False])
def test_matches_the_kept_part_of_the_activation(
    bridge: Any, device_bridge: Any, sae: Any, device_sae: Any, ids: Tensor, sae_is_on_device: bool
) -> None:
    kept = np.arange(sae.cfg.d_sae) % 2 == 0

    def losses(teacher: Any, read_by: Any) -> np.ndarray:
        target = KeptReconstruction(read_by, kept, np.ones(len(kept)))
        return losses_of(teacher, ids, [StudentSpec(16, match=Match(HOOK, 1), target=target)], QUICK)

    on_device = losses(device_bridge, device_sae if sae_is_on_device else sae)
    np.testing.assert_allclose(on_device, losses(bridge, sae), rtol=TRAINED)


def test_resumes_on_the_device_and_saves_what_transformers_reads(
    device_bridge: Any, ids: Tensor, tmp_path: Path
) -> None:
    def stop(done: int, _total: int, _message: str) -> None:
        if done >= 3 * 8 * 32:
            raise StoppedError

    from transformers import AutoModelForCausalLM

    specs = [StudentSpec(8), StudentSpec(16, match=Match(HOOK, 1))]
    options: dict[str, Any] = {"out": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(StoppedError):
        losses_of(device_bridge, ids, specs, QUICK, progress=stop, **options)
    resumed = losses_of(device_bridge, ids, specs, QUICK, resume=True, **options)
    np.testing.assert_allclose(resumed, losses_of(device_bridge, ids, specs, QUICK), rtol=1e-3)
    # `distill_students` has compared the loss of the saved student with that in training.
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "students" / "width16")
    assert all(weight.dtype == torch.float32 for weight in student.parameters())
