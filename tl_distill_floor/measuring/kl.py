"""Kullback-Leibler (KL) divergences between distributions over a vocabulary, in nats."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

LOGITS_PER_CHUNK = 2**24
"""Logits of each model whose KL is computed in one chunk: 64 MiB in fp32."""


def forward_kl(
    teacher: Float[Tensor, "*position vocabulary"], student: Float[Tensor, "*position vocabulary"]
) -> Float[Tensor, "*position"]:
    """Compute KL(teacher ‖ student) at each position: the loss of distillation (Hinton et al. 2015, sec. 2, at T = 1).

    Args:
        teacher: logits.
        student: logits.

    Returns:
        [*position], in nats.
    """
    return kl_from_log_probs(teacher.float().log_softmax(-1), student.float().log_softmax(-1))


@torch.no_grad()
def forward_kl_in_chunks(
    teacher: Float[Tensor, "batch position vocabulary"], student: Float[Tensor, "batch position vocabulary"]
) -> Float[Tensor, "batch position"]:
    """Compute `forward_kl` for some positions at a time, without gradients and in bounded memory.

    Args:
        teacher: logits.
        student: logits.

    Returns:
        [batch, position], in nats, each at least 0.
    """
    size = max(1, LOGITS_PER_CHUNK // teacher.shape[-1])
    chunks = (
        torch.split(rearrange(logits, "batch position vocabulary -> (batch position) vocabulary"), size)
        for logits in (teacher, student)
    )
    kl = torch.cat([forward_kl(p, q) for p, q in zip(*chunks, strict=True)])
    # Rounding can make a KL slightly negative.
    return kl.view(teacher.shape[:2]).clamp_(min=0.0)


def kl_from_log_probs(
    log_p: Float[Tensor, "*position vocabulary"], log_q: Float[Tensor, "*position vocabulary"]
) -> Float[Tensor, "*position"]:
    """Compute KL(p ‖ q) at each position.

    Args:
        log_p: log-probabilities.
        log_q: log-probabilities.

    Returns:
        [*position], in nats.
    """
    p = log_p.exp()
    kl: Tensor = (p * (log_p - log_q)).sum(-1)
    if kl.isnan().any():  # 0 · log 0 counts as 0
        kl = (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)
    return kl


def expected_log_prob(
    p: Float[Tensor, "*position vocabulary"], log_q: Float[Tensor, "*position vocabulary"]
) -> Float[Tensor, "*position"]:
    """Compute Σ p log q at each position, where 0 · log 0 counts as 0: logits of −inf have probability 0.

    Args:
        p: probabilities.
        log_q: log-probabilities.

    Returns:
        [*position], in nats.
    """
    with torch.autocast(p.device.type, enabled=False):  # it would round both to 16 bits
        expected: Tensor = torch.linalg.vecdot(p, log_q)
        if expected.isnan().any():
            expected = torch.linalg.vecdot(p, log_q.masked_fill(p == 0, 0.0))
    return expected
