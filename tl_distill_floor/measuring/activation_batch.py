"""One batch of activations at a hook point, restricted to the tokens that are counted."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.measuring.encoding import as_sae_input
from tl_distill_floor.measuring.hooks import check_finite
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.rerun import Rerunner
from tl_distill_floor.sources.devices import copy_to_device


class ActivationBatch(NamedTuple):
    """Activations of the counted tokens of a batch, as the SAE reads them."""

    activation: Float[Tensor, "token *d_in"]
    """What the SAE reads, on its device. Token ids, numbers and masks are on the CPU."""
    sequence: Int[Tensor, " token"]
    """Number of the token's sequence in the text, counted from 0."""
    position: Int[Tensor, " token"]
    """Position of the token in its sequence."""
    first: int
    """Number of the batch's first sequence."""
    n_sequences: int
    n_masked: int
    """Tokens that are not counted."""
    ids: Int[Tensor, "batch position"] | None = None
    """Token ids of the full sequences; None for cached activations."""
    has_cost: Bool[Tensor, " row"] | None = None
    """In which of the batch's sequences costs are measured; None for all."""
    gradients: tuple[Float[Tensor, "token d_model"], ...] = ()
    """Gradients of the log-probability of sampled outputs, one per sample; see `passes.gradient_pass`. They are 0 in
    sequences whose costs are not measured."""
    teacher: Rerunner | None = None
    """The teacher, which can be run again with other activations."""
    has_loss: Bool[Tensor, "batch position"] | None = None
    """At which positions a loss is measured, see `TokenStream.has_loss`; None for all."""
    extremes: Float[Tensor, " 2"] | None = None
    """Smallest and largest activation; None if there is no token."""

    @property
    def row(self) -> Int[Tensor, " token"]:
        """Index of the token's sequence in the batch."""
        return self.sequence - self.first

    @property
    def location(self) -> Int[Tensor, " token"]:
        """Index of the token among all tokens of the batch."""
        length = (len(self.sequence) + self.n_masked) // self.n_sequences
        return self.row * length + self.position

    def check_finite(self, hook_name: str) -> None:
        """Raise an InputError if an activation holds NaN or Inf. It waits for a GPU."""
        if self.extremes is not None:
            check_finite(self.extremes, hook_name)


class ActiveCodes(NamedTuple):
    """The nonzero SAE codes of the counted tokens."""

    token: Int64[Tensor, " entry"]
    """Index among the counted tokens, ascending."""
    feature: Int64[Tensor, " entry"]
    value: Float64[Tensor, " entry"]


def counted_batch(
    job: MeasurementJob,
    attached: AttachedSae,
    acts: Float[Tensor, "batch position *d_model"],
    counted: Bool[Tensor, "batch position"],
    first: int,
    ids: Int[Tensor, "batch position"] | None,
) -> ActivationBatch:
    """Select the counted tokens of a batch, without waiting for a GPU.

    Args:
        job: what is measured.
        attached: the SAE that reads the activations.
        acts: activations at its hook point.
        counted: which tokens are counted.
        first: number of the batch's first sequence.
        ids: token ids; None for cached activations.

    Raises:
        InputError: the SAE reads another width.
    """
    n_heads = int(job.model.cfg.n_heads) if job.teacher else 1
    location = counted.flatten().nonzero().squeeze(1)
    selected = select_tokens(attached.check_width(acts), location)
    sae_input = as_sae_input(attached.sae, selected, n_heads)
    n_rows, length = counted.shape
    return ActivationBatch(
        sae_input,
        sequence=first + location // length,
        position=location % length,
        first=first,
        n_sequences=n_rows,
        n_masked=counted.numel() - len(location),
        ids=ids,
        extremes=torch.stack(sae_input.aminmax()) if sae_input.numel() else None,
    )


def select_tokens(
    acts: Float[Tensor, "batch position *d_model"], location: Int64[Tensor, " token"]
) -> Float[Tensor, "token *d_model"]:
    """Return activations, or gradients, of some tokens.

    Args:
        acts: activations of all tokens of a batch.
        location: indices of the tokens among all tokens of the batch.
    """
    return acts.flatten(0, 1)[copy_to_device(location, acts.device)]
