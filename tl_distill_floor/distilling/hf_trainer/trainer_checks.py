"""Checks of what a `DistillationTrainer` is given."""

from functools import partial
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from tl_distill_floor.distilling.hf_trainer.frozen_teacher import FrozenTeacher, published_tokenizer
from tl_distill_floor.distilling.students.family_models import full_logits
from tl_distill_floor.distilling.students.layers import capture_residual_stream, layers_of
from tl_distill_floor.distilling.students.plain_student import check_merged, check_plain_student
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import check_causal, check_decoder_only
from tl_distill_floor.measuring.hooks import eval_mode
from tl_distill_floor.measuring.logit_map import LogitMap, ids_to_check, measure_logit_map
from tl_distill_floor.sources.devices import check_device
from tl_distill_floor.sources.torch_state import neutral_torch_state


def check_arguments(args: TrainingArguments, students: list[bool], depth: int | None, width: int | None) -> None:
    """Check the Trainer's arguments.

    Args:
        args: the arguments.
        students: which of the ways to give a student are used: a model, a width, a function.
        depth: depth of a student that is built.
        width: width of a student that is built.

    Raises:
        InputError: there is not one student, the device has no float64, or an argument does not work with a
            distillation loss.
    """
    check_device(str(args.device), "set use_cpu of the TrainingArguments to True")
    if sum(students) != 1:
        raise InputError(
            f"a DistillationTrainer trains one student, got {sum(students)} of model, width and model_init; give one"
        )
    if depth is not None and width is None:
        raise InputError("depth is that of a student that is built; give width too, or no depth")
    if args.label_smoothing_factor:
        raise InputError(
            "label_smoothing_factor has no effect on a distillation loss; set it to 0, or raise the temperature of the"
            " Objective"
        )
    if args.use_liger_kernel:
        raise InputError("use_liger_kernel replaces the loss of the student; set it to False")
    if args.n_gpu > 1:
        raise InputError(
            f"this process sees {args.n_gpu} GPUs, and DataParallel is not supported; start one process per GPU with"
            " torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
        )
    parallelism = getattr(args, "parallelism_config", None)
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise InputError(
            "context and sequence parallelism are not supported, because they divide sequences; turn it off"
        )


def check_dataset(name: str, dataset: object, args: TrainingArguments) -> None:
    """Raise an InputError if a data set with named columns has no token ids, and no collator sees its other columns.

    Args:
        name: name of the argument.
        dataset: a data set, or several by their names.
        args: the Trainer's arguments.
    """
    for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
        columns = getattr(part, "column_names", None)
        if isinstance(columns, list) and "input_ids" not in columns and args.remove_unused_columns:
            raise InputError(
                f"{name} has the columns {', '.join(columns)}, and no input_ids; tokenize it with the teacher's"
                " tokenizer first"
            )


def check_student(student: PreTrainedModel, teacher: FrozenTeacher, match: Match | None) -> None:
    """Check that a student can be distilled from a teacher.

    Args:
        student: the student.
        teacher: its teacher.
        match: layer that is matched with a hook point of the teacher.

    Raises:
        InputError: it is no causal language model, has modules of the teacher, has another vocabulary or tokenizer,
            lacks the values of its weights, or has no layer to match.
    """
    name = type(student).__name__
    check_merged(student, "student")
    if not isinstance(student, PreTrainedModel) or student.get_output_embeddings() is None:
        raise InputError(
            f"a student must be a transformers causal language model, got {name}; load it with AutoModelForCausalLM"
        )
    check_decoder_only(student, "student")
    if student is teacher.model:
        raise InputError("the student is the teacher itself; give a copy, or width to build a narrower student")
    of_teacher = {id(weight) for weight in teacher.model.parameters()}
    if any(id(weight) in of_teacher for weight in student.parameters()):
        raise InputError("the student has weights of the teacher's own modules; give it copies of them")
    vocabulary = int(student.config.get_text_config().vocab_size)
    if vocabulary != teacher.vocabulary:
        raise InputError(
            f"the student has a vocabulary of {vocabulary:,} tokens and the teacher {teacher.name} one of"
            f" {teacher.vocabulary:,}, so their predictions cannot be compared; give a student with the teacher's"
            " vocabulary, or width to build one"
        )
    if student.config.name_or_path != getattr(teacher.model, "name_or_path", None):
        check_tokenizers(teacher, "student", published_tokenizer(student))
    if any(weight.is_meta for weight in student.parameters()):
        raise InputError(
            "the student has weights without values in this process; set cpu_ram_efficient_loading of FSDP to false"
        )
    if match is not None and not 0 <= match.layer < (n_layers := len(layers_of(student))):
        raise InputError(f"the student has layers 0 to {n_layers - 1}, got layer {match.layer} to match")


@neutral_torch_state()
def checked_logit_map(student: PreTrainedModel, vocabulary: int, match: Match | None) -> LogitMap:
    """Check the forward pass of a student, and return the map from its unembedding to its logits.

    Args:
        student: the student.
        vocabulary: number of tokens of the vocabulary.
        match: hook matching, whose layer must have a residual stream; None for none.

    Raises:
        InputError: the layer has no residual stream, the student is not causal, or `from_pretrained` would load another
            model from its configuration and weights.
    """
    ids, logits_of = ids_to_check(student, None, vocabulary), partial(full_logits, student)
    with eval_mode(student), capture_residual_stream(student, None if match is None else match.layer, []):
        logit_map = measure_logit_map(student, student.get_output_embeddings(), logits_of, ids)
        check_causal(student, "student", vocabulary, logits_of)
        check_plain_student(student, ids)
    return logit_map


def check_tokenizers(teacher: FrozenTeacher, name: str, tokenizer: object) -> None:
    """Check that a tokenizer gives ordinary tokens the ids that the teacher's gives them.

    Tokens that were added to one of the tokenizers, such as special tokens, may differ.

    Args:
        teacher: the teacher; nothing is checked if it has no tokenizer.
        name: what has the other tokenizer, for the message.
        tokenizer: the other tokenizer, or a processor that holds one; None if there is none.

    Raises:
        InputError: an id is that of different tokens.
    """
    expected, others = _ordinary_tokens(teacher.tokenizer), _ordinary_tokens(getattr(tokenizer, "tokenizer", tokenizer))
    different = sorted(number for number in expected.keys() & others.keys() if expected[number] != others[number])
    if different:
        first = different[0]
        raise InputError(
            f"the tokenizer of the {name} and that of the teacher have different tokens for {len(different):,} ids,"
            f" such as {first} ({others[first]!r} and {expected[first]!r}), so the models read different texts; give a"
            " student and data with the teacher's tokenizer"
        )


def _ordinary_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the tokens of a tokenizer by their ids, without those that were added to its vocabulary."""
    if not hasattr(tokenizer, "get_vocab") or not hasattr(tokenizer, "get_added_vocab"):
        return {}
    added = set(tokenizer.get_added_vocab().values())
    return {number: token for token, number in tokenizer.get_vocab().items() if number not in added}
