"""Modules of a student: `Backbone`, the student without its unembedding, and `StudentModule`, which is trained.

Logits are computed later, in chunks of tokens.
"""

from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from tl_distill_floor.distilling.students.family_models import full_logits
from tl_distill_floor.distilling.students.layers import capture_residual_stream, layers_of
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.matching import ActivationMatcher
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import eval_mode
from tl_distill_floor.measuring.logit_map import (
    LazyLogits,
    LogitMap,
    check_same_logits,
    ids_to_check,
    measure_logit_map,
)
from tl_distill_floor.measuring.teacher_backbone import BackboneOutput, ReachedUnembeddingError, capture_input
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


class Backbone(nn.Module):
    """A `transformers` causal language model without its unembedding.

    Args:
        model: the language model.
        layer: layer whose residual stream is returned too; None for no layer.
        ids: sequences of a real text, which the map from last hidden states to logits is verified on; random tokens
            if None.

    Raises:
        InputError: the model has no such layer, or changes its logits after the unembedding in an unknown way.
    """

    def __init__(
        self, model: nn.Module, layer: int | None = None, ids: Int[Tensor, "sequence position"] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._layer = layer
        if layer is not None and not 0 <= layer < (n_layers := len(layers_of(model))):
            raise InputError(f"the student has layers 0 to {n_layers - 1}, got layer {layer} to match")
        with eval_mode(model):  # dropout would change the logits from one forward pass to the next
            self.logit_map = self._verified_logit_map(ids)

    @property
    def unembed(self) -> nn.Module:
        """The unembedding, from last hidden states to logits."""
        unembed: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        return unembed

    def forward(self, ids: Int[Tensor, "batch position"]) -> BackboneOutput:
        """Return the last hidden states, and the residual stream after the layer that is matched."""
        last: list[Tensor] = []
        matched: list[Tensor] = []
        with capture_input(self.unembed, last), capture_residual_stream(self.model, self._layer, matched):
            try:
                self.model(ids, use_cache=False)
            except ReachedUnembeddingError:
                return BackboneOutput(last[0], matched[0] if matched else None)
        raise InputError(f"the forward pass of {type(self.model).__name__} did not reach its unembedding")

    def logits(self, last_hidden: Float[Tensor, "token width"]) -> LazyLogits:
        """Return the logits of some tokens, computed when they are needed.

        Args:
            last_hidden: last hidden states of the tokens.
        """
        return LazyLogits(last_hidden, self.unembed, self.logit_map)

    @torch.no_grad()
    def _verified_logit_map(self, ids: Int[Tensor, "sequence position"] | None) -> LogitMap:
        ids = ids_to_check(self.model, ids, int(self.model.config.get_text_config().vocab_size))  # type: ignore[union-attr,operator]
        logits_of = partial(full_logits, self.model)
        logit_map = measure_logit_map(self.model, self.unembed, logits_of, ids)
        check_same_logits(self.model, logit_map(self.unembed(self(ids).last_hidden)), logits_of(ids))
        return logit_map


class StudentModule(nn.Module):
    """What is trained, and distributed training wraps: a backbone, and the projection that hook matching learns.

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
