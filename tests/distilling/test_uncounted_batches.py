"""Tests of batches in which no position is counted, and of training losses that are not finite."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.helpers.trainers import arguments, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.distilling.hf_trainer.hook_matching import HookMatching
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.losses import NO_LABEL, Objective
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_step import set_matching_variance, train_step
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.sources.teachers import load_teacher

ROW = [5, 6, 7, 8]
MATCHES = [None, Match("blocks.0.hook_resid_post", 0)]


@pytest.mark.parametrize("match", MATCHES)
def test_trainer_learns_nothing_from_a_batch_without_counted_positions(match: Match | None, tmp_path: Path) -> None:
    teacher, student = plain_model("Llama"), plain_model("Llama", 1)
    before = copy.deepcopy(student.state_dict())
    rows = [{"input_ids": ROW, "labels": [NO_LABEL] * 4}]
    args = arguments(tmp_path, max_steps=2)
    trainer = DistillationTrainer(student, args, teacher=teacher, train_dataset=rows, match=match)
    trainer.train()
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert [(line["loss"], line["grad_norm"]) for line in steps] == [(0.0, 0.0)] * 2
    assert all(torch.equal(before[name], weight) for name, weight in student.state_dict().items() if name in before)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([{"input_ids": ROW}]))
    assert 0 < loss.item() < 1e4  # hook matching has not taken the empty batch for one of constant targets


def test_the_variance_of_targets_is_that_of_the_first_batch_with_tokens() -> None:
    matching, target = HookMatching(3, 2, seed=0), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert matching(torch.zeros(0, 3), target[:0], Accelerator(cpu=True)).item() == 0
    distance = matching(torch.zeros(2, 3), target, Accelerator(cpu=True))
    bias = matching.matcher.projection.bias.detach()
    assert float(matching.variance) == 1.0
    assert distance.item() == pytest.approx(float((bias - target).square().sum()))


def test_one_target_has_no_variance() -> None:
    """The squared distance would be divided by 0, and be that large in all later steps."""
    matching, target = HookMatching(3, 2, seed=0), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert matching(torch.ones(1, 3), target[:1], Accelerator(cpu=True)).item() == 0
    assert matching(torch.ones(2, 3), target[:1].expand(2, 2), Accelerator(cpu=True)).item() == 0
    assert matching(torch.ones(2, 3), target, Accelerator(cpu=True)).item() > 0
    assert float(matching.variance) == 1.0


@pytest.mark.parametrize("match", MATCHES)
def test_sweep_learns_nothing_from_a_batch_of_special_tokens(
    bridge: Any, ids: torch.Tensor, match: Match | None
) -> None:
    eos = bridge.tokenizer.eos_token_id
    config = DistillConfig(n_tokens=48 * 32, batch_size=1, n_heldout_tokens=128, seed=2)
    split = read_text_split(load_teacher(bridge), ids[:8], ids[8:12], config)
    split = dataclasses.replace(split, train=torch.cat([torch.full((40, ids.shape[1]), eos), split.train]))
    sweep = Sweep(load_teacher(bridge), [StudentSpec(8, match=match)], split, config, Accelerator(cpu=True))
    counted = [bool((split.batch(step, config) != eos).any()) for step in range(sweep.n_steps)]
    assert not counted[0]
    with teacher_backbone(bridge, sweep.teacher_hook) as backbone:
        set_matching_variance(sweep, backbone)
        assert train_step(sweep, backbone) == [0.0]
        sweep.step = counted.index(True)
        assert 0 < train_step(sweep, backbone)[0] < 1e4


@pytest.mark.parametrize(
    ("objective", "value", "advice"),
    [
        (Objective(), torch.nan, "set learning_rate to 0.0033"),
        (Objective("reverse-kl"), torch.inf, "set the divergence to forward-kl"),
        (Objective(cross_entropy=0.5), torch.inf, "set cross-entropy to 0"),
    ],
)
def test_trainer_stops_before_a_loss_that_is_not_finite_changes_weights(
    objective: Objective, value: float, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = plain_model("Llama", 1)
    before = copy.deepcopy(student.state_dict())
    trainer = DistillationTrainer(
        student, arguments(tmp_path), teacher=plain_model("Llama"), train_dataset=[{"input_ids": ROW}],
        objective=objective,
    )  # fmt: skip
    compute_loss = trainer.compute_loss
    monkeypatch.setattr(trainer, "compute_loss", lambda *given, **named: compute_loss(*given, **named) * value)
    with pytest.raises(InputError, match=rf"training diverged at step 1 \(loss {value}, .*; {advice}"):
        trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in student.state_dict().items())
