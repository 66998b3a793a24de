"""What a student is trained on: divergences from the teacher and cross-entropy, computed in chunks of tokens.

Logits of a whole batch are never held: what comes before the unembedding is, and each chunk's logits, teacher's and
student's, live only until the gradients in the student's last hidden state and unembedding are added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl, kl_of_logs

LOGITS_AT_ONCE = {"cpu": 2**20}
ON_A_GPU = 2**26
"""Numbers of one chunk's logits: what the caches of a CPU hold, and what keeps a GPU busy; else as on a GPU."""
FEWEST_TOKENS = 256
"""Of a chunk, however large the vocabulary: each chunk reads the whole unembedding."""
NO_LABEL = -100
"""Label of a position that no token follows."""
DIVERGENCES = ("forward-kl", "reverse-kl")


class Target(NamedTuple):
    """The teacher's distribution at some tokens, at a temperature."""

    log_p: Float[Tensor, "token vocabulary"]
    p: Float[Tensor, "token vocabulary"]
    entropy: Float[Tensor, " token"]


@dataclass(frozen=True)
class Objective:
    """The loss of every position, in nats: a divergence at a temperature, and a share of cross-entropy."""

    divergence: str = "forward-kl"
    """"forward-kl", KL(teacher ‖ student), or "reverse-kl", KL(student ‖ teacher)."""
    temperature: float = 1.0
    """Both sides' logits are divided by it, and the divergence is multiplied by its square (Hinton et al. 2015)."""
    cross_entropy: float = 0.0
    """Share of the next token's cross-entropy; the rest is the divergence's."""

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise InputError(f"the divergence is one of {', '.join(DIVERGENCES)}, got {self.divergence!r}")
        if not self.temperature > 0:
            raise InputError(f"the temperature must be above 0, got {self.temperature}")
        if not 0 <= self.cross_entropy <= 1:
            raise InputError(f"the share of cross-entropy must be from 0 to 1, got {self.cross_entropy}")

    @property
    def is_plain(self) -> bool:
        """KL(teacher ‖ student) and nothing else."""
        return self.divergence == "forward-kl" and self.temperature == 1.0 and self.cross_entropy == 0.0

    @torch.no_grad()
    def target(self, teacher: Float[Tensor, "token vocabulary"]) -> Target:
        """From the teacher's logits; the same for every student."""
        log_p = (teacher.float() / self.temperature if self.temperature != 1.0 else teacher.float()).log_softmax(-1)
        p = log_p.exp()
        return Target(log_p, p, -torch.linalg.vecdot(p, log_p))

    def __call__(
        self, target: Target, student: Float[Tensor, "token vocabulary"], labels: Int[Tensor, " token"]
    ) -> Float[Tensor, " token"]:
        """Nats of every position, from the student's logits and the tokens that follow (`NO_LABEL` where none does)."""
        log_q = (student.float() / self.temperature).log_softmax(-1)
        if self.divergence == "forward-kl":
            loss = -target.entropy - (target.p * log_q).sum(-1)
        else:
            loss = kl_of_logs(log_q, target.log_p)  # Gu et al. 2024, MiniLLM, eq. 1
        loss = loss * self.temperature**2
        if self.cross_entropy:
            unlabelled = cross_entropy(student.float(), labels, ignore_index=NO_LABEL, reduction="none")
            loss = (1 - self.cross_entropy) * loss + self.cross_entropy * unlabelled
        return loss

    def with_slope(
        self, target: Target, student: Float[Tensor, "token vocabulary"], labels: Int[Tensor, " token"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "token vocabulary"]]:
        """(nats summed over the positions, their slope in the student's logits, which is q − p for the plain KL)."""
        if self.is_plain:
            with torch.no_grad():
                log_q = student.detach().float().log_softmax(-1)
                loss = -(target.entropy + torch.linalg.vecdot(target.p, log_q)).sum()
                return loss, log_q.exp_().sub_(target.p).to(student.dtype)
        logits = student.detach().requires_grad_()
        loss = self(target, logits, labels).sum()
        return loss.detach(), torch.autograd.grad(loss, logits)[0]


