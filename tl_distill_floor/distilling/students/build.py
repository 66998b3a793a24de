"""`build_student`: a narrower model of the teacher's family, as a plain `transformers` model."""

import torch
from torch import nn
from transformers import PreTrainedConfig

from tl_distill_floor.annotations import HookedModel, StudentStart, TeacherLike
from tl_distill_floor.distilling.students.family_checks import check_family
from tl_distill_floor.distilling.students.family_models import (
    create_model,
    create_shell,
    create_zero_model,
    full_logits,
    refuse_failures,
    sample_ids,
)
from tl_distill_floor.distilling.students.inherited_weights import check_teacher, inherit_weights
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.errors import InputError, as_integer, check_choice
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state


@neutral_torch_state()
def build_student(
    teacher: TeacherLike, width: int, *, depth: int | None = None, start: StudentStart = "svd", seed: int = 0
) -> nn.Module:
    """Build an untrained student: the teacher's class and vocabulary, with a narrower residual stream.

    The numbers of heads and neurons are scaled with the width. The head size and the number of query heads per
    key-value head stay. If the family derives the head size from the width, the student has the largest head size up
    to the teacher's that divides the width.

    Args:
        teacher: see `load_teacher`; a TransformerBridge on a Hugging Face causal language model, or a HookedTransformer
            that was loaded by the name of one.
        width: width of the student's residual stream (d_model), dimensions.
        depth: number of layers; the teacher's if None. With fewer layers, evenly spaced layers of the teacher are used.
        start: initial weights. "random": the family's own initialization. "teacher-slice": the leading rows and columns
            of the teacher's weights. "svd": the teacher's weights projected onto the `width` leading singular
            directions of its embeddings, with the leading heads and neurons.
        seed: seed of random initial weights.

    Returns:
        A `transformers` model in fp32 and in evaluation mode.

    Raises:
        InputError: the teacher has no Hugging Face configuration, or has none of the weights that `start` needs, or the
            width or depth is out of range or fits no number of heads, or the layers of the family do not follow them.

    Example:
        >>> student = build_student("tiny-prose", width=64)
        >>> student.config.hidden_size
        64
    """
    check_choice("start", start, StudentStart)
    seed = as_integer("seed", seed)
    model = load_teacher(teacher).model
    teacher_config = hugging_face_config(model)
    config = student_config(teacher_config, width, depth)
    check_teacher(model, start)
    with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
        torch.default_generator.manual_seed(seed)
        student = create_model(config)
    check_family(student, teacher_config)
    if start != "random":
        inherit_weights(model, student, start)
    _check_forward_pass(student, config)
    return student


def count_parameters(teacher: HookedModel, width: int, depth: int | None = None) -> int:
    """Count the parameters of a student without allocating them.

    Args:
        teacher: the teacher's model.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Raises:
        InputError: see `build_student`.
    """
    model = create_student_shell(hugging_face_config(teacher), width, depth)
    return int(sum(weight.numel() for weight in model.parameters()))


def create_student_shell(teacher: PreTrainedConfig, width: int, depth: int | None = None) -> nn.Module:
    """Return a student whose weights have shapes but no values.

    Args:
        teacher: the teacher's configuration.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Raises:
        InputError: see `build_student`.
    """
    shell = create_shell(student_config(teacher, width, depth))
    check_family(shell, teacher)
    return shell


def check_student_runs(teacher: PreTrainedConfig, width: int, depth: int | None = None) -> None:
    """Check that a student can be built and run, without memory for its weights.

    Args:
        teacher: the teacher's configuration.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Raises:
        InputError: the student cannot be built or run.
    """
    config = student_config(teacher, width, depth)
    student = create_zero_model(config)
    check_family(student, teacher)
    _check_forward_pass(student, config)


@torch.no_grad()
def _check_forward_pass(student: nn.Module, config: PreTrainedConfig) -> None:
    """Run a student once, so that a configuration that its family cannot run is refused before it is trained.

    Its weights are in fp32, as in training and in its files. Training in bf16 is autocast, under which the kernels of
    experts still compute in the dtype of the weights.
    """
    ids = sample_ids(config)
    with refuse_failures(config, "cannot be run"):
        logits = full_logits(student, ids)
    if logits.shape != (*ids.shape, config.vocab_size) or not logits.isfinite().any():
        raise InputError(
            f"a {type(student).__name__} of width {config.hidden_size} gives logits of shape {tuple(logits.shape)} that"
            " are not usable; try another width or another teacher"
        )
