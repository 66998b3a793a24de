"""The optimizers of a student, and the running average of its weights."""

import torch
from torch import nn

from tests.helpers.trainers import plain_model
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.distilling.training.optimization import create_optimizers, running_average
from tl_distill_floor.distilling.training.student_module import StudentModule


def test_the_average_weighs_step_t_of_n_by_its_share_of_n_to_the_17() -> None:
    """With γ = 16 the weight of step t among n is the integral of the power over the step: (t¹⁷ − (t − 1)¹⁷) / n¹⁷."""
    student = nn.Linear(1, 1, bias=False)
    average, values = running_average(student), [3.0, -1.0, 5.0, 2.0]
    for value in values:
        nn.init.constant_(student.weight, value)
        average.update_parameters(student)
    weights = torch.arange(5, dtype=torch.float64).pow(17).diff() / 4**17
    expected = weights @ torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(average.module.weight.double().squeeze(), expected)
    assert not average.module.weight.requires_grad


def test_muon_trains_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    """The projection of hook matching is a matrix, but of no layer."""
    spec = StudentSpec(16, match=Match("blocks.0.hook_resid_post", 0))
    module = StudentModule(plain_model("Llama"), spec, 16)
    adamw, muon = create_optimizers(module, DistillConfig(lr=0.01))
    names = {id(weight): name for name, weight in module.named_parameters()}
    of_muon, of_adamw = (
        {names[id(weight)] for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in (muon, adamw)
    )
    assert of_muon | of_adamw == set(names.values())
    assert not of_muon & of_adamw
    assert {name.split(".")[-2] for name in of_muon} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert {(group["lr"], group["weight_decay"]) for group in (*muon.param_groups, *adamw.param_groups)} == {
        (0.01, 0.0)
    }
    (only,) = create_optimizers(module, DistillConfig(optimizer="adamw"))
    assert sum(len(group["params"]) for group in only.param_groups) == len(names)