class Ends(NamedTuple):
    """What a model ends with: the last hidden state of some tokens, and the unembedding that reads it."""

    hidden: Float[Tensor, "token d"]
    unembed: nn.Module

    def logits(self, rows: slice) -> Float[Tensor, "token vocabulary"]:
        found: Tensor = self.unembed(self.hidden[rows])
        return found


def chunked_losses(
    teacher: Ends, students: Sequence[Ends], labels: Int[Tensor, " token"], objective: Objective
) -> list[Tensor]:
    """Each student's loss, summed over the tokens, in nats; differentiable in its hidden state and unembedding.

    The teacher's logits are computed once for all students. Peak memory beside the hidden states does not depend on
    the number of tokens: `LOGITS_AT_ONCE` numbers a few times over.

    Args:
        teacher: no gradient is taken of it.
        students: one or more, of the same tokens.
        labels: the tokens that follow.
        objective: see `Objective`.
    """
    given = [(student.hidden, *student.unembed.parameters()) for student in students]
    taken = [_Gradients(inputs) for inputs in given]
    for rows in _chunks(teacher):
        with torch.no_grad():
            target = objective.target(teacher.logits(rows))
        for student, gradients in zip(students, taken, strict=True):
            gradients.add(student, rows, target, labels[rows], objective)
    return [
        _WithGradients.apply(gradients.loss, gradients.found, *inputs)  # type: ignore[no-untyped-call]
        for gradients, inputs in zip(taken, given, strict=True)
    ]


@torch.no_grad()
def summed_kl(teacher: Ends, students: Sequence[Ends]) -> Float[Tensor, " student"]:
    """KL(teacher ‖ student) of every student, summed over the tokens, in nats, at temperature 1."""
    found = torch.zeros(len(students), dtype=torch.float64)
    for rows in _chunks(teacher):
        logits = teacher.logits(rows)
        found += torch.stack([forward_kl(logits, student.logits(rows)).cpu().double().sum() for student in students])
    return found


def _chunks(ends: Ends) -> list[slice]:
    n = len(ends.hidden)
    vocabulary = max((len(weight) if weight.ndim == 1 else max(weight.shape)) for weight in ends.unembed.parameters())
    numbers = LOGITS_AT_ONCE.get(ends.hidden.device.type, ON_A_GPU)
    at_once = max(FEWEST_TOKENS, numbers // vocabulary)
    return [slice(first, min(first + at_once, n)) for first in range(0, n, at_once)]


class _Gradients:
    """A student's loss and its gradients, added up chunk by chunk."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.loss = torch.zeros((), device=inputs[0].device)
        self.found = [torch.zeros_like(given, dtype=torch.float32) for given in inputs]

    def add(self, student: Ends, rows: slice, target: Target, labels: Tensor, objective: Objective) -> None:
        weights = tuple(student.unembed.parameters())
        with torch.enable_grad():
            hidden = student.hidden[rows].detach().requires_grad_()
            logits = student.unembed(hidden)
            loss, slope = objective.with_slope(target, logits, labels)
        of_hidden, *of_weights = torch.autograd.grad(logits, (hidden, *weights), slope)
        self.loss += loss
        self.found[0][rows] = of_hidden
        for whole, part in zip(self.found[1:], of_weights, strict=True):
            whole += part


class _WithGradients(torch.autograd.Function):
    """A number whose gradients in its inputs are known already."""

    @staticmethod
    def forward(context: Any, loss: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        context.save_for_backward(*gradients)
        context.kinds = [given.dtype for given in inputs]
        return loss.clone()

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> Any:
        found = (g.mul(outer[0]).to(kind) for g, kind in zip(context.saved_tensors, context.kinds, strict=True))
        return (None, None, *found)
