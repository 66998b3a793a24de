"""Read and write the package's own files: safetensors and JSON with a format name and a version."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.atomic import write_atomically

Record = TypeVar("Record")
VERSION = 1
"""Version of the file formats."""
LARGEST_FLOAT, LARGEST_COUNT = 1e100, 2**53
"""Largest numbers accepted in a JSON file: their squares and sums are still finite."""
HEADER = "tl-distill-floor"
"""Key of the header in the metadata of a safetensors file."""


def resolve_file(path: str | Path, name: str) -> Path:
    """Return `path` itself if it is a file or has the suffix of `name`; otherwise the file `name` in it.

    The names of models and of their runs can have dots, such as `runs/Qwen2.5-0.5B`.
    """
    path = Path(path)
    is_file = path.is_file() or (path.suffix == Path(name).suffix and not path.is_dir())
    return path if is_file else path / name


def save_arrays(path: Path, kind: str, arrays: dict[str, np.ndarray], scalars: dict[str, Any]) -> Path:
    """Write one safetensors file whose header holds `kind`, the version and the scalars as JSON."""
    from safetensors.numpy import save_file

    header = {"format": f"tl-distill-floor/{kind}", "version": VERSION, "scalars": scalars}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One header entry: safetensors writes several in no fixed order, and equal records should give equal files.
    metadata = {HEADER: json.dumps(header)}
    # Written from the arrays: large statistics and a copy of them as bytes would need twice the memory.
    return write_atomically(path, lambda partial: save_file(contiguous, partial, metadata=metadata))


def load_arrays(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and scalars that `save_arrays` wrote.

    Raises:
        InputError: the file is missing, truncated, in another format, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            check_format(path, kind, header.get("format"), header.get("version"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, dict(header["scalars"])
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is missing or not a complete {kind} file ({error}); run tl-floor measure") from error


def save_record(
    record: object, path: Path, kind: str, overrides: dict[str, Any] | None = None, *, indent: int | None = 1
) -> Path:
    """Write a dataclass as JSON.

    Args:
        record: a dataclass instance.
        path: the file.
        kind: the name of its format.
        overrides: fields stored with another value, or fields that the file has in addition.
        indent: indentation of the JSON text; None writes one line.
    """
    header = {"format": f"tl-distill-floor/{kind}", "version": VERSION}
    stored = {**header, **dataclasses.asdict(record), **(overrides or {})}  # type: ignore[call-overload]
    return write_atomically(path, json.dumps(stored, indent=indent, allow_nan=False).encode())


def load_record(
    record: type[Record], path: Path, kind: str, command: str, overrides: dict[str, Any] | None = None
) -> Record:
    """Read a dataclass that `save_record` wrote; every field must have its declared type.

    Args:
        record: the dataclass.
        path: the file.
        kind: the name of its format.
        command: the command that creates such a file.
        overrides: fields that replace those of the file.

    Raises:
        InputError: the file is missing, truncated, in another format, of another version, or holds other fields.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        fields = load_json(path, kind)
        known = {f.name for f in dataclasses.fields(record)}  # type: ignore[arg-type]
        stored = json.dumps({name: value for name, value in fields.items() if name in known} | (overrides or {}))
        return TypeAdapter(record).validate_json(stored, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a valid {kind} file ({field}: {first['msg']}); run {command}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or not a valid {kind} file ({error}); run {command}") from error


def load_json(path: Path, kind: str) -> dict[str, Any]:
    """Read the fields of a JSON file, without its format and version; numbers out of range are refused.

    Raises:
        InputError: the file is in another format, or of another version.
        OSError: the file is missing.
        ValueError: the file is not a JSON object.
    """
    fields = json.loads(path.read_bytes(), parse_constant=_parse_float, parse_float=_parse_float, parse_int=_parse_int)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds {type(fields).__name__}, not an object")  # noqa: TRY004 - as other damaged files
    check_format(path, kind, fields.pop("format", None), fields.pop("version", None))
    return fields


def check_format(path: Path, kind: str, file_format: object, version: object) -> None:
    """Raise an InputError unless a file is of the format `kind` and of the version that this package reads."""
    if file_format != f"tl-distill-floor/{kind}":
        raise InputError(
            f"{path} has the format {file_format!r}, not tl-distill-floor/{kind}; name a file that measure wrote"
        )
    if str(version) != str(VERSION):
        raise InputError(f"{path} has version {version}, this package reads {VERSION}; upgrade tl-distill-floor")


def to_json(value: Any) -> Any:
    """Convert a value to what JSON can hold: lists for arrays, None for NaN (an unknown interval)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _parse_float(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST_FLOAT:  # NaN fails too
        raise ValueError(f"{text} is out of range")
    return number


def _parse_int(text: str) -> int:
    if len(text) > len(str(LARGEST_COUNT)):
        raise ValueError(f"{text[:20]}... is out of range")
    return int(text)
