"""How students are trained: what each of them is, the schedule, the optimisers, the running average of the weights."""

import torch
from torch import Tensor, nn

from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.forward import Body, layers_of
from tl_distill_floor.distilling.matching import Matcher

AVERAGE_POWER = 16.0
"""The running average weighs the weights of step t by about t to this power: 6 % of the training, as a width."""


class Trainee(nn.Module):
    """A student up to its unembedding, and the projection that hook matching learns beside it."""

    def __init__(self, student: nn.Module, spec: StudentSpec, d_target: int) -> None:
        super().__init__()
        self.body = Body(student, spec.match.layer if spec.match else None)
        self.matcher = Matcher(spec.width, d_target, spec.seed) if spec.match else None

    def forward(self, ids: Tensor, counts: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(last hidden states of the tokens that count, matching loss)."""
        hidden, matched = self.body(ids)
        if self.matcher is None:
            return hidden[counts], None
        assert matched is not None
        assert target is not None
        return hidden[counts], self.matcher(matched[counts], target)

    @property
    def student(self) -> nn.Module:
        return self.body.model


def optimizers_of(trainee: Trainee, training: DistillConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the layers where it was asked for (Jordan et al. 2024)."""
    matrices = [weight for weight in layers_of(trainee.student).parameters() if weight.ndim == 2]
    of_muon = {id(weight) for weight in matrices} if training.optimizer == "muon" else set()
    rest = [weight for weight in trainee.parameters() if id(weight) not in of_muon]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, training.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if of_muon:
        made.append(torch.optim.Muon(matrices, training.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return made


class Average:
    """The running average of a student's weights, wider the longer it has run (Karras et al. 2024, eq. 7).

    At a constant learning rate it stands about where a decay of the rate would end (Hägele et al. 2024, sec. 4), so
    that every point of a learning curve is one that training could have ended at.
    """

    def __init__(self, student: nn.Module) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in student.named_parameters()}

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1."""
        share = 1.0 - (1.0 - 1.0 / step) ** (AVERAGE_POWER + 1.0)
        torch._foreach_lerp_(list(self.weights.values()), [w.detach() for w in student.parameters()], share)

    @torch.no_grad()
    def swapped(self, student: nn.Module) -> None:
        """Exchange the average and the weights; twice is as before."""
        for name, weight in student.named_parameters():
            mine = self.weights[name]
            mine_data = mine.clone()
            mine.copy_(weight)
            weight.copy_(mine_data)
