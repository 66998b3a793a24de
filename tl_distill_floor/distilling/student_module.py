"""`StudentModule`: the module that is trained, which distributed training wraps."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_distill_floor.distilling.config import StudentSpec
from tl_distill_floor.distilling.forward import Backbone
from tl_distill_floor.distilling.matching import ActivationMatcher


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
        counted: Bool[Tensor, "batch position"],
        target: Float[Tensor, "token d_target"] | None,
    ) -> tuple[Float[Tensor, "token width"], Float[Tensor, ""] | None]:
        """Return (last hidden states of the counted tokens, matching loss summed over them).

        Args:
            ids: token ids.
            counted: which of the tokens are counted.
            target: target of hook matching at the counted tokens; None without hook matching.
        """
        last_hidden, matched = self.backbone(ids)
        if self.matcher is None:
            return last_hidden[counted], None
        assert matched is not None
        assert target is not None
        return last_hidden[counted], self.matcher(matched[counted], target)

    @property
    def student(self) -> nn.Module:
        """The student with its unembedding."""
        return self.backbone.model
