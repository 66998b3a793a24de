"""The process of a run that torchrun or accelerate started several times."""

import os


def is_first_process() -> bool:
    """Return whether this process is the first one, which alone prints and saves."""
    return int(os.environ.get("RANK", "0")) == 0


def local_device(device: str) -> str:
    """Return the GPU of this process if a launcher set one, for the device "cuda"; else the device."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device
