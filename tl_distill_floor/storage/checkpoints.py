"""Save and load interrupted trainings: weights, optimiser states and learning curves in one safetensors file.

Nothing is unpickled. A digest covers the full content, since a changed bit in an optimiser state would silently change
the training.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.storage.versioned import HEADER, VERSION, check_format

CHECKPOINT_SECONDS = 120.0
"""Time between checkpoints."""


def save_checkpoint(
    path: Path, kind: str, states: dict[str, dict[str, Any]], identity: dict[str, Any], step: int
) -> Path:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        kind: what is trained, part of the format name.
        states: state of everything that is trained, by name: nested dictionaries and lists of tensors and JSON values.
        identity: settings that must be equal when the training is resumed.
        step: number of steps done.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    scalars = {"states": _extract_tensors(states, "", tensors), "identity": identity, "step": step}
    header = {"format": f"tl-distill-floor/{kind}", "version": VERSION, "scalars": scalars}
    header["digest"] = _digest(scalars, tensors)
    return write_atomically(path, save(tensors, metadata={HEADER: json.dumps(header)}))


def load_checkpoint(path: Path, kind: str, identity: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], int]:
    """Read what `save_checkpoint` wrote.

    Returns:
        The states, and the number of steps done.

    Raises:
        InputError: the file is damaged, in another format, of another version, or of another training.
    """
    from safetensors import safe_open

    with report_damaged_checkpoint(path):
        with safe_open(path, framework="pt") as file:
            header = _checked_header(path, kind, file.metadata())
            scalars = header["scalars"]
            _check_identity(path, identity, scalars["identity"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["digest"] != _digest(scalars, tensors):
            raise ValueError("its content was changed")
        return _insert_tensors(scalars["states"], tensors), int(scalars["step"])


def checkpoint_identity(path: Path, kind: str) -> dict[str, Any]:
    """Return the settings that must be equal when the training of a checkpoint is resumed.

    Args:
        path: the file.
        kind: what is trained.

    Raises:
        InputError: the file is damaged, in another format, or of another version.
    """
    from safetensors import safe_open

    with report_damaged_checkpoint(path), safe_open(path, framework="pt") as file:
        identity: dict[str, Any] = _checked_header(path, kind, file.metadata())["scalars"]["identity"]
        return identity


@contextmanager
def report_damaged_checkpoint(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged checkpoint causes into an InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (
        OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError
    ) as error:  # fmt: skip
        raise InputError(f"{path} is not a complete checkpoint ({error}); delete it to start again") from error


def _checked_header(path: Path, kind: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Return the header of a checkpoint; raise an InputError if its format or its version is another one."""
    header: dict[str, Any] = json.loads((metadata or {}).get(HEADER, "{}"))
    check_format(path, kind, header.get("format"), header.get("version"))
    return header


def _digest(scalars: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(scalars, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_identity(path: Path, identity: dict[str, Any], stored: dict[str, Any]) -> None:
    # A round trip through JSON, so that tuples equal the lists of the file.
    differing = [key for key, value in json.loads(json.dumps(identity)).items() if value != stored.get(key)]
    if differing:
        raise InputError(
            f"{path} is of a training with another {', '.join(differing)}; use the options it was started with, or"
            " delete it to start again"
        )


def _extract_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move every tensor of a nested value into `tensors`, and leave a reference to its name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _extract_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_extract_tensors(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _insert_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace every reference of a nested value by its tensor."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _insert_tensors(item, tensors) for key, item in value["items"]}
    return [_insert_tensors(item, tensors) for item in value] if isinstance(value, list) else value
