"""Shard a teacher and its students over processes with FSDP2 (`torch.distributed.fsdp.fully_shard`).

    torchrun --nproc-per-node 2 -m tl_distill_floor distill MODEL --shard

Every process holds a part of each weight. The weights of a layer, and those of the embeddings, are gathered while they
are used. The unembedding, with all other weights, is gathered from the forward pass until the losses of the batch are
computed; so are embeddings that are tied to it.

Only the first process reads the teacher's weights from the disk. The others have a shell of it, and receive one layer
at a time.

Checkpoints are written by the first process from gathered weights, in the format of a training in one process, so that
any number of processes can resume them. They are not written by `torch.distributed.checkpoint`, whose metadata is a
pickle: an interrupted training that somebody else left in a directory must not run code.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tl_distill_floor.annotations import Dtype, HookedModel, TeacherLike
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.students.family_models import create_model, logit_difference, sample_ids
from tl_distill_floor.distilling.students.layers import layers_of
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.distilling.training.agreement import fail_together, gather_texts
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.process_memory import return_large_blocks
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher, load_teacher_shell


def launched_with_fsdp() -> bool:
    """Return whether accelerate was started with FSDP version 2.

    On CPUs, accelerate itself ignores this setting.

    Raises:
        InputError: accelerate was started with FSDP version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("students are not trained under FSDP version 1; start accelerate with --fsdp_version 2")
    return True


