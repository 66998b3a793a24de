"""One batch of activations at a hook point, restricted to the tokens that are counted."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.measuring.encoding import as_sae_input
from tl_distill_floor.measuring.hooks import check_finite
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.rerun import Rerunner


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
    gradients: tuple[Float[Tensor, "token d_model"], ...] = ()
    """Gradients of the log-probability of sampled outputs, one per sample; see `costs.gradient_pass`."""
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
    selected = as_sae_input(attached.sae, attached.check_width(acts)[counted.to(acts.device)], n_heads)
    check_finite(selected, attached.hook_name)
    row, position = counted.nonzero(as_tuple=True)
    n_masked = int((~counted).sum())
    return ActivationBatch(selected, first + row.cpu(), position.cpu(), first, len(counted), n_masked, ids)
