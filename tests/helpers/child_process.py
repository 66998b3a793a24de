"""A command of the command line in a forked process: killed, unprivileged, or with a disk that fills at a write."""

import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

FULL = "the disk is full from here on"
LARGEST = 4096
"""Bytes that a file has at the most on a disk that is nearly full."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    """Negative where a signal ended it."""
    said: str
    """On stdout and stderr."""
    seconds: float

    @property
    def sentence(self) -> str:
        """What it said as bad input does: status 2, one line beside the bars of libraries, no traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("tl-floor: ")]
        assert (self.status, len(lines)) == (2, 1), self.said
        assert "Traceback" not in self.said
        assert "--debug" not in lines[0], "nobody meant this error"
        return lines[0]


def in_child(command: tuple[Any, ...], before: Callable[[], Any] = bool, after: float = 1e9) -> Ended:
    """Run a command in a fork of this process, which has imported everything.

    Args:
        command: arguments of `tl-floor`.
        before: called in the child first.
        after: seconds until it is killed.
    """
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other threads, which are pytest's own, are not in the child
        child = os.fork()
    if not child:
        _run([str(part) for part in command], writes, before)
    os.close(writes)
    started = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - started >= after:
            os.kill(child, signal.SIGKILL)
            after = 1e9
        time.sleep(0.001)
    seconds = time.monotonic() - started
    with open(reads) as said:
        return Ended(os.waitstatus_to_exitcode(ended[1]), said.read(), seconds)


def _run(command: list[str], output: int, before: Callable[[], Any]) -> None:
    """What the child does; it never comes back."""
    status = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
        from tl_distill_floor.cli.app import main

        sys.argv = ["tl-floor", *command]
        warnings.simplefilter("ignore")
        before()
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def at_write(directory: str, number: int, then: Callable[[bool], Any]) -> None:
    """Call `then` when this process opens, renames or makes its nth file below a directory of that name.

    It is told whether a new name comes onto the disk now, before anything is written.
    """
    left = [number]

    def seen(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            wanted = isinstance(given[2], int) and bool(given[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            wanted = event == "os.rename" or (event == "os.mkdir" and not os.path.exists(given[0]))
        if wanted and directory in str(given[0]).split("/"):
            left[0] -= 1
            if not left[0]:
                then(event != "open" and not (event == "os.rename" and os.path.exists(given[1])))

    sys.addaudithook(seen)


def disk_fills(largest: int) -> Callable[[bool], None]:
    """From now on no file of this process, of Python's or of a library's, takes more than that many bytes."""

    import resource  # which not every system has

    def then(new: bool) -> None:
        print(FULL, file=sys.stderr, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        if new:
            raise OSError(28, "No space left on device")

    return then


def kill(_new: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def without_privileges() -> None:
    """Root too is kept out of what may not be written; Linux only."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
