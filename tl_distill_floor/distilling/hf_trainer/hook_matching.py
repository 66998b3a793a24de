"""`HookMatching`: the part of a student in a Trainer that hook matching learns."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tl_distill_floor.distilling.hf_trainer.collator import following_tokens
from tl_distill_floor.distilling.hf_trainer.frozen_teacher import FrozenTeacher
from tl_distill_floor.distilling.training.losses import NO_LABEL
from tl_distill_floor.distilling.training.matching import ActivationMatcher, KeptReconstruction, matching_target
from tl_distill_floor.sources.torch_state import neutral_torch_state

HOOK_MATCHING = "hook_matching"
"""Name of the module in the student."""
SMALLEST_VARIANCE_SHARE = 1e-9
"""Share of their mean square above which targets have a variance that is not rounding."""
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

        It is 0 as long as no two different targets were seen.

        Args:
            student: residual stream of the student.
            target: target of hook matching.
            accelerator: its processes share one variance.
        """
        if not self.variance:  # it may come from a checkpoint
            self.measure_variance([target], accelerator)
        distance: Tensor = self.matcher(student, target)
        return distance / self.variance if self.variance else distance * 0.0

    @torch.no_grad()
    def measure_variance(self, targets: Iterable[Float[Tensor, "token d_target"]], accelerator: Accelerator) -> None:
        """Divide all later distances by the variance of these targets together; of all processes.

        Args:
            targets: targets of parts of a batch.
            accelerator: the processes.
        """
        sums = torch.zeros(
            3, self.matcher.projection.out_features, dtype=torch.float64, device=self.variance.device
        )  # of ones, of targets and of their squares
        for target in targets:
            part = target.to(sums)
            sums += torch.stack([torch.ones_like(part).sum(0), part.sum(0), part.square().sum(0)])
        count, total, squares = accelerator.reduce(sums, "sum")
        means = squares / count.clamp(min=1.0)
        variance = (means - (total / count.clamp(min=1.0)).square()).sum()
        if variance > SMALLEST_VARIANCE_SHARE * means.sum():
            self.variance.copy_(variance)

    def save(self, directory: str | Path) -> None:
        """Write the module into a checkpoint's directory."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(directory) / HOOK_MATCHING_FILE)

    def load(self, directory: str | Path) -> None:
        """Read the module from a checkpoint's directory, if it is there."""
        file = Path(directory) / HOOK_MATCHING_FILE
        if file.is_file():
            self.load_state_dict(load_file(file))


@neutral_torch_state()
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


def matching_targets(
    teacher: FrozenTeacher, target: KeptReconstruction | None, batches: Iterable[Mapping[str, Tensor]]
) -> Iterator[Float[Tensor, "token d_target"]]:
    """Yield the targets of hook matching at the counted positions of batches.

    Args:
        teacher: the teacher.
        target: part of its activation that is matched; all of it if None.
        batches: batches of `DistillationCollator`.
    """
    for batch in batches:
        activation = teacher(batch["input_ids"]).matched
        assert activation is not None
        counted = following_tokens(batch["labels"]) != NO_LABEL
        yield matching_target(activation, counted, target, teacher.width)
