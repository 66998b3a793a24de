"""Check that a student given to a Trainer is what `from_pretrained` would load from its configuration and weights."""

import copy

import torch
from accelerate import init_empty_weights
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tl_distill_floor.distilling.students.family_models import full_logits, logit_difference
from tl_distill_floor.errors import InputError

ADVICE = (
    "set what was changed, such as the number of layers, in its configuration too, merge adapters (merge_and_unload),"
    " and make pruning and parametrizations permanent"
)
"""How to make a student one that can be saved."""


@torch.no_grad()
def check_plain_student(student: PreTrainedModel, ids: Int[Tensor, "sequence position"]) -> None:
    """Check that a plain model with a student's configuration and weights, without a copy of them, has its logits.

    Students with adapters or quantized weights, which are saved in another way, and those whose weights are spread over
    devices or processes are not checked.

    Args:
        student: the student, in evaluation mode.
        ids: token ids of the comparison.

    Raises:
        InputError: a weight is missing, or the logits differ, so that a saved student would be read as another model.
    """
    if not _is_saved_as_weights(student):
        return
    shell = _shell_of(student)
    if shell is None:
        return
    own = dict(student.named_parameters())
    missing = next((name for name, _ in shell.named_parameters() if name not in own), None)
    if missing is not None:
        raise InputError(
            f"the student has no weight {missing} of its own, which a {type(student).__name__} of its configuration"
            f" has, so a saved student would be loaded with a random one; {ADVICE}"
        )
    expected = full_logits(student, ids).float()
    shell.load_state_dict(student.state_dict(), strict=False, assign=True)
    logits = full_logits(shell.to(ids.device), ids).float()
    difference = logit_difference(logits, expected, student.dtype)
    if difference is not None:
        raise InputError(
            f"a {type(student).__name__} with the configuration and the weights of the student has other logits, by up"
            f" to {difference:.3g}, so a saved student would be loaded as another model; {ADVICE}"
        )


def check_merged(model: object, name: str) -> None:
    """Raise an InputError if a model is wrapped with adapters, as the package peft does.

    Args:
        model: the model.
        name: what it is, for the message.
    """
    if not isinstance(model, PreTrainedModel) and hasattr(model, "merge_and_unload"):
        raise InputError(
            f"the {name} is a {type(model).__name__}, a model with adapters around it; give {name}.merge_and_unload()"
        )


def _is_saved_as_weights(student: PreTrainedModel) -> bool:
    """Return whether a checkpoint of a student has its weights, and this process has all of them."""
    is_special = getattr(student, "_hf_peft_config_loaded", False) or getattr(student, "hf_quantizer", None) is not None
    devices = getattr(student, "hf_device_map", None) or {}
    is_spread = len(set(devices.values())) > 1 or any(hasattr(weight, "ds_id") for weight in student.parameters())
    return not is_special and not is_spread


def _shell_of(student: PreTrainedModel) -> nn.Module | None:
    """Return a model of a student's class and configuration without weights; None if its class needs more than that."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        try:
            torch.set_default_dtype(student.dtype)  # as from_pretrained does
            shell: nn.Module = type(student)(copy.deepcopy(student.config))
        except TypeError:  # a class of the user's with arguments of its own
            return None
        finally:
            torch.set_default_dtype(default)
    shell.tie_weights()  # type: ignore[operator]
    return shell.eval()