def load_to_shard(teacher: TeacherLike, dtype: Dtype, accelerator: Accelerator) -> Teacher:
    """Load a teacher on the CPU in the first process, and a shell of it in the others.

    Args:
        teacher: its name, directory or file.
        dtype: dtype of the weights.
        accelerator: the processes.

    Raises:
        InputError: the teacher cannot be loaded, is in memory, or there is only one process.
    """
    if accelerator.num_processes == 1:
        raise InputError(
            "there is one process, so nothing is sharded; start several with torchrun --nproc-per-node N -m"
            " tl_distill_floor, or leave out --shard"
        )
    if not isinstance(teacher, str | os.PathLike):
        raise InputError(
            "a teacher in memory is not sharded, because every process already has all of it; give its name or"
            " directory"
        )
    if accelerator.device.type == "cpu":
        return_large_blocks()
    if accelerator.is_main_process:
        return load_teacher(teacher, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    return load_teacher_shell(str(teacher), dtype=dtype)


def build_in_first_process(teacher: HookedModel, spec: StudentSpec, accelerator: Accelerator) -> nn.Module:
    """Build a student in the first process, and send its weights to the others.

    Args:
        teacher: the teacher's model, whose weights only the first process has.
        spec: which student.
        accelerator: the processes.

    Returns:
        The same student in every process, on its device.

    Raises:
        InputError: the student cannot be built.
    """
    with fail_together(accelerator):
        if accelerator.is_main_process:
            student = build_student(teacher, spec.width, depth=spec.depth, start=spec.start, seed=spec.seed)
        else:
            student = create_model(student_config(hugging_face_config(teacher), spec.width, spec.depth))
    student.to(accelerator.device)
    _send_state(student)
    return student


def shard_teacher(teacher: HookedModel, accelerator: Accelerator) -> None:
    """Shard a teacher layer by layer: send each layer of the first process to the others, and keep a part of it.

    Args:
        teacher: the teacher's model, whose weights only the first process has; it is changed.
        accelerator: the processes.

    Raises:
        InputError: the teacher cannot be sharded, or its logits differ afterwards.
    """
    model: nn.Module = teacher.original_model  # type: ignore[attr-defined]
    name = type(model).__name__
    ids = sample_ids(model.config)  # type: ignore[arg-type]
    expected = torch.empty(0)
    with fail_together(accelerator), torch.no_grad():
        _check_same_weights(model, accelerator)
        if accelerator.is_main_process:
            expected = teacher(ids).float()
    with fail_together(accelerator), _refuse_failures(name), torch.no_grad():
        shard(model, model, accelerator, prepare=lambda module: _receive(module, accelerator.device))
        logits = teacher(ids.to(accelerator.device)).float().cpu()
        release(teacher)
    with fail_together(accelerator):
        if accelerator.is_main_process:
            difference = logit_difference(logits, expected, next(model.parameters()).dtype)
            if difference is not None:
                raise _not_shardable(name, f"its logits differ by up to {difference:.3g} afterwards")


def shard(
    module: nn.Module,
    model: nn.Module,
    accelerator: Accelerator,
    prepare: Callable[[nn.Module], object] | None = None,
) -> None:
    """Shard each layer of a model, its embeddings unless they are tied, and the rest of the module that runs it.

    Args:
        module: the module whose forward pass is called; it is changed.
        model: the `transformers` model in it, or the same module.
        accelerator: the processes.
        prepare: called with each of these parts before its weights are sharded.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    of_output = {id(weight) for weight in model.get_output_embeddings().parameters()}  # type: ignore[operator]
    is_tied = any(id(weight) in of_output for weight in embeddings.parameters())
    for part in [*layers_of(model), *([] if is_tied else [embeddings]), module]:
        if prepare is not None:
            prepare(part)
        # The weights outside the layers stay gathered after the forward pass: the losses need the unembedding.
        fully_shard(part, mesh=mesh, reshard_after_forward=part is not module)


def is_sharded(model: HookedModel | nn.Module) -> bool:
    """Return whether a model, or the model that a TransformerBridge wraps, is sharded."""
    return isinstance(_root(model), FSDPModule)


def release(model: HookedModel | nn.Module) -> None:
    """Free the gathered weights outside the layers, if the model is sharded.

    Args:
        model: a teacher whose forward pass has ended, or a student whose forward pass needed no gradients.
    """
    root = _root(model)
    if isinstance(root, FSDPModule):
        root.reshard()


def gathered(value: Any, accelerator: Accelerator) -> Any:
    """Return a copy of a nested value with every sharded tensor gathered on the CPU.

    In other processes than the first, these tensors are empty. All processes must call this. One tensor is gathered at
    a time.

    Args:
        value: dictionaries and lists of tensors and JSON values.
        accelerator: the processes.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if accelerator.is_main_process else torch.empty(0)
    if isinstance(value, dict):
        return {key: gathered(item, accelerator) for key, item in value.items()}
    return [gathered(item, accelerator) for item in value] if isinstance(value, list | tuple) else value


def gathered_model(student: nn.Module, accelerator: Accelerator) -> nn.Module | None:
    """Return a plain copy of a sharded student on the CPU in the first process, and None in the others.

    All processes must call this.

    Args:
        student: a sharded `transformers` model.
        accelerator: the processes.
    """
    state = gathered(student.state_dict(), accelerator)
    if not accelerator.is_main_process:
        return None
    plain = create_model(student.config)  # type: ignore[arg-type]
    plain.load_state_dict(state)
    plain.tie_weights()  # type: ignore[operator]
    return plain


def sharded_like(full: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a full tensor, if `like` is sharded; else the tensor.

    Args:
        full: the tensor, the same in all processes.
        like: a tensor of the same shape.
    """
    if not isinstance(like, DTensor):
        return full
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load full weights, the same in all processes, into a module that may be sharded."""
    current = module.state_dict()
    module.load_state_dict({name: sharded_like(tensor, current[name]) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the full state of an optimizer, the same in all processes, whose weights may be sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    of_weights = {
        number: {
            name: sharded_like(value, weights[int(number)])
            if isinstance(value, Tensor) and value.shape == weights[int(number)].shape
            else value
            for name, value in of_one.items()
        }
        for number, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": of_weights})


class ShardedMuon(torch.optim.Muon):
    """Muon for sharded matrices.

    A step of Muon needs the full matrix of the averaged gradient. The average stays sharded, and is gathered one matrix
    at a time, so that the step is that of a training in one process.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the matrices; see `torch.optim.Muon`."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: Tensor, group: dict[str, Any]) -> None:
        momentum, state, gradient = group["momentum"], self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum)
        assert isinstance(update, DTensor)
        full_update = update.full_tensor()
        change = nn.Parameter(torch.zeros_like(full_update))
        change.grad = full_update
        options = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
        muon = torch.optim.Muon([change], weight_decay=0.0, momentum=0.0, nesterov=False, **options)
        muon.step()  # type: ignore[no-untyped-call]
        matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(sharded_like(change.detach(), matrix))


def _root(model: HookedModel | nn.Module) -> Any:
    """Return the module that a TransformerBridge wraps, or the model itself."""
    return vars(model).get("original_model", model)


def _receive(module: nn.Module, device: torch.device) -> None:
    """Move the weights and buffers of a module to a device, and replace them by those of the first process.

    Weights that are already sharded are left out.
    """
    for holder in module.modules():
        for weight in holder.parameters(recurse=False):
            if not isinstance(weight, DTensor):
                # FSDP shards no transposed views, as which TransformerLens keeps parts of some weights.
                weight.data = weight.data.to(device).contiguous()
        for name, buffer in holder.named_buffers(recurse=False):
            setattr(holder, name, buffer.to(device))
    _send_state(module)


@torch.no_grad()
def _send_state(module: nn.Module) -> None:
    """Replace the weights and buffers of a module by those of the first process; leave out sharded weights."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if not isinstance(tensor, DTensor):
            broadcast(tensor.data, 0)


def _check_same_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Raise an InputError unless the weights and buffers of all processes have the same names, shapes and dtypes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    described = " ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors)
    if len(set(gather_texts(accelerator, described))) > 1:
        raise _not_shardable(type(model).__name__, "its configuration alone does not say which weights it has")


@contextmanager
def _refuse_failures(name: str) -> Iterator[None]:
    """Turn an error of FSDP or of a family's code into an InputError; out of memory stays as it is."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = reason_of(error)[:160]
        raise _not_shardable(name, reason) from error


def _not_shardable(name: str, reason: str) -> InputError:
    return InputError(f"a {name} teacher cannot be sharded ({reason}); leave out --shard")
