"""Initial weights of students that come from the teacher: slices, or projections onto singular directions."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tl_distill_floor.annotations import HookedModel, StudentStart
from tl_distill_floor.distilling.students.axis_maps import WeightAxes, weight_axes
from tl_distill_floor.distilling.students.family_models import (
    create_shell,
    full_logits,
    logit_difference,
    refuse_failures,
    sample_ids,
    short_reason,
)
from tl_distill_floor.distilling.students.layers import evenly_spaced_layers, layer_list
from tl_distill_floor.distilling.students.narrowing import check_rotation, leading_directions, narrow
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import eval_mode

BRIDGE_SUFFIX = "._original_component"
"""Part that TransformerBridge adds to the names of the weights that it wraps."""
TEXT_MODEL = "language_model."
"""Part of the names of weights of a model of text and images, which its text model alone does not have."""


@torch.no_grad()
def inherit_weights(teacher: HookedModel, student: nn.Module, start: Literal["teacher-slice", "svd"]) -> None:
    """Set a student's weights from its teacher's.

    Args:
        teacher: a TransformerBridge that `check_teacher` accepts.
        student: a student of the same family, which is changed.
        start: see `build_student`.

    Raises:
        InputError: the teacher lacks a weight, or it is not known how a weight follows the width.
    """
    teacher_config = hugging_face_config(teacher)
    config: PreTrainedConfig = student.config  # type: ignore[assignment]
    state = _plain_state(teacher)
    sources = _teacher_names(student, teacher_config)
    _check_names(sources.values(), state)
    weights = {name: state[source] for name, source in sources.items()}
    if config.num_hidden_layers != teacher_config.num_hidden_layers:
        _check_depth_of_weights(weights, teacher_config, int(config.num_hidden_layers))
    axes: dict[str, WeightAxes] = {}
    directions = None
    # At full width all directions are kept, so that there is nothing to project.
    if config.hidden_size != teacher_config.hidden_size:
        axes = weight_axes(config, teacher_config)
        if start == "svd":
            check_rotation(student, axes)
            directions = leading_directions(student, weights, axes, int(config.hidden_size))
    for name, weight in student.state_dict().items():
        if axes and not _has_positions(weights[name], axes[name]):
            raise InputError(
                f"the student's {name} has more rows or columns than the teacher's; try another width, or use --start"
                " random"
            )
        narrowed = narrow(weights[name].float(), axes[name], directions) if axes else weights[name]
        if weight.shape != narrowed.shape:
            raise InputError(
                f"the teacher's {name} narrows to {tuple(narrowed.shape)}, and the student's has"
                f" {tuple(weight.shape)}; use --start random"
            )
        weight.copy_(narrowed)
    student.tie_weights()  # type: ignore[operator]


def _teacher_names(student: nn.Module, teacher: PreTrainedConfig) -> dict[str, str]:
    """Return the names of the teacher's weights that a student's weights come from, by the names of the latter."""
    depth = int(student.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
    layers = evenly_spaced_layers(int(teacher.num_hidden_layers), depth)
    list_name, _ = layer_list(student)
    number = re.compile(rf"(?<=^{re.escape(list_name)}\.)\d+")
    return {name: number.sub(lambda match: str(layers[int(match[0])]), name) for name in student.state_dict()}


def _check_depth_of_weights(weights: Mapping[str, Tensor], teacher: PreTrainedConfig, depth: int) -> None:
    """Raise an InputError if a weight has rows for all of the teacher's layers, such as one embedding for each."""
    shapes = create_shell(student_config(teacher, int(teacher.hidden_size), depth)).state_dict()
    for name, weight in weights.items():
        if weight.shape != shapes[name].shape:
            raise InputError(
                f"the teacher's {name} depends on its number of layers, so a student with fewer layers cannot start"
                " from it; use --start random, or leave out the depth"
            )


def _has_positions(weight: Tensor, axes: WeightAxes) -> bool:
    """Return whether a teacher's weight has all positions that a student keeps."""
    return all(
        not len(positions) or int(positions.max()) < size
        for positions, size in zip(axes.positions, weight.shape, strict=True)
    )


def _plain_state(teacher: HookedModel) -> dict[str, Tensor]:
    """Return the teacher's weights by the names of a plain text model."""
    state = teacher.original_model.state_dict()  # type: ignore[attr-defined]
    return {name.replace(BRIDGE_SUFFIX, "").replace(TEXT_MODEL, ""): weight for name, weight in state.items()}


def _check_names(names: Iterable[str], state: Mapping[str, Tensor]) -> None:
    """Raise an InputError if the teacher lacks a weight."""
    missing = next((name for name in names if name not in state), None)
    if missing is not None:
        raise InputError(f"the teacher has no weight {missing}, so no student starts from it; use --start random")


@torch.no_grad()
def check_teacher(teacher: HookedModel, start: StudentStart) -> None:
    """Check that a plain model with the teacher's weights, without a copy of them, has the teacher's logits.

    Otherwise students would be compared with another model than `transformers` loads. A TransformerBridge whose weights
    were processed, and a HookedTransformer, have no such model; their students start at random.

    Args:
        teacher: the teacher's model.
        start: see `build_student`.

    Raises:
        InputError: the logits differ or are NaN, or the teacher's forward pass fails.
    """
    is_plain = hasattr(teacher, "original_model") and not getattr(teacher, "compatibility_mode", False)
    if not is_plain and start == "random":
        return
    if not hasattr(teacher, "original_model"):
        raise InputError(
            f"a student cannot start from the weights of a {type(teacher).__name__}, whose names differ; use --start"
            " random, or load the teacher as a TransformerBridge"
        )
    teacher_config = hugging_face_config(teacher)
    config = student_config(teacher_config, int(teacher_config.hidden_size))
    state, shell = _plain_state(teacher), create_shell(config)
    names = shell.state_dict()
    if start == "random" and not names.keys() <= state.keys():
        return
    _check_names(names, state)
    with refuse_failures(config, "cannot be compared with its teacher"):
        shell.load_state_dict({name: state[name] for name in names}, assign=True)
        shell.tie_weights()  # type: ignore[operator]
        device, dtype = next((weight.device, weight.dtype) for weight in shell.parameters())
        ids = sample_ids(config).to(device)
        expected = _teacher_logits(teacher, ids)
        logits = full_logits(shell.to(device), ids).float()
    difference = logit_difference(logits, expected, dtype)
    if difference is not None:
        raise InputError(
            f"the teacher's weights in a plain {type(shell).__name__} give logits that differ from the"
            f" {type(teacher).__name__}'s by up to {difference:.3g}, so losses of its students would be wrong; use"
            " another teacher"
        )


def _teacher_logits(teacher: HookedModel, ids: Tensor) -> Tensor:
    try:
        with eval_mode(teacher):
            logits: Tensor = teacher(ids)  # type: ignore[operator]
    except Exception as error:  # the code of a family can raise anything
        raise InputError(
            f"the forward pass of the teacher fails ({short_reason(error)}), so no student can be distilled from it;"
            " use another teacher"
        ) from error
    if logits.isnan().any():
        raise InputError(
            "the teacher gives logits of NaN, so no student can be distilled from it; load it in fp32, or use another"
            " teacher"
        )
    return logits.float()
