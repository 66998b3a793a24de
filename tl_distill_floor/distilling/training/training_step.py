"""One training step of a sweep: forward and backward passes over a batch, and an update of each student."""

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_distill_floor.distilling.training.losses import chunked_losses
from tl_distill_floor.distilling.training.matching import matching_target
from tl_distill_floor.distilling.training.sharding import release
from tl_distill_floor.distilling.training.student_module import TokenPositions, counted_positions
from tl_distill_floor.distilling.training.student_state import StudentInTraining
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.measuring.teacher_backbone import BackboneOutput, TeacherBackbone
from tl_distill_floor.sources.devices import copy_to_device


def train_step(sweep: Sweep, teacher: TeacherBackbone) -> list[float]:
    """Train every active student on one batch.

    A student whose loss is not finite keeps its weights.

    Args:
        sweep: the students; its `step` is not changed.
        teacher: the teacher without its unembedding.

    Returns:
        The training loss of every active student, nats per token.
    """
    config, accelerator, active = sweep.config, sweep.accelerator, sweep.active
    ids = sweep.split.batch(sweep.step, config)
    n_counted = max(int(sweep.split.stream.counted(ids).sum()), 1)  # a batch may have only special tokens
    # DDP averages gradients over the processes, while losses are sums divided by the tokens of the full batch.
    scale = accelerator.num_processes / n_counted
    summed = torch.zeros(len(active), device=accelerator.device)
    parts = ids[accelerator.process_index :: accelerator.num_processes].chunk(config.accumulate)
    for part in parts:
        with _synchronized_if(part is parts[-1], sweep):
            for i, loss in enumerate(summed_losses(sweep, teacher, part)):
                accelerator.backward(loss * scale)
                summed[i] += loss.detach()
    losses: list[float] = (accelerator.reduce(summed, "sum") / n_counted).tolist()
    for student, mean_loss in zip(active, losses, strict=True):
        if math.isfinite(mean_loss):
            student.update(sweep.lr, config.clip, accelerator)
    return losses


def summed_losses(
    sweep: Sweep, teacher: TeacherBackbone, ids: Int[Tensor, "sequence position"]
) -> list[Float[Tensor, ""]]:
    """Return the training loss of every active student, summed over the counted tokens of some sequences, in nats.

    Args:
        sweep: the students.
        teacher: the teacher without its unembedding.
        ids: token ids, on the CPU: what is computed from them there does not wait for a GPU.
    """
    active, device = sweep.active, sweep.accelerator.device
    counted = sweep.split.stream.counted(ids)
    labels = copy_to_device(sweep.split.labels(ids)[counted], device)
    positions = counted_positions(counted, device)
    ids = copy_to_device(ids, device)
    with _autocast(sweep):
        teacher_output = teacher(ids)
        targets = _matching_targets(sweep, active, teacher_output, positions)
        outputs = [
            student.distributed_module(ids, positions, target) for student, target in zip(active, targets, strict=True)
        ]
        backbones = [student.module.backbone for student in active]
        losses = chunked_losses(
            teacher.logits(teacher_output.last_hidden[positions]),
            [backbone.logits(hidden) for backbone, (hidden, _) in zip(backbones, outputs, strict=True)],
            labels,
            sweep.config.objective,
        )
    release(sweep.teacher.model)
    share = sweep.step / sweep.n_steps
    for i, (student, (_, distance)) in enumerate(zip(active, outputs, strict=True)):
        if distance is not None:
            assert student.spec.match is not None
            losses[i] = losses[i] + student.spec.match.weight_at(share) * distance
    return losses


@torch.no_grad()
def set_matching_variance(sweep: Sweep, teacher: TeacherBackbone) -> None:
    """Divide the matching losses by the variance of their targets in the first batch that has counted tokens.

    Args:
        sweep: the students.
        teacher: the teacher without its unembedding.
    """
    matching = [student for student in sweep.students if student.module.matcher is not None]
    if not matching:
        return
    batches = (sweep.split.batch(step, sweep.config) for step in range(sweep.n_steps))
    ids = next((ids for ids in batches if sweep.split.stream.counted(ids).any()), None)
    if ids is None:
        return
    device = sweep.accelerator.device
    positions = counted_positions(sweep.split.stream.counted(ids), device)
    targets = _matching_targets(sweep, matching, teacher(ids.to(device)), positions)
    release(sweep.teacher.model)
    for student, target in zip(matching, targets, strict=True):
        assert student.module.matcher is not None
        assert target is not None
        student.module.matcher.set_variance(target)


def _matching_targets(
    sweep: Sweep, students: list[StudentInTraining], teacher: BackboneOutput, positions: TokenPositions
) -> list[Float[Tensor, "token d_target"] | None]:
    """Return the target of each student's hook matching at the counted tokens; None without hook matching."""
    specs, activation = [student.spec for student in students], teacher.matched
    if activation is None:
        return [None] * len(specs)
    d_model = int(sweep.teacher.model.cfg.d_model)
    # Students often share a target, which is computed once.
    shared = {spec.target for spec in specs if spec.match}
    targets = {target: matching_target(activation, positions, target, d_model) for target in shared}
    return [targets[spec.target] if spec.match else None for spec in specs]


def _synchronized_if(synchronized: bool, sweep: Sweep) -> AbstractContextManager[object]:
    """Return a context in which processes exchange gradients only if `synchronized`.

    Sharded students exchange the gradients of every part, since no process has memory for all of them.
    """
    stack = ExitStack()
    if not synchronized and not sweep.is_sharded:
        for student in sweep.active:
            stack.enter_context(sweep.accelerator.no_sync(student.distributed_module))
    return stack


def _autocast(sweep: Sweep) -> AbstractContextManager[object]:
    """Return the context of the precision that forward passes have."""
    if sweep.config.dtype == "fp32":
        return nullcontext()
    return torch.autocast(sweep.accelerator.device.type, torch.bfloat16)
