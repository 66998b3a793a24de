"""Numbers of heads of students, and the settings of rotary embeddings that follow the head size."""

import math
import re
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.student_depth import layer_overrides
from tl_distill_floor.errors import InputError

HEADS_FIELD = r"(^|_)(n|num)_(?!local|global).*heads?(_per_layer)?$|^n_head$|(^|_)attention_heads$"
"""Names of numbers of heads."""
KEY_VALUE_HEADS_FIELD = r"(key_value|kv)_(.*_)?heads(_per_layer)?$"
"""Names of numbers of key-value heads."""
OTHER_ATTENTION_FIELD = r"attention_heads(_per_layer)?$"
"""Names of numbers of query heads of some layers, such as those of a decoder."""


def set_heads(config: PreTrainedConfig, teacher: PreTrainedConfig, width: int) -> None:
    """Set the numbers of query heads, of key-value heads, and of the heads of recurrent layers.

    Args:
        config: the student's configuration, whose width is set already.
        teacher: the teacher's configuration.
        width: width of the student.

    Raises:
        InputError: no number of heads fits the width.
    """
    scale = width / int(teacher.hidden_size)
    fields = {name: n for name, n in vars(teacher).items() if re.search(HEADS_FIELD, name) and _is_number(n)}
    query_field = teacher.attribute_map.get("num_attention_heads", "num_attention_heads")
    n_heads = fields.pop(query_field, None)
    pattern = f"{KEY_VALUE_HEADS_FIELD}|{OTHER_ATTENTION_FIELD}"
    attention = {name: fields.pop(name) for name in list(fields) if re.search(pattern, name)}
    _set_recurrent_heads(config, {name: n for name, n in fields.items() if isinstance(n, int)}, scale)
    if not isinstance(n_heads, int) or not n_heads:
        return
    n_kv_heads = [n for name, n in attention.items() if isinstance(n, int) and re.search(KEY_VALUE_HEADS_FIELD, name)]
    n_teacher_kv = next(iter(n_kv_heads), None) or n_heads
    heads = _AttentionHeads(query_field, n_heads, n_teacher_kv, attention, layer_overrides(config))
    if not _has_own_head_size(teacher):
        head_size = _largest_head_size(teacher, width, n_heads, heads.group)
        _set_head_size(config, int(teacher.hidden_size) // n_heads, head_size)
        heads.set(config, width // head_size)
        return
    candidates = _numbers_of_heads(n_heads * scale, n_heads, heads.group)
    for n_student_heads in candidates:
        heads.set(config, n_student_heads)
        if _is_valid(config):
            return
    heads.set(config, candidates[0])
    if all(width % n for n in candidates):
        raise InputError(
            f"no number of heads near {candidates[0]} divides a student's width of {width}, as its family requires;"
            f" try width {_nearest_divisible_width(teacher, width, n_heads, heads.group)}"
        )


class _AttentionHeads(NamedTuple):
    """The teacher's numbers of attention heads."""

    query_field: str
    """Name of the number of query heads."""
    n_heads: int
    """Number of query heads."""
    n_kv_heads: int
    """Number of key-value heads."""
    others: dict[str, int | list[int]]
    """Numbers of key-value heads, and of heads of some layers, by their names."""
    overrides: dict[object, dict[str, Any]]
    """Settings that differ in some layers, by the number of the layer."""

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return max(1, self.n_heads // self.n_kv_heads)

    def set(self, config: PreTrainedConfig, n_student_heads: int) -> None:
        """Set the number of query heads of a student, and scale the others by it."""
        setattr(config, self.query_field, n_student_heads)
        for name, number in self.others.items():
            setattr(config, name, self._scaled(name, number, n_student_heads))
        if self.overrides:
            config.per_layer_config = {
                layer: {name: self._scaled(name, value, n_student_heads) for name, value in settings.items()}
                for layer, settings in self.overrides.items()
            }

    def _scaled(self, name: str, number: Any, n_student_heads: int) -> Any:
        """Return the student's value of a field: scaled if it is a number of attention heads, else as it is."""
        n_student_kv = max(1, n_student_heads // self.group)
        if re.search(KEY_VALUE_HEADS_FIELD, name):
            return _scaled_number(number, n_student_kv / self.n_kv_heads, 1)
        if name == self.query_field or re.search(OTHER_ATTENTION_FIELD, name):
            shares_kv_heads = not np.any(np.mod(number, self.n_kv_heads))
            return _scaled_number(number, n_student_heads / self.n_heads, n_student_kv if shares_kv_heads else 1)
        return number


def _is_number(value: object) -> bool:
    """Return whether a field has a number of heads, or one for each layer."""
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(n, int) for n in value))


def _scaled_number(number: int | list[int], scale: float, multiple: int) -> int | list[int]:
    """Return a number of heads, or one for each layer, after scaling to the nearest multiple of a number."""
    if isinstance(number, list):
        return [multiple * max(1, round(n * scale / multiple)) for n in number]
    return multiple * max(1, round(number * scale / multiple))


def _set_recurrent_heads(config: PreTrainedConfig, numbers: dict[str, int], scale: float) -> None:
    """Set the numbers of heads of linear attention and state spaces: the larger is a multiple of the smaller one."""
    smaller = min(numbers.values(), default=1)
    n_smaller = max(1, round(smaller * scale))
    for name, number in numbers.items():
        n_scaled = number // smaller * n_smaller if number % smaller == 0 else max(1, round(number * scale))
        setattr(config, name, n_scaled)


def _has_own_head_size(config: PreTrainedConfig) -> bool:
    """Return whether the head size does not depend on the width."""
    names = ("head_dim", "v_head_dim", "d_kv")
    return any(isinstance(vars(config).get(name), int) for name in names)


def _numbers_of_heads(scaled: float, n_heads: int, group: int) -> list[int]:
    """Return the numbers of query heads that a student can have, the nearest one to its share of the teacher's first.

    They are multiples of a group, or belong to one group. They are between half and twice the share.

    Args:
        scaled: the teacher's number, times the ratio of the widths.
        n_heads: number of query heads of the teacher.
        group: query heads per key-value head.
    """
    scaled = max(1.0, scaled)
    numbers = [*range(1, group), *range(group, n_heads + 1, group)]
    near = [n for n in numbers if scaled / 2 <= n < 2 * scaled]
    return sorted(near or numbers, key=lambda n: (abs(n - scaled), -n))


def _nearest_divisible_width(teacher: PreTrainedConfig, width: int, n_heads: int, group: int) -> int:
    """Return the width nearest to `width` that is a multiple of a number of heads of its student.

    Of a multiple of 8, or of another power of 2 below, the nearest such multiple.
    """
    teacher_width, step = int(teacher.hidden_size), math.gcd(width, 8)

    def is_divisible(other: int) -> bool:
        return any(other % n == 0 for n in _numbers_of_heads(n_heads * other / teacher_width, n_heads, group))

    return min(filter(is_divisible, range(step, teacher_width + 1, step)), key=lambda other: abs(other - width))


def _is_valid(config: PreTrainedConfig) -> bool:
    """Return whether the family accepts a configuration, as it must when the student is saved."""
    try:
        validate(config)
    except Exception:  # the code of a family can raise anything
        return False
    return True


def validate(config: PreTrainedConfig) -> None:
    """Check a configuration as its family does when it is saved; versions of transformers without a check accept it."""
    check = getattr(config, "validate", None)
    if check is not None:
        check()


def _set_head_size(config: PreTrainedConfig, teacher_size: int, size: int) -> None:
    """Set what follows the head size of a student."""
    if getattr(config, "rotary_dim", None):
        config.rotary_dim = min(int(config.rotary_dim), size - size % 2)
    for rope in _rope_parameters(config):
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            if factors:  # one factor per pair of rotated dimensions, at evenly spaced frequencies
                n_factors = max(1, len(factors) * size // teacher_size)
                rope[name] = [factors[i * len(factors) // n_factors] for i in range(n_factors)]


def _largest_head_size(teacher: PreTrainedConfig, width: int, n_heads: int, group: int) -> int:
    """Return the largest head size up to the teacher's that divides the width and that rotary embeddings accept.

    Args:
        teacher: the teacher's configuration.
        width: width of the student.
        n_heads: number of query heads of the teacher; the student has at most as many.
        group: query heads per key-value head.

    Raises:
        InputError: no size from half the teacher's head size on fits.
    """
    head_size = int(teacher.hidden_size) // n_heads
    divisors = [n for n in range(1, width + 1) if width % n == 0 and _fits_rotary_embedding(teacher, n)]
    similar = [n for n in divisors if head_size / 2 <= n <= head_size or n == width < head_size]
    numbers = {n: width // n for n in similar if width // n <= n_heads}
    fitting = [n for n, number in numbers.items() if number <= group or number % group == 0]
    if not fitting:
        raise InputError(
            f"no head size near the teacher's {head_size} fits a student of width {width};"
            f" try width {head_size * group * max(1, round(width / head_size / group))}"
        )
    return max(fitting)


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the settings of rotary embeddings, of which a configuration can have one set per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _fits_rotary_embedding(teacher: PreTrainedConfig, head_size: int) -> bool:
    """Return whether the rotated part of a head has an even number of dimensions."""
    if getattr(teacher, "rope_parameters", None) is None:
        return True
    shares = [float(rope.get("partial_rotary_factor") or 1.0) for rope in _rope_parameters(teacher)]
    rotated = [int(head_size * share) for share in shares]
    return all(n > 0 and n % 2 == 0 for n in rotated)
