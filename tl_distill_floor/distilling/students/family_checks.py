"""Check that a student's layers are its teacher's, and that their sizes follow its width.

The sizes and the layers come from a configuration whose fields every family names in its own way. A field that was
missed would give a student that is not the one that was asked for.
"""

import re
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.family_models import create_shell
from tl_distill_floor.distilling.students.layers import evenly_spaced_layers, layer_list
from tl_distill_floor.distilling.students.student_config import student_config
from tl_distill_floor.errors import InputError

POSITION_FIELD = r"layer_?(idx|id|index|number)$|^store_|^kv_sharing_mode$|^training$|^_"
"""Names of the attributes that follow from a layer's number, such as whether it stores keys for a last layer."""

_REFUSALS: dict[tuple[object, ...], str] = {}
"""For each configuration of a teacher whose sizes were checked, why it is refused; empty if it is not."""


def check_family(student: nn.Module, teacher: PreTrainedConfig) -> None:
    """Check that the layers of a student are those of its teacher, and that their sizes follow the width.

    Args:
        student: a student of the teacher's family, also one whose weights have no values.
        teacher: the teacher's configuration.

    Raises:
        InputError: the family builds other layers, or keeps the size of its attention or of its neurons.
    """
    config: PreTrainedConfig = student.config  # type: ignore[assignment]
    if config.num_hidden_layers != teacher.num_hidden_layers:
        _check_layers(student, teacher)
    key = (type(teacher), teacher.to_json_string(use_diff=False))
    if config.hidden_size == teacher.hidden_size:
        return
    if key not in _REFUSALS:
        _REFUSALS[key] = _size_that_is_kept(teacher)
    if _REFUSALS[key]:
        raise InputError(_REFUSALS[key])


def _check_layers(student: nn.Module, teacher: PreTrainedConfig) -> None:
    """Raise an InputError unless a student has the depth of its configuration, and layers of its teacher's kinds."""
    config: PreTrainedConfig = student.config  # type: ignore[assignment]
    depth, n_layers = int(config.num_hidden_layers), int(teacher.num_hidden_layers)
    shell = create_shell(student_config(teacher, int(teacher.hidden_size)))
    name, teacher_layers = layer_list(shell)
    layers = dict(student.named_modules()).get(name)
    if not isinstance(layers, nn.ModuleList) or len(layers) != depth:
        raise InputError(
            f"the depth of {_family(teacher)} models does not follow the number of layers in their configuration; leave"
            " out the depth, or use another teacher"
        )
    for i, layer in enumerate(evenly_spaced_layers(n_layers, depth)):
        if _kind(layers[i]) != _kind(teacher_layers[layer]):
            raise InputError(
                f"layer {i} of a {_family(teacher)} student with {depth} layers is not of the kind of its teacher's"
                f" layer {layer}; try another depth, or leave it out"
            )


def _size_that_is_kept(teacher: PreTrainedConfig) -> str:
    """Return the message if a large axis that reads or writes the residual stream is the same at half the width."""
    full = int(teacher.hidden_size)
    half = full // 2
    try:
        narrow = create_shell(student_config(teacher, half))
    except InputError:  # this width has no student
        return ""
    weights = dict(create_shell(student_config(teacher, full)).named_parameters())
    list_name, layers = layer_list(narrow)
    fixed = _fixed_sizes(teacher)
    for name, weight in layers.named_parameters():
        sizes = list(zip(weights[f"{list_name}.{name}"].shape, weight.shape, strict=True))
        kept = [size for size, own in sizes if size == own and 2 * size >= full and size not in fixed]
        if kept and (full, half) in sizes:
            return (
                f"{name} of {_family(teacher)} models keeps its size of {kept[0]} when the width is halved, so their"
                " students would not be as small as planned; use another teacher"
            )
    return ""


def _fixed_sizes(teacher: PreTrainedConfig) -> set[int]:
    """Return the sizes that do not follow the width: of heads and their parts, of experts, and steps of rounding."""
    numbers = {name: value for name, value in vars(teacher).items() if isinstance(value, int) and value > 0}
    n_heads = numbers.get(teacher.attribute_map.get("num_attention_heads", "num_attention_heads"), 1)
    heads = {int(teacher.hidden_size) // n_heads, *(size for name, size in numbers.items() if "head_dim" in name)}
    # One head has joint weights of queries, gates, keys and values; several heads can share one key and value.
    n_joint = 4 if n_heads == 1 else 2
    others = {number for name, number in numbers.items() if "expert" in name or "multiple_of" in name}
    return others | {n * size for n in range(1, n_joint + 1) for size in heads}


def _family(teacher: PreTrainedConfig) -> str:
    return type(teacher).__name__.removesuffix("Config")


def _kind(layer: nn.Module) -> Mapping[str, object]:
    """Return what tells kinds of layers apart: the classes of their modules, their switches, and names of weights."""
    kind: dict[str, object] = {name: None for name, _ in layer.named_parameters()}
    for path, module in layer.named_modules():
        kind[f"{path}."] = type(module)
        for name, value in vars(module).items():
            if re.search(POSITION_FIELD, name):
                continue
            if isinstance(value, bool | str):
                kind[f"{path}.{name}"] = value
            elif isinstance(value, int | float | None):  # such as a sliding window, which some layers do not have
                kind[f"{path}.{name}"] = value is None
    return kind
