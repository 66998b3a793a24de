"""`build_student`: a narrower model of the teacher's family, as a plain `transformers` model."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tl_distill_floor.annotations import HookedModel, StudentStart, TeacherLike
from tl_distill_floor.distilling.inherited_weights import inherit_weights
from tl_distill_floor.distilling.student_config import hugging_face_config, student_config
from tl_distill_floor.errors import check_choice
from tl_distill_floor.sources.teachers import load_teacher


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
            width or depth is out of range or fits no head size.

    Example:
        >>> student = build_student("tiny-prose", width=64)
        >>> student.config.hidden_size
        64
    """
    check_choice("start", start, StudentStart)
    model = load_teacher(teacher).model
    config = student_config(hugging_face_config(model), width, depth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student: nn.Module = AutoModelForCausalLM.from_config(config)
    student = student.float().eval()
    if start != "random":
        inherit_weights(model, student, start)
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
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(student_config(hugging_face_config(teacher), width, depth))
    return int(sum(weight.numel() for weight in model.parameters()))
