"""Tests of the divergences, and of losses that are computed in chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import kl_div

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.training.losses import (
    NO_LABEL,
    LazyLogits,
    Objective,
    chunked_losses,
    summed_forward_kl,
)
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring import logit_map
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.logit_map import LogitMap


def random_logits(seed: int, n: int = 12, vocabulary: int = 50) -> torch.Tensor:
    """Return random logits [token, vocabulary]."""
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


def loss_of(objective: Objective, teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of every token, from the logits of teacher and student."""
    return objective(objective.teacher_distribution(teacher), student, labels)


def test_divergences_match_torch_and_float64() -> None:
    teacher, student = random_logits(0), random_logits(1)
    torch_kl = kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    torch.testing.assert_close(forward_kl(teacher, student), torch_kl)
    torch.testing.assert_close(forward_kl(teacher, student).double(), (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
    labels = torch.zeros(len(teacher), dtype=torch.long)
    torch.testing.assert_close(loss_of(Objective("reverse-kl"), teacher, student, labels), forward_kl(student, teacher))
    torch.testing.assert_close(loss_of(Objective(), teacher, student, labels), torch_kl, rtol=1e-4, atol=1e-5)


def test_kl_matches_a_hand_computed_value() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4).
    # KL(p ‖ q) = ½ ln 2 + ½ ln(2/3) = 0.1438; KL(q ‖ p) = ¼ ln(1/2) + ¾ ln(3/2) = 0.1308.
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(forward_kl(p, q)) == pytest.approx(0.1438, abs=1e-4)
    assert float(forward_kl(q, p)) == pytest.approx(0.1308, abs=1e-4)


@given(st.integers(0, 10**6))
def test_kl_is_positive_for_different_distributions_and_0_for_equal_ones(seed: int) -> None:
    teacher, student = random_logits(seed), random_logits(seed + 1)
    assert float(forward_kl(teacher, student).min()) > 0
    assert float(forward_kl(teacher, teacher).abs().max()) < 1e-6


@pytest.mark.parametrize("objective", [Objective(), Objective("reverse-kl"), Objective(temperature=2.0)])
def test_logits_of_minus_infinity_have_no_loss(objective: Objective) -> None:
    """0 · log 0 = 0: the loss is that of the other tokens, and its gradient is finite."""
    teacher, student = random_logits(0), random_logits(1)
    labels = torch.zeros(len(teacher), dtype=torch.long)
    expected = loss_of(objective, teacher[:, :40], student[:, :40], labels)
    teacher[:, 40:] = -torch.inf
    student[:, 40:] = -torch.inf
    torch.testing.assert_close(loss_of(objective, teacher, student, labels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        forward_kl(teacher, student), forward_kl(teacher[:, :40], student[:, :40]), rtol=1e-4, atol=1e-5
    )
    distribution = objective.teacher_distribution(teacher)
    loss, gradient = objective.with_gradient(distribution, student, labels)
    assert float(loss) == pytest.approx(float(expected.sum()), rel=1e-4)
    assert gradient.isfinite().all()
    # A student that gives probability to masked tokens has a loss for it, and no NaN.
    assert forward_kl(teacher, random_logits(1)).isfinite().all()
    assert forward_kl(teacher, teacher).tolist() == [0.0] * len(teacher)


@pytest.mark.parametrize("objective", [Objective(), Objective(temperature=2.0), Objective("reverse-kl")])
def test_losses_of_the_same_logits_are_not_rounded_under_autocast(objective: Objective) -> None:
    """The forward passes are in 16 bits there, and the losses in fp32."""
    teacher, student, labels = random_logits(0), random_logits(1), torch.zeros(12, dtype=torch.int64)
    expected = loss_of(objective, teacher, student, labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(objective, teacher, student, labels)
    assert torch.equal(loss, expected)


def test_gradients_through_a_cap_match_autograd() -> None:
    """The logits of teacher and student are capped after the unembedding."""
    torch.manual_seed(0)
    cap = LogitMap(scale=0.5, cap=2.0)
    teacher = LazyLogits(torch.randn(6, 4), nn.Linear(4, 20), cap)
    student = LazyLogits(torch.randn(6, 3, requires_grad=True), nn.Linear(3, 20, bias=False), cap)
    inputs = [student.hidden, *student.unembed.parameters()]
    labels = torch.zeros(6, dtype=torch.long)
    (chunked,) = chunked_losses(teacher, [student], labels, Objective())
    capped = [2.0 * torch.tanh(lazy.unembed(lazy.hidden) / 4.0) for lazy in (teacher, student)]
    full = forward_kl(capped[0].detach(), capped[1]).sum()
    torch.testing.assert_close(chunked, full)
    for gradient, expected in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(full, inputs), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_temperature_and_cross_entropy_match_hand_computed_values() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    labels = torch.tensor([0])
    # At T = 2 the teacher's logits are (1, 0): KL(teacher ‖ uniform) = ln 2 - H(σ(1)) = 0.1110, times T² = 0.4441.
    hot = loss_of(Objective(temperature=2.0), teacher, student, labels)
    assert float(hot) == pytest.approx(0.4441, abs=1e-3)
    # The cross-entropy of a uniform student is ln 2. The loss is a quarter of it and three quarters of the KL.
    kl = float(loss_of(Objective(), teacher, student, labels))
    mixed = loss_of(Objective(cross_entropy=0.25), teacher, student, labels)
    assert float(mixed) == pytest.approx(0.75 * kl + 0.25 * 0.6931, abs=1e-4)
    unlabelled = loss_of(Objective(cross_entropy=0.25), teacher, student, torch.tensor([NO_LABEL]))
    assert float(unlabelled) == pytest.approx(0.75 * kl, abs=1e-4)


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective("reverse-kl", temperature=2.0), Objective(cross_entropy=0.3)],
)
def test_chunked_losses_match_autograd_on_full_logits(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients with respect to hidden states and unembeddings, of two students together."""
    monkeypatch.setattr(logit_map, "LOGITS_PER_CHUNK_CPU", 150)  # three tokens of 50
    monkeypatch.setattr(logit_map, "MIN_TOKENS_PER_CHUNK", 1)
    torch.manual_seed(0)
    teacher = LazyLogits(torch.randn(10, 8), nn.Linear(8, 50))
    students = [LazyLogits(torch.randn(10, d, requires_grad=True), nn.Linear(d, 50, bias=d == 4)) for d in (4, 6)]
    labels = torch.randint(0, 50, (10,))
    inputs = [tensor for s in students for tensor in (s.hidden, *s.unembed.parameters())]

    chunked = chunked_losses(teacher, students, labels, objective)
    gradients = torch.autograd.grad(2.0 * chunked[0] + chunked[1], inputs)

    with torch.no_grad():
        teacher_logits = teacher.unembed(teacher.hidden)
    full = [loss_of(objective, teacher_logits, s.unembed(s.hidden), labels).sum() for s in students]
    expected = torch.autograd.grad(2.0 * full[0] + full[1], inputs)
    torch.testing.assert_close(torch.stack(chunked), torch.stack(full))
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_summed_kl_matches_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_map, "LOGITS_PER_CHUNK_CPU", 150)
    monkeypatch.setattr(logit_map, "MIN_TOKENS_PER_CHUNK", 1)
    teacher, student = (LazyLogits(torch.randn(10, d), nn.Linear(d, 50)) for d in (8, 4))
    full = forward_kl(teacher.unembed(teacher.hidden), student.unembed(student.hidden)).sum().detach()
    assert summed_forward_kl(teacher, [student, student]).tolist() == pytest.approx([float(full)] * 2, rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"divergence": "kl"}, {"temperature": 0.0}, {"cross_entropy": 1.5}, {"cross_entropy": float("nan")}]
)
def test_rejects_objectives_out_of_range(wrong: dict) -> None:
    message = r"divergence|temperature|cross-entropy"
    with without_type_checks(), pytest.raises(InputError, match=message):
        Objective(**wrong)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_a_part_that_is_not_trained_leaves_the_other_gradients_as_they_are(trained: str) -> None:
    """The gradients are those of autograd on the full logits."""
    random = torch.Generator().manual_seed(0)
    teacher, unembed = nn.Linear(8, 50), nn.Linear(8, 50)
    states = [torch.randn(12, 8, generator=random) for _ in range(2)]
    hidden = states[1].requires_grad_(trained == "hidden")
    unembed.weight.requires_grad_(trained == "weight")
    unembed.bias.requires_grad_(trained == "bias")
    part = hidden if trained == "hidden" else getattr(unembed, trained)
    expected = forward_kl(teacher(states[0]).detach(), unembed(hidden)).sum()
    (gradient,) = torch.autograd.grad(expected, part)
    labels = torch.zeros(12, dtype=torch.long)
    (loss,) = chunked_losses(LazyLogits(states[0], teacher), [LazyLogits(hidden, unembed)], labels, Objective())
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.grad, gradient, rtol=1e-4, atol=1e-5)
    assert sum(tensor.grad is not None for tensor in (hidden, unembed.weight, unembed.bias)) == 1
