"""Optimizers, and the running average of a student's weights."""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tl_distill_floor.distilling.students.layers import layers_of
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.sharding import ShardedMuon, is_sharded
from tl_distill_floor.distilling.training.student_module import StudentModule

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
AVERAGE_POWER = 16.0
"""γ of the power-law average: the weights of step t have a weight of about t^γ, which spans 6 % of the training."""


def create_optimizers(module: StudentModule, config: DistillConfig) -> list[torch.optim.Optimizer]:
    """Create the optimizers of a student: AdamW, and Muon for the layers' matrices if the configuration says so.

    Args:
        module: the student that is trained.
        config: its `optimizer` and `lr` are used.

    References:
        Jordan et al. 2024, Muon.
    """
    matrices = [weight for weight in layers_of(module.student).parameters() if weight.ndim == 2]
    muon_ids = {id(weight) for weight in matrices} if config.optimizer == "muon" else set()
    others = [weight for weight in module.parameters() if id(weight) not in muon_ids]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    ]
    if muon_ids:
        muon = ShardedMuon if is_sharded(module) else torch.optim.Muon
        optimizers.append(muon(matrices, config.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def running_average(student: nn.Module) -> AveragedModel:
    """Return a copy of a student whose weights are to be the power-law average over the training.

    The average spans the same share of the training at every step (Karras et al. 2024, eq. 7). At a constant learning
    rate, its loss is about the loss that a decay of the learning rate would end at (Hägele et al. 2024, sec. 4). So
    every point of a learning curve is a loss that the training could have ended at.

    Args:
        student: the student; call `update_parameters` of the copy with it after every step.
    """

    def update(weights: Tensors, current: Tensors, _n_averaged: Tensor | int) -> None:
        # The number of steps that is passed is on the weights' device; reading it would wait for a GPU.
        _update_power_average(weights, current, int(averaged.n_averaged))

    averaged = AveragedModel(student, multi_avg_fn=update)
    averaged.requires_grad_(False)
    return averaged


@torch.no_grad()
def _update_power_average(averaged: Tensors, current: Tensors, n_averaged: int) -> None:
    """Add the weights of the current step to the averages of `n_averaged` steps."""
    step = n_averaged + 1
    share = 1.0 - (1.0 - 1.0 / step) ** (AVERAGE_POWER + 1.0)
    # Not lerp: the difference of two weights of −inf, which mask tokens, is NaN.
    torch._foreach_mul_(averaged, 1.0 - share)
    torch._foreach_add_(averaged, current, alpha=share)
