"""Losses of a student against its teacher, computed in chunks of tokens.

The logits of a full batch are never in memory. The last hidden states are. The logits of a chunk, the teacher's and
the student's, are freed as soon as the gradients with respect to the student's last hidden states and unembedding have
been added up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tl_distill_floor.annotations import Divergence
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.measuring.kl import expected_log_prob, forward_kl, kl_from_log_probs
from tl_distill_floor.measuring.logit_map import LazyLogits, tokens_per_chunk

NO_LABEL = -100
"""Label of a position whose next token is no target of the training, as in PyTorch's cross-entropy (`ignore_index`)."""


class TeacherDistribution(NamedTuple):
    """The teacher's next-token distribution at some tokens, at the temperature of an objective."""

    log_p: Float[Tensor, "token vocabulary"]
    """Log probabilities, nats."""
    p: Float[Tensor, "token vocabulary"]
    """Probabilities."""
    entropy: Float[Tensor, " token"]
    """Entropy, nats."""


@dataclass(frozen=True)
class Objective:
    """Training loss of a student at one position, in nats: a divergence from the teacher, and cross-entropy.

    Example:
        >>> Objective("reverse-kl", temperature=2.0).cross_entropy
        0.0
    """

    divergence: Divergence = "forward-kl"
    """"forward-kl", KL(teacher ‖ student), or "reverse-kl", KL(student ‖ teacher) (Gu et al. 2024, MiniLLM, eq. 1)."""
    temperature: float = 1.0
    """Divisor of both models' logits; the divergence is multiplied by its square (Hinton et al. 2015, sec. 2)."""
    cross_entropy: float = 0.0
    """Share of the next token's cross-entropy in the loss, from 0 to 1; the rest is the divergence."""

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, Divergence)
        if not 0 < self.temperature < math.inf:
            raise InputError(f"the temperature must be above 0 and finite, got {self.temperature}")
        if not 0 <= self.cross_entropy <= 1:
            raise InputError(f"the share of cross-entropy must be from 0 to 1, got {self.cross_entropy}")

    @property
    def is_plain_forward_kl(self) -> bool:
        """Whether the loss is KL(teacher ‖ student) at temperature 1 and nothing else."""
        return self.divergence == "forward-kl" and self.temperature == 1.0 and self.cross_entropy == 0.0

    def advice_on_infinity(self) -> str | None:
        """Return what to do after a loss of infinity that no learning rate causes; None if there is no such cause."""
        if self.divergence == "reverse-kl":
            return "the teacher gives tokens probability 0 that the student does not; set the divergence to forward-kl"
        if self.cross_entropy:
            return "the text holds tokens of probability 0 (logits of -inf); set cross-entropy to 0, or give other text"
        return None

    @torch.no_grad()
    def teacher_distribution(self, teacher_logits: Float[Tensor, "token vocabulary"]) -> TeacherDistribution:
        """Return the teacher's distribution, which is the same for every student.

        Args:
            teacher_logits: the teacher's logits.
        """
        logits = teacher_logits.float()
        log_p = (logits / self.temperature if self.temperature != 1.0 else logits).log_softmax(-1)
        p = log_p.exp()
        return TeacherDistribution(log_p, p, -expected_log_prob(p, log_p))

    def __call__(
        self,
        teacher: TeacherDistribution,
        student_logits: Float[Tensor, "token vocabulary"],
        labels: Int[Tensor, " token"],
    ) -> Float[Tensor, " token"]:
        """Return the loss of every token, in nats.

        Args:
            teacher: the teacher's distribution at these tokens.
            student_logits: the student's logits.
            labels: the token that follows each token, or `NO_LABEL`.
        """
        log_q = (student_logits.float() / self.temperature).log_softmax(-1)
        if self.divergence == "forward-kl":
            loss = -teacher.entropy - expected_log_prob(teacher.p, log_q)
        else:
            loss = kl_from_log_probs(log_q, teacher.log_p)
        loss = loss * self.temperature**2
        if self.cross_entropy:
            next_token_loss = cross_entropy(student_logits.float(), labels, ignore_index=NO_LABEL, reduction="none")
            loss = (1 - self.cross_entropy) * loss + self.cross_entropy * next_token_loss
        return loss

    def with_gradient(
        self,
        teacher: TeacherDistribution,
        student_logits: Float[Tensor, "token vocabulary"],
        labels: Int[Tensor, " token"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "token vocabulary"]]:
        """Return the loss and its gradient with respect to the student's logits.

        The gradient of KL(teacher ‖ student) is q − p, the difference of the probabilities.

        Args:
            teacher: the teacher's distribution at these tokens.
            student_logits: the student's logits.
            labels: the token that follows each token, or `NO_LABEL`.

        Returns:
            (loss summed over the tokens in nats, gradient).
        """
        if self.is_plain_forward_kl:
            with torch.no_grad():
                log_q = student_logits.detach().float().log_softmax(-1)
                loss = -(teacher.entropy + expected_log_prob(teacher.p, log_q)).sum()
                return loss, log_q.exp_().sub_(teacher.p).to(student_logits.dtype)
        logits = student_logits.detach().requires_grad_()
        loss = self(teacher, logits, labels).sum()
        return loss.detach(), torch.autograd.grad(loss, logits)[0]


