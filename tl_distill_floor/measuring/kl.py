"""The divergence of two distributions over a vocabulary, from logits, in nats."""

from jaxtyping import Float
from torch import Tensor


def forward_kl(
    teacher: Float[Tensor, "*position vocabulary"], student: Float[Tensor, "*position vocabulary"]
) -> Float[Tensor, "*position"]:
    """KL(teacher ‖ student) of every position: what distillation minimises (Hinton et al. 2015, sec. 2, at T = 1)."""
    return kl_of_logs(teacher.float().log_softmax(-1), student.float().log_softmax(-1))


def kl_of_logs(
    log_p: Float[Tensor, "*position vocabulary"], log_q: Float[Tensor, "*position vocabulary"]
) -> Float[Tensor, "*position"]:
    """KL(p ‖ q) of every position, from log probabilities."""
    found: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1)
    return found
