"""`StudentModule`: the module that is trained, which distributed training wraps."""

from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.forward import Backbone
from tl_distill_floor.distilling.training.matching import ActivationMatcher
from tl_distill_floor.sources.devices import copy_to_device

TokenPositions: TypeAlias = tuple[Int64[Tensor, " token"], Int64[Tensor, " token"]]
"""Sequence and position of some tokens. An index of a batch, as a mask is, but the GPU need not count its tokens."""


def counted_positions(counted: Bool[Tensor, "batch position"], device: torch.device) -> TokenPositions:
    """Return where the counted tokens of a batch are.

    Args:
        counted: which tokens are counted, on the CPU.
        device: device of the result.
    """
    row, position = counted.nonzero(as_tuple=True)
    return copy_to_device(row, device), copy_to_device(position, device)


class StudentModule(nn.Module):
    """A student without its unembedding, and the projection that hook matching learns.

    Args:
        student: the student, a `transformers` causal language model.
        spec: the student's settings.
        d_target: dimensions of the teacher's residual stream.
        ids: sequences of a real text, which the student's logits are verified on; random tokens if None.
    """

    def __init__(
        self, student: nn.Module, spec: StudentSpec, d_target: int, ids: Int[Tensor, "sequence position"] | None = None
    ) -> None:
        super().__init__()
        self.backbone = Backbone(student, spec.match.layer if spec.match else None, ids)
        self.matcher = ActivationMatcher(spec.width, d_target, spec.seed) if spec.match else None

    def forward(
        self,
        ids: Int[Tensor, "batch position"],
        positions: TokenPositions,
        target: Float[Tensor, "token d_target"] | None,
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, ""] | None]:
        """Return (last hidden states of the counted tokens, matching loss summed over them).

        Args:
            ids: token ids.
            positions: where the counted tokens are.
            target: target of hook matching at the counted tokens; None without hook matching.
        """
        last_hidden, matched = self.backbone(ids)
        if self.matcher is None:
            return last_hidden[positions], None
        assert matched is not None
        assert target is not None
        return last_hidden[positions], self.matcher(matched[positions], target)

    @property
    def student(self) -> nn.Module:
        """The student with its unembedding."""
        return self.backbone.model
