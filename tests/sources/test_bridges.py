"""Shells of teachers: the weights' names, shapes and dtypes, and the buffers, without the weights' values."""

from pathlib import Path

import pytest
import torch

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher, load_teacher_shell


def weights_of(teacher: Teacher) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of each weight of the wrapped model."""
    return {name: (weight.shape, weight.dtype) for name, weight in teacher.model.named_parameters()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_shell_has_the_weights_and_buffers_of_the_teacher(teacher_dir: Path, dtype: str) -> None:
    shell, full = load_teacher_shell(str(teacher_dir), dtype=dtype), load_teacher(str(teacher_dir), dtype=dtype)
    assert weights_of(shell) == weights_of(full)
    assert all(not weight.any() for weight in shell.model.parameters())
    assert (shell.name, shell.loading, shell.has_public_name) == (full.name, full.loading, full.has_public_name)
    buffers = dict(full.model.original_model.named_buffers())
    for name, buffer in shell.model.original_model.named_buffers():
        torch.testing.assert_close(buffer, buffers.pop(name))
    assert not buffers


def test_rejects_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json, so it is not a Hugging Face model"):
        load_teacher_shell(str(tmp_path))
