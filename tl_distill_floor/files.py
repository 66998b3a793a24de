"""Files of ours: a format name and a version, arrays as safetensors and the rest as JSON, written atomically.

A file is written beside its place and then renamed, so that a reader sees the old one or the new one, never half.
"""

import contextlib
import dataclasses
import errno
import glob
import importlib.util
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tl_distill_floor.errors import InputError

R = TypeVar("R")
VERSION = 1
LARGEST, MOST = 1e100, 2**53
"""What a number and a count in a JSON file of ours can be: squares and sums of them are still finite."""
HEADER = "tl-distill-floor"
PARTIAL = ".tl-floor"
"""Ends the hidden name of what is not yet in its place."""
COPIED = "copy the run to another place and name that"
"""What can be done where a run cannot be written into."""
_written: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("written", default=None)
"""Files on disk, each with the place that it is to take."""


def file_in(path: str | Path, name: str) -> Path:
    """`path` itself, or the file `name` in it where it is a directory or has no suffix."""
    path = Path(path)
    return path / name if path.is_dir() or not path.suffix else path


@contextlib.contextmanager
def refusals(place: Path, instead: str = "free some space or name another place") -> Iterator[None]:
    """What the system refuses while something is written to `place`, as one sentence.

    Raises:
        InputError: an OSError, or what a library in Rust makes of one, which names its number.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {place}: {reason}; {instead}") from error


@contextlib.contextmanager
def held(
    directory: Path, instead: str = "name another place with --out", *, named: Path | None = None
) -> Iterator[None]:
    """Nobody else works in `directory` meanwhile; made where it is missing, and gone again if nothing was put there.

    What writes that were killed left in it is removed, and with it what others are writing who do not hold it.

    Args:
        directory: the directory.
        instead: what can be done where it cannot be written.
        named: what errors call it.

    Raises:
        InputError: another process holds it, or it cannot be written. (Where the system has no such locks, nobody is
            kept out.)
    """
    made: list[Path] = []
    try:
        with refusals(named or directory, instead):
            made += [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        with _locked(directory, named or directory, instead):
            for left in directory.glob(f".*{PARTIAL}"):
                with contextlib.suppress(OSError):  # a directory, which is another command's
                    left.unlink()
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # where something lies in it
                path.rmdir()


@contextlib.contextmanager
def _locked(directory: Path, named: Path, instead: str) -> Iterator[None]:
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    opened = os.open(directory, os.O_RDONLY)
    try:
        with _free(named, instead):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def _free(named: Path, instead: str) -> Iterator[None]:
    try:
        yield
    except BlockingIOError as error:
        raise InputError(f"another command is at work in {named}; wait until it ends, or {instead}") from error
    except OSError:  # a file system without locks
        return


@contextlib.contextmanager
def together() -> Iterator[list[tuple[Path, Path]]]:
    """Files that are written inside take their places at its end, or none does where one cannot be written to disk."""
    if (outer := _written.get()) is not None:
        yield outer
        return
    written: list[tuple[Path, Path]] = []
    token = _written.set(written)
    try:
        yield written
        for partial, path in written:
            with refusals(path):
                partial.replace(path)
    finally:
        _written.reset(token)
        for partial, _ in written:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> Path:
    """Write `data` so that `path` holds all of it or what it held before.

    Raises:
        InputError: the directory cannot be written or the disk is full.
    """
    with together() as written, refusals(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}."
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, suffix=PARTIAL, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        written.append((Path(file.name), path))
    return path


@contextlib.contextmanager
def made_whole(directory: Path) -> Iterator[Path]:
    """A hidden directory, which takes the place of `directory` at the end: all that was put in it, or nothing.

    Raises:
        InputError: it cannot be written, or another process is making it.
    """
    place = directory.absolute()  # "." has no name
    partial = place.with_name(f".{place.name}{PARTIAL}")
    with held(partial, named=directory):
        try:
            with refusals(directory):
                for left in partial.iterdir():  # of one that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            with refusals(directory):
                for path in partial.rglob("*"):
                    if path.is_file():
                        with path.open("rb+") as file:
                            os.fsync(file.fileno())
                partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a file, and what writes of it that were killed left beside it; nobody else may be writing it."""
    path.unlink(missing_ok=True)
    discard_partial(path)


def discard_partial(path: Path) -> None:
    """Remove what writes of a file that were killed left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        left.unlink(missing_ok=True)


def save_arrays(path: Path, kind: str, arrays: dict[str, np.ndarray], scalars: dict[str, Any]) -> Path:
    """One safetensors file whose header carries `kind`, the version and the scalars as JSON."""
    from safetensors.numpy import save

    header = {"format": f"tl-distill-floor/{kind}", "version": VERSION, "scalars": scalars}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One entry, since safetensors writes several in no fixed order, and equal records should be equal files.
    return write_atomically(path, save(contiguous, metadata={HEADER: json.dumps(header)}))


def load_arrays(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_arrays` wrote.

    Raises:
        InputError: the file is missing, truncated, foreign, or of a newer version.
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
        raise InputError(f"{path} is missing or is no complete file of ours ({error}); run tl-floor measure") from error


def load_json(path: Path, kind: str) -> dict[str, Any]:
    """The fields of a JSON file of ours, without its format and version; every number in it is sound.

    Raises:
        InputError: it is foreign, or of another version.
        OSError, ValueError: it is missing, or no JSON object.
    """
    found = json.loads(path.read_bytes(), parse_constant=_number, parse_float=_number, parse_int=_whole)
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}, not an object")  # noqa: TRY004 - as every other damage
    check_format(path, kind, found.pop("format", None), found.pop("version", None))
    return found


def load_record(record: type[R], path: Path, kind: str, command: str, given: dict[str, Any] | None = None) -> R:
    """A record that was stored as JSON, every field of the type that it is declared with.

    Args:
        record: a dataclass.
        path: its file.
        kind: its format.
        command: what makes it anew.
        given: fields that the file does not decide.

    Raises:
        InputError: the file is missing, truncated, foreign, of another version, or holds something else.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        fields = load_json(path, kind)
        known = {f.name for f in dataclasses.fields(record)}  # type: ignore[arg-type]
        stored = json.dumps({name: value for name, value in fields.items() if name in known} | (given or {}))
        return TypeAdapter(record).validate_json(stored, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} holds no {kind} ({place}: {first['msg']}); run {command}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or holds no {kind} ({error}); run {command}") from error


def _number(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST:  # nor is it one that is no number
        raise ValueError(f"{text} is no number that is measured")
    return number


def _whole(text: str) -> int:
    if len(text) > len(str(MOST)):
        raise ValueError(f"{text[:20]}... is no count")
    return int(text)


def check_format(path: Path, kind: str, found: Any, version: Any) -> None:
    """Raise an InputError unless a file says that it is a `kind` of ours, of a version that is known here."""
    if found != f"tl-distill-floor/{kind}":
        raise InputError(f"{path} says it is {found!r}, not tl-distill-floor/{kind}; name a file that measure wrote")
    if str(version) != str(VERSION):
        raise InputError(f"{path} is of version {version}, this package reads {VERSION}; upgrade tl-distill-floor")


def plain(value: Any) -> Any:
    """A value as JSON holds it: lists for arrays, None for NaN (a bound that one block of text cannot give)."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
