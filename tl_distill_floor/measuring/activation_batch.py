"""One batch of activations at a hook point, restricted to the tokens that are counted."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.measuring.encoding import as_sae_input
from tl_distill_floor.measuring.hooks import check_finite
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.rerun import Rerunner
from tl_distill_floor.sources.devices import copy_to_device


class ActivationBatch(NamedTuple):
    """Activations of the counted tokens of a batch, as the SAE reads them."""

    activation: Float[Tensor, "token *d_model"]
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

    @property
    def row(self) -> Int[Tensor, " token"]:
        """Index of the token's sequence in the batch."""
        return self.sequence - self.first


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
    """Select the counted tokens of a batch.

    Args:
        job: what is measured.
        attached: the SAE that reads the activations.
        acts: activations at its hook point.
        counted: which tokens are counted.
        first: number of the batch's first sequence.
        ids: token ids; None for cached activations.

    Raises:
        InputError: the SAE reads another width, or an activation is not finite.
    """
    n_heads = int(job.model.cfg.n_heads) if job.teacher else 1
    # Every `nonzero` waits for the GPU, so there is only one.
    location = counted.flatten().nonzero().squeeze(1)
    selected = select_tokens(attached.check_width(acts), location)
    sae_input = as_sae_input(attached.sae, selected, n_heads)
    check_finite(sae_input, attached.hook_name)
    location, (n_rows, length) = location.cpu(), counted.shape
    sequence, position = first + location // length, location % length
    return ActivationBatch(sae_input, sequence, position, first, n_rows, counted.numel() - len(location), ids)


def select_tokens(
    acts: Float[Tensor, "batch position *d_model"], location: Int64[Tensor, " token"]
) -> Float[Tensor, "token *d_model"]:
    """Return activations, or gradients, of some tokens.

    Args:
        acts: activations of all tokens of a batch.
        location: indices of the tokens among all tokens of the batch.
    """
    return acts.flatten(0, 1)[copy_to_device(location, acts.device)]
