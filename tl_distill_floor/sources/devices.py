"""Check torch devices, and choose one for what is loaded."""

from tl_distill_floor.errors import InputError

AUTO_DEVICE = "auto"
"""Spreads the layers of a large teacher over all devices (accelerate's device map)."""
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Names of torch's dtypes, by the names that options have."""


def main_device(device: str) -> str:
    """Return the device of everything but the teacher's layers: with "auto" the first GPU, or the CPU."""
    import torch

    return device if device != AUTO_DEVICE else "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, advice: str = "set --device cpu") -> None:
    """Raise an InputError unless torch can hold float64 numbers on `device`.

    Args:
        device: a torch device.
        advice: what the user can do otherwise.
    """
    import torch

    if device == AUTO_DEVICE:
        raise InputError(
            "device auto spreads a teacher over devices to measure, compare or probe it; name one device for this"
        )
    try:
        torch.empty(1, dtype=torch.float64, device=device)
    except TypeError as error:  # mps
        raise InputError(f"device {device!r} has no float64, which sums need; {advice}") from error
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"torch cannot use device {device!r} on this machine; {advice}") from error
