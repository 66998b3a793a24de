"""`HookMatching`: the part of a student in a Trainer that hook matching learns."""

from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tl_distill_floor.distilling.matching import SMALLEST_VARIANCE, ActivationMatcher

HOOK_MATCHING = "hook_matching"
"""Name of the module in the student."""
HOOK_MATCHING_FILE = "hook_matching.safetensors"
"""File of the module in a checkpoint of the Trainer, next to the student's own weights."""


class HookMatching(nn.Module):
    """The learned projection of a student's residual stream, and the variance of its targets.

    It is a module of the student while a Trainer trains it, so that the Trainer's optimizer and wrappers treat it as
    any other weight. It is not saved with the student.

    Args:
        width: the student's width, dimensions.
        d_target: dimensions of the target.
        seed: seed of the projection's initial weights.
    """

    def __init__(self, width: int, d_target: int, seed: int) -> None:
        super().__init__()
        self.matcher = ActivationMatcher(width, d_target, seed)
        self.variance: Tensor
        self.register_buffer("variance", torch.zeros(()))

    def forward(
        self, student: Float[Tensor, "token width"], target: Float[Tensor, "token d_target"], accelerator: Accelerator
    ) -> Float[Tensor, ""]:
        """Return the squared distance as a share of the targets' variance, summed over the tokens.

        Args:
            student: residual stream of the student.
            target: target of hook matching.
            accelerator: its processes share one variance, the mean over their parts of the first batch with tokens.
        """
        if not self.variance:  # it may come from a checkpoint
            self.variance.copy_(_shared_variance(target, accelerator))
        distance: Tensor = self.matcher(student, target) / self.variance.clamp(min=SMALLEST_VARIANCE)
        return distance

    def save(self, directory: str | Path) -> None:
        """Write the module into a checkpoint's directory."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(directory) / HOOK_MATCHING_FILE)

    def load(self, directory: str | Path) -> None:
        """Read the module from a checkpoint's directory, if it is there."""
        file = Path(directory) / HOOK_MATCHING_FILE
        if file.is_file():
            self.load_state_dict(load_file(file))


def add_hook_matching(student: nn.Module, d_target: int, seed: int) -> None:
    """Make a `HookMatching` a module of a student that is not saved with it.

    Args:
        student: a `transformers` model, which is changed.
        d_target: dimensions of the target.
        seed: seed of the projection's initial weights.
    """
    weight = next(student.parameters())
    width = int(student.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    module = HookMatching(width, d_target, seed).to(weight.device)
    student.add_module(HOOK_MATCHING, module)
    ignored = {f"{HOOK_MATCHING}.{name}" for name in module.state_dict()}
    student._keys_to_ignore_on_save = set(student._keys_to_ignore_on_save or ()) | ignored  # type: ignore[assignment, arg-type]


def _shared_variance(target: Float[Tensor, "token d_target"], accelerator: Accelerator) -> Float[Tensor, ""]:
    """Return the variance of targets, the mean over the processes that have a target; 0 if none has one."""
    sums = torch.zeros(2, device=target.device)
    if len(target):
        sums += torch.stack([target.float().var(dim=0, correction=0).sum(), torch.ones_like(sums[0])])
    total, n_processes = accelerator.reduce(sums, "sum")
    mean: Tensor = total / n_processes.clamp(min=1.0)
    variance: Tensor = mean.clamp(min=SMALLEST_VARIANCE) * n_processes.clamp(max=1.0)
    return variance
