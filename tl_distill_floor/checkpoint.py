"""A training that was interrupted, of students or of an SAE: weights, optimiser states and curves, in one file.

One safetensors file, written atomically: nothing in it is unpickled. A digest of all of it is read again, since a
changed bit in an optimiser's state would change the training in silence.
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
from tl_distill_floor.files import HEADER, VERSION, check_format, write_atomically

CHECKPOINT_SECONDS = 120.0
"""Time between checkpoints."""


def save_checkpoint(
    path: Path, kind: str, states: dict[str, dict[str, Any]], identity: dict[str, Any], step: int
) -> Path:
    """Write it.

    Args:
        path: the file.
        kind: what is trained, in the name of the format.
        states: of everything that is trained, by name: nested dictionaries and lists of tensors and of what JSON holds.
        identity: what must be equal when it is read again.
        step: steps done.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain = _emptied(states, "", tensors)
    scalars = {"states": plain, "identity": identity, "step": step}
    header = {"format": f"tl-distill-floor/{kind}", "version": VERSION, "scalars": scalars}
    header["digest"] = _digest(scalars, tensors)
    return write_atomically(path, save(tensors, metadata={HEADER: json.dumps(header)}))


def load_checkpoint(path: Path, kind: str, identity: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], int]:
    """(states, steps done) of what `save_checkpoint` wrote.

    Raises:
        InputError: the file is damaged, foreign, of another version, or of another training.
    """
    from safetensors import safe_open

    with complete(path):
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            check_format(path, kind, header.get("format"), header.get("version"))
            scalars = header["scalars"]
            _check_same(path, identity, scalars["identity"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["digest"] != _digest(scalars, tensors):
            raise ValueError("some of it was changed")
        return _filled(scalars["states"], tensors), int(scalars["step"])


@contextmanager
def complete(path: Path) -> Iterator[None]:
    """One sentence where what stands in a checkpoint fits nothing.

    Raises:
        InputError: whatever else is raised inside of a damaged file.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (
        OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError
    ) as error:  # fmt: skip
        raise InputError(f"{path} is no complete checkpoint ({error}); delete it to start again") from error


def _digest(scalars: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(scalars, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_same(path: Path, identity: dict[str, Any], found: dict[str, Any]) -> None:
    differing = [key for key, value in json.loads(json.dumps(identity)).items() if value != found.get(key)]
    if differing:
        raise InputError(
            f"{path} is of a training with another {', '.join(differing)}; give what it was begun with, or delete it to"
            " start again"
        )


def _emptied(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value with its tensors taken out, each leaving its name."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {"tensor": place}
    if isinstance(value, dict):
        return {"items": [[key, _emptied(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_emptied(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _filled(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with its tensors back in."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _filled(item, tensors) for key, item in value["items"]}
    return [_filled(item, tensors) for item in value] if isinstance(value, list) else value
