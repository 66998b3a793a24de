"""Read the tensors and settings of an SAE's file, with the configuration files that belong to it.

Nothing is unpickled except tensors and plain values.
"""

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.sae_formats.file_names import (
    CONFIG_FILES,
    PARENT_CONFIG_FILES,
    own_configs,
    training_folder,
)

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Parts that DataParallel and torch.compile put before the names of tensors."""
_LEFTOVERS = re.compile(r"optim|sched|scaler|ema|exp_avg|history|metric|loss|rng")
"""Names of the parts of a checkpoint that only a training needs."""
_CHECKPOINTS = re.compile(r"(?:checkpoints?|ckpts?|steps?|epochs?|final|best|latest|last)(?:[-_ ]?\d+)?|\d+")
"""Names of folders of checkpoints, whose configuration is in the parent folder."""
MAX_DEPTH = 4
"""Nested objects in which tensors are looked for."""


@dataclass(frozen=True)
class SaeFile:
    """An SAE's weights with everything that lies with them."""

    path: Path
    name: str
    """Name for error messages."""
    location: PurePosixPath
    """Path, or owner, repository and path on the Hub; some formats name the layer or the model in it."""
    tensors: dict[str, Tensor]
    """Floating-point tensors and scalars by name, without prefixes such as `module.`; tensors of integers, such as
    counters, are left out."""
    wrapper: str
    """Key of the checkpoint under which the weights are; empty at the top level."""
    stored: dict[str, Any]
    """What the checkpoint holds next to the weights."""
    configs: dict[str, dict[str, Any]]
    """Content of the configuration files in the same folder, by file name."""
    parent_configs: dict[str, dict[str, Any]]
    """Content of the configuration files in the parent folder, by file name; see `training_folder`."""
    hook_name: str | None = None
    """Hook point that the user states, which takes precedence over the files."""

    @property
    def names(self) -> set[str]:
        """Names of the tensors."""
        return set(self.tensors)

    def config_with(self, *keys: str) -> dict[str, Any] | None:
        """Return the first configuration, of the checkpoint or next to it, that has all of these keys."""
        stored = [value for value in self.stored.values() if isinstance(value, Mapping)]
        for config in (*stored, *self.configs.values()):
            if all(key in config for key in keys):
                return dict(config)
        return None


def read_sae_file(path: Path, name: str) -> SaeFile:
    """Read the weights of an SAE to the CPU, and the configuration files that belong to them.

    Args:
        path: a `.pt`, `.pth`, `.safetensors` or `.npz` file.
        name: name of the SAE: the path, or "owner/name:path" of the Hub.

    Raises:
        InputError: a file is not complete, holds no weights, or could run code.
    """
    content = read_state_file(path)
    wrapper, tensors = _find_tensors(content, name)
    squeezed = {key: tensor.squeeze() for key, tensor in tensors.items()}
    # A configuration that is named after the weights says more of them than one of the folder.
    configs = _read_configs(path.parent, (*own_configs(path.name), *CONFIG_FILES))
    on_hub = not Path(name).expanduser().exists() and ":" in name
    return SaeFile(
        path=path,
        name=name,
        location=PurePosixPath(name.replace(":", "/", 1)) if on_hub else PurePosixPath(path.absolute().as_posix()),
        tensors={
            key: tensor.float() if tensor.ndim == 0 else tensor
            for key, tensor in squeezed.items()
            if tensor.is_floating_point() or tensor.ndim == 0
        },
        wrapper=wrapper,
        stored={key: value for key, value in content.items() if not isinstance(value, Tensor)},
        configs=configs or _configs_of_checkpoints(path.parent),
        parent_configs=_read_configs(training_folder(path.parent), PARENT_CONFIG_FILES),
    )


def read_state_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code of a pickle, or raise an InputError."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty, expected the weights of an SAE; download or save it again")
    content: Any = None
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected a state dict; write a SAELens directory with"
            " sae.save_model(path) and give that"
        )
    return {str(key): value for key, value in content.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds one object, or raise an InputError."""
    import yaml  # type: ignore[import-untyped]

    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = dict(json.loads(text) if is_json else yaml.safe_load(text))
        return {str(key): value for key, value in content.items()}
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if is_json else "YAML"
        raise InputError(f"{path} is not a complete {kind} object; download or save the SAE again") from error


def shapes_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the names and shapes of some tensors, for an error message."""
    return some([f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()])


def some(names: Mapping[str, Any] | list[str], most: int = 8) -> str:
    """Return the first names of a list, and how many more there are."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _configs_of_checkpoints(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations of a training, if a folder holds only its checkpoints."""
    return _read_configs(folder.parent, CONFIG_FILES) if _CHECKPOINTS.fullmatch(folder.name.lower()) else {}


def _read_configs(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    files = [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]
    configs = {file.name: read_config(file) for file in files}
    return {name: config for name, config in configs.items() if not _is_of_a_language_model(config)}


def _is_of_a_language_model(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of a transformers model, which says nothing of an SAE."""
    return "model_type" in config and ("architectures" in config or "transformers_version" in config)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({_first_line(error)}); download or save it again"
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(
            f"{path} is not a complete NumPy archive ({_first_line(error)}); download or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the pickle protocol
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler can raise anything on a foreign file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and path.read_bytes()[:1] == b"\x80"):
            raise InputError(
                f"{path} is a pickle of {named.group(1) if named else 'other objects'}, which could run code and is "
                "not opened; write a SAELens directory with sae.save_model(path) and give that"
            ) from error
        raise InputError(f"{path} is not a complete torch file; download or save it again") from error


def _first_line(error: BaseException) -> str:
    return reason_of(error)[:120].rstrip(". ")


def _find_tensors(content: Mapping[str, Any], name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the key under which the weights are, and the weights without prefixes."""
    by_key = dict(_nested_weights(content, ""))
    if not by_key:
        raise InputError(
            f"{name} holds no matrices (its keys: {some(content)}); expected an encoder and a decoder of an SAE"
        )
    if len(by_key) > 1:
        raise InputError(
            f"{name} holds weights under several keys ({some(by_key)}); save the SAE that you want on its own, with"
            " sae.save_model(path)"
        )
    ((key, tensors),) = by_key.items()
    return key.removeprefix("top level"), _without_prefixes(tensors)


def _nested_weights(content: Mapping[str, Any], at: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    here = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if any(tensor.is_floating_point() and tensor.squeeze().ndim >= 2 for tensor in here.values()):
        yield at or "top level", here
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < MAX_DEPTH and not _LEFTOVERS.search(str(key).lower()):
            yield from _nested_weights(value, f"{at}.{key}".lstrip("."), depth + 1)


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    heads = {name.partition(".")[0] for name in stripped}
    if len(heads) == 1 and all("." in name for name in stripped) and not re.match(r"enc|dec", next(iter(heads))):
        return _without_prefixes({name.partition(".")[2]: tensor for name, tensor in stripped.items()})
    return stripped
