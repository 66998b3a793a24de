"""Check torch devices, choose one for what is loaded, and copy tensors between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError, reason_of

AUTO_DEVICE = "auto"
"""Spreads the layers of a large teacher over all devices (accelerate's device map)."""
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Names of torch's dtypes, by the names that options have."""


def main_device(device: str) -> str:
    """Return the device of everything but the teacher's layers: with "auto" the first GPU, or the CPU."""
    return device if device != AUTO_DEVICE else "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, advice: str = "set --device cpu") -> None:
    """Raise an InputError unless torch can hold float64 numbers on `device`.

    Args:
        device: a torch device.
        advice: what the user can do otherwise.
    """
    if device == AUTO_DEVICE:
        raise InputError(
            "device auto spreads a teacher over devices to measure, compare or probe it; name one device for this"
        )
    try:
        torch.empty(1, dtype=torch.float64, device=device)
    except TypeError as error:  # mps
        raise InputError(f"device {device!r} has no float64, which sums need; {advice}") from error
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"torch cannot use device {device!r} on this machine ({reason_of(error):.60}); {advice}"
        ) from error


def device_of(model: HookedModel | nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    first: Tensor = next(model.parameters())
    return first.device


def is_gpu(device: torch.device) -> bool:
    """Return whether a device computes while Python goes on."""
    return device.type == "cuda"


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A copy from the CPU to a GPU does not wait for earlier work of the GPU.

    Args:
        values: the tensor, which must not be changed before the copy is used.
        device: the device.
    """
    if is_gpu(device) and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def copy_to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors on the CPU. Copies from a GPU are made at the same time, and waited for once.

    Args:
        tensors: tensors of one device.
    """
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if not tensors or not is_gpu(tensors[0].device):
        return copies
    torch.cuda.current_stream(tensors[0].device).synchronize()
    # Copied once more, since they are in page-locked memory, which is scarce.
    return [copy.clone() for copy in copies]
