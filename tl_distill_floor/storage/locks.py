"""Keep other commands out of a directory while one works in it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.io_errors import report_io_errors

PARTIAL_SUFFIX = ".tl-floor"
"""Suffix of the hidden name that an unfinished file or directory has."""
OUT_ADVICE = "name another directory with --out"
"""What the user of most commands can do when a directory cannot be written."""
LOCK_FILE = f"{PARTIAL_SUFFIX}.lock"
"""File in a directory that is locked."""


@contextlib.contextmanager
def lock_directory(directory: Path, advice: str = OUT_ADVICE, *, shown_as: Path | None = None) -> Iterator[None]:
    """Lock `directory` for this process.

    The directory is created if it is missing, and removed at the end if it is empty. Unfinished files that a killed
    command left in it are removed, and with them those of a process that writes there without the lock.

    Args:
        directory: the directory.
        advice: what the user can do when the directory cannot be used.
        shown_as: the path that error messages name; `directory` if None.

    Raises:
        InputError: another process holds the lock, or the directory is a file or cannot be written.
    """
    named = shown_as or directory
    if directory.is_file():
        raise InputError(f"{named} is a file; name a directory, such as {named.parent}")
    created: list[Path] = []
    try:
        with report_io_errors(named, advice):
            created += [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass  # fails where the directory is read-only
        with _acquire(directory, named, advice):
            for unfinished in directory.glob(f".*{PARTIAL_SUFFIX}"):
                with contextlib.suppress(OSError):  # a directory, which another command is writing
                    unfinished.unlink()
            yield
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextlib.contextmanager
def _acquire(directory: Path, named: Path, advice: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    file = directory / LOCK_FILE
    lock = FileLock(file, timeout=0)
    with report_io_errors(named, advice):
        try:
            lock.acquire()
            while not file.exists():  # the process before this one removed the file that was just locked
                lock.release()
                lock.acquire()
        except Timeout as error:
            raise InputError(f"another command is at work in {named}; wait until it ends, or {advice}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # some systems do not remove an open file
            file.unlink(missing_ok=True)
        lock.release()
