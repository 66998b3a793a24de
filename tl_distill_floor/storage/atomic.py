"""Write a file, several files or a directory completely or not at all.

Everything is written under a hidden name in the same directory and renamed on success, so that a reader sees the old
content or the new one, never a part.
"""

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from tl_distill_floor.storage.io_errors import report_io_errors
from tl_distill_floor.storage.locks import LOCK_FILE, OUT_ADVICE, PARTIAL_SUFFIX, lock_directory

_staged: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("staged", default=None)
"""Files that are complete on disk but not renamed yet: (hidden name, final name)."""


@contextlib.contextmanager
def commit_together() -> Iterator[list[tuple[Path, Path]]]:
    """Rename all files written inside the block together when it ends without an error; otherwise remove them."""
    if (outer := _staged.get()) is not None:
        yield outer
        return
    staged: list[tuple[Path, Path]] = []
    token = _staged.set(staged)
    try:
        yield staged
        for partial, path in staged:
            with report_io_errors(path):
                partial.replace(path)
    finally:
        _staged.reset(token)
        for partial, _ in staged:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write `content` to `path`, which afterwards holds all of it or its previous content.

    The file gets the permissions of the user's umask.

    Args:
        path: the file.
        content: the bytes, or a function that writes them to the path of an existing, empty file.

    Returns:
        `path`.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    with commit_together() as staged, report_io_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        try:
            # Created with mode 0666, which the operating system reduces by the umask; tempfile would use 0600.
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if isinstance(content, bytes):
                    file.write(content)
            if not isinstance(content, bytes):
                content(partial)
                partial.chmod(mode)  # safetensors replaces the file by one that only its owner can read
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        staged.append((partial, path))
    return path


@contextlib.contextmanager
def atomic_directory(directory: Path, advice: str = OUT_ADVICE) -> Iterator[Path]:
    """Create `directory` with everything that the block writes, or not at all.

    Its files get the permissions of the user's umask.

    Args:
        directory: the directory.
        advice: what the user can do when it cannot be written.

    Yields:
        A hidden directory to write into; it is renamed to `directory` on success.

    Raises:
        InputError: it cannot be written, or another process is creating it.
    """
    target = directory.absolute()  # "." has no name
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    with lock_directory(partial, advice, shown_as=directory):
        try:
            with report_io_errors(directory):
                for path in partial.iterdir():  # files of a killed command
                    if path.name != LOCK_FILE:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield partial
            with report_io_errors(directory):
                (partial / LOCK_FILE).unlink(missing_ok=True)
                mode = partial.stat().st_mode & 0o666  # of the umask; safetensors writes files of mode 0600
                for path in partial.rglob("*"):
                    if path.is_file():
                        path.chmod(mode)
                        with path.open("rb+") as file:
                            os.fsync(file.fileno())
                partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove a file and the unfinished writes of it; no other process may be writing it."""
    path.unlink(missing_ok=True)
    remove_unfinished(path)


def remove_unfinished(path: Path) -> None:
    """Remove the unfinished writes of a file that killed commands left."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*"):
        partial.unlink(missing_ok=True)
