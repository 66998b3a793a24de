"""Divergences against float64 and torch's own, and the chunked loss against the whole one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import kl_div

from tl_distill_floor.distilling import losses
from tl_distill_floor.distilling.losses import NO_LABEL, Ends, Objective, chunked_losses, summed_kl
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl


def logits(seed: int, n: int = 12, vocabulary: int = 50) -> torch.Tensor:
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


def of(objective: Objective, teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return objective(objective.target(teacher), student, labels)


def test_forward_kl_against_torch_and_float64() -> None:
    teacher, student = logits(0), logits(1)
    of_torch = kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    torch.testing.assert_close(forward_kl(teacher, student), of_torch)
    torch.testing.assert_close(forward_kl(teacher, student).double(), (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
    labels = torch.zeros(len(teacher), dtype=torch.long)
    torch.testing.assert_close(of(Objective("reverse-kl"), teacher, student, labels), forward_kl(student, teacher))
    torch.testing.assert_close(of(Objective(), teacher, student, labels), of_torch, rtol=1e-4, atol=1e-5)


def test_a_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): ½ ln 2 + ½ ln(2/3) = 0.1438; the other way ¼ ln(1/2) + ¾ ln(3/2) = 0.1308.
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(forward_kl(p, q)) == pytest.approx(0.1438, abs=1e-4)
    assert float(forward_kl(q, p)) == pytest.approx(0.1308, abs=1e-4)


@given(st.integers(0, 10**6))
def test_a_kl_is_never_below_0_and_0_only_of_equals(seed: int) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    assert float(forward_kl(teacher, student).min()) > 0
    assert float(forward_kl(teacher, teacher).abs().max()) < 1e-6


def test_temperature_and_cross_entropy_by_hand() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    labels = torch.tensor([0])
    # At T = 2 the teacher's logits are (1, 0): KL from even odds = ln 2 - H(σ(1)) = 0.1110, times T² = 0.4441.
    hot = of(Objective(temperature=2.0), teacher, student, labels)
    assert float(hot) == pytest.approx(0.4441, abs=1e-3)
    # Cross-entropy of even odds is ln 2; a quarter of it, and three quarters of the KL.
    kl = float(of(Objective(), teacher, student, labels))
    mixed = of(Objective(cross_entropy=0.25), teacher, student, labels)
    assert float(mixed) == pytest.approx(0.75 * kl + 0.25 * 0.6931, abs=1e-4)
    unlabelled = of(Objective(cross_entropy=0.25), teacher, student, torch.tensor([NO_LABEL]))
    assert float(unlabelled) == pytest.approx(0.75 * kl, abs=1e-4)


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective("reverse-kl", temperature=2.0), Objective(cross_entropy=0.3)],
)
def test_chunks_equal_the_whole(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, and gradients in hidden states and unembeddings, of two students at once, against plain autograd."""
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", {"cpu": 150})  # three tokens of 50
    monkeypatch.setattr(losses, "FEWEST_TOKENS", 1)
    torch.manual_seed(0)
    teacher = Ends(torch.randn(10, 8), nn.Linear(8, 50))
    students = [Ends(torch.randn(10, d, requires_grad=True), nn.Linear(d, 50, bias=d == 4)) for d in (4, 6)]
    labels = torch.randint(0, 50, (10,))
    inputs = [given for s in students for given in (s.hidden, *s.unembed.parameters())]

    found = chunked_losses(teacher, students, labels, objective)
    gradients = torch.autograd.grad(2.0 * found[0] + found[1], inputs)

    with torch.no_grad():
        of_teacher = teacher.unembed(teacher.hidden)
    whole = [of(objective, of_teacher, s.unembed(s.hidden), labels).sum() for s in students]
    expected = torch.autograd.grad(2.0 * whole[0] + whole[1], inputs)
    torch.testing.assert_close(torch.stack(found), torch.stack(whole))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_summed_kl_is_that_of_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", {"cpu": 150})
    monkeypatch.setattr(losses, "FEWEST_TOKENS", 1)
    teacher, student = Ends(torch.randn(10, 8), nn.Linear(8, 50)), Ends(torch.randn(10, 4), nn.Linear(4, 50))
    whole = forward_kl(teacher.unembed(teacher.hidden), student.unembed(student.hidden)).sum().detach()
    assert summed_kl(teacher, [student, student]).tolist() == pytest.approx([float(whole)] * 2, rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"divergence": "kl"}, {"temperature": 0.0}, {"cross_entropy": 1.5}, {"cross_entropy": float("nan")}]
)
def test_what_is_no_objective_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=r"divergence|temperature|cross-entropy"):
        Objective(**wrong)
