"""Widths at which students of a teacher's family can be built."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedConfig

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.errors import InputError

WIDTH_STEP, WIDE_TEACHER = 8, 128
"""Students of teachers that are at least this wide have widths that are multiples of this step."""


def family_widths(model: HookedModel, divisor: int | None = None) -> list[int]:
    """Return the widths that have a configuration of the teacher's family, ascending.

    Args:
        model: the teacher's model.
        divisor: the widths are multiples of this; if None, of 8 for a wide teacher.
    """
    config, step = hugging_face_config(model), width_step(model, divisor)
    return [width for width in range(step, int(config.hidden_size) + 1, step) if _has_config(config, width)]


def width_step(model: HookedModel, divisor: int | None = None) -> int:
    """Return the number that widths of students are multiples of; see `family_widths`."""
    return divisor or (WIDTH_STEP if teacher_width(model) >= WIDE_TEACHER else 1)


def spaced_widths(widths: Sequence[int], n_widths: int) -> list[int]:
    """Return some widths, evenly spaced in their logarithm, with the first and the last one.

    Args:
        widths: widths to choose from, ascending.
        n_widths: at most so many are returned.

    Example:
        >>> spaced_widths([8, 16, 24, 32, 40, 48, 56, 64], 4)
        [8, 16, 32, 64]
    """
    if len(widths) <= n_widths:
        return list(widths)
    spaced = np.geomspace(widths[0], widths[-1], n_widths).tolist()
    return sorted({min(widths, key=lambda width: abs(width - wanted)) for wanted in spaced})


def _has_config(teacher: PreTrainedConfig, width: int) -> bool:
    """Return whether the teacher's family has a configuration of a width."""
    try:
        student_config(teacher, width)
    except InputError:
        return False
    return True


def teacher_width(model: HookedModel) -> int:
    """Return the width of the teacher, dimensions."""
    return int(hugging_face_config(model).hidden_size)