def chunked_losses(
    teacher: LazyLogits, students: Sequence[LazyLogits], labels: Int[Tensor, " token"], objective: Objective
) -> list[Float[Tensor, ""]]:
    """Compute the losses of several students against one teacher, in chunks of tokens.

    The teacher's logits are computed once for all students. Apart from the hidden states and their gradients, the peak
    memory is a few times the size of a chunk, whatever the number of tokens.

    Args:
        teacher: the teacher's logits, for which no gradient is computed.
        students: the students' logits at the same tokens.
        labels: the token that follows each token, or `NO_LABEL`.
        objective: see `Objective`.

    Returns:
        The loss of each student, summed over the tokens, in nats; differentiable with respect to the student's last
        hidden states and unembedding.
    """
    inputs = [(student.hidden, *_trained_weights(student)) for student in students]
    losses = [torch.zeros((), dtype=torch.float32, device=student.hidden.device) for student in students]
    gradients = [[torch.zeros_like(tensor, dtype=torch.float32) for tensor in of_student] for of_student in inputs]
    for rows in _chunks(teacher):
        with torch.no_grad():
            distribution = objective.teacher_distribution(teacher.compute(rows))
        for i, student in enumerate(students):
            loss, of_hidden, *of_weights = _loss_of_chunk(student, rows, distribution, labels[rows], objective)
            losses[i] += loss
            gradients[i][0][rows] = of_hidden
            for total, gradient in zip(gradients[i][1:], of_weights, strict=True):
                total += gradient
    return [
        _LossWithKnownGradients.apply(loss, of_inputs, *of_student)  # type: ignore[no-untyped-call]
        for loss, of_inputs, of_student in zip(losses, gradients, inputs, strict=True)
    ]


@torch.no_grad()
def summed_forward_kl(teacher: LazyLogits, students: Sequence[LazyLogits]) -> Float[Tensor, " student"]:
    """Return KL(teacher ‖ student) of every student on the CPU, summed over the tokens, in nats, at temperature 1.

    Args:
        teacher: the teacher's logits.
        students: the students' logits at the same tokens.
    """
    summed = torch.zeros(len(students), dtype=torch.float64, device=teacher.hidden.device)
    for rows in _chunks(teacher):
        logits = teacher.compute(rows)
        summed += torch.stack([forward_kl(logits, student.compute(rows)).double().sum() for student in students])
    return summed.cpu()


def _chunks(teacher: LazyLogits) -> list[slice]:
    """Return slices of the tokens whose logits fit a chunk."""
    n_tokens = len(teacher.hidden)
    vocabulary = max(max(weight.shape) for weight in teacher.unembed.parameters())
    size = tokens_per_chunk(vocabulary, teacher.hidden.device)
    return [slice(first, first + size) for first in range(0, n_tokens, size)]


def _trained_weights(student: LazyLogits) -> tuple[nn.Parameter, ...]:
    """Return the weights of a student's unembedding that have a gradient."""
    return tuple(weight for weight in student.unembed.parameters() if weight.requires_grad)


def _loss_of_chunk(
    student: LazyLogits, rows: slice, teacher: TeacherDistribution, labels: Int[Tensor, " token"], objective: Objective
) -> tuple[Tensor, ...]:
    """Return the loss of some tokens, and its gradients: of their last hidden states, and of the trained weights."""
    with torch.enable_grad():
        hidden = student.hidden[rows].detach().requires_grad_()
        logits = student.logits_of(hidden)
        loss, logits_gradient = objective.with_gradient(teacher, logits, labels)
    return loss, *torch.autograd.grad(logits, (hidden, *_trained_weights(student)), logits_gradient)


class _LossWithKnownGradients(torch.autograd.Function):
    """A loss whose gradients with respect to its inputs have already been computed."""

    @staticmethod
    def forward(context: Any, loss: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        """Keep the gradients, and return the loss."""
        context.save_for_backward(*gradients)
        context.dtypes = [tensor.dtype for tensor in inputs]
        return loss.clone()

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, multiplied by the gradient of the loss."""
        gradients = (
            gradient.mul(outer[0]).to(dtype)
            for gradient, dtype in zip(context.saved_tensors, context.dtypes, strict=True)
        )
        return (None, None, *gradients)
