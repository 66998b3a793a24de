"""Describe the device, the driver and the libraries of a run of `gpu.py`."""

import datetime
import platform
import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import torch

LIBRARIES = ("transformers", "transformer-lens", "sae-lens")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the fields that each row of results has."""
    is_cuda = device.type == "cuda"
    precision = torch.get_float32_matmul_precision()
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"cpu, {torch.get_num_threads()} threads",
        "driver": _driver() if is_cuda else "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "fp32 matrix products": f"{precision} (TF32 {'off' if precision == 'highest' else 'on'})",
        "TF32 in cuDNN": "on" if torch.backends.cudnn.allow_tf32 else "off",
        "bf16": "weights and activations of the teacher; the SAE is in fp32; students under autocast",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str:
    """Return the version of NVIDIA's driver; an empty string if it is not known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip().split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""
