"""A training of students that takes a second, and a student in it that diverges."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor.distilling.training import training_step
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.measuring.teacher_backbone import TeacherBackbone

QUICK = DistillConfig(n_tokens=32 * 8 * 6, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)
"""6 steps of 8 sequences of 32 tokens."""


def quick_config(**fields: Any) -> DistillConfig:
    """Return `QUICK` with other fields."""
    return dataclasses.replace(QUICK, **fields)


def saved_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a saved student."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def diverge_first_student(monkeypatch: pytest.MonkeyPatch, *, from_step: int, n_active: int | None = None) -> list[int]:
    """Make the first student's loss NaN.

    Args:
        monkeypatch: restores the losses after the test.
        from_step: first step with a NaN.
        n_active: only with this number of active students; with any number if None.

    Returns:
        A list that receives the number of active students at every step.
    """
    summed_losses, seen = training_step.summed_losses, []

    def with_nan(sweep: Sweep, teacher: TeacherBackbone, rows: torch.Tensor) -> list[torch.Tensor]:
        losses = summed_losses(sweep, teacher, rows)
        seen.append(len(losses))
        is_nan = sweep.step >= from_step and n_active in (None, len(losses))
        return [losses[0] * (float("nan") if is_nan else 1.0), *losses[1:]]

    monkeypatch.setattr(training_step, "summed_losses", with_nan)
    return seen
