"""Run a command of the command line in a forked process that is killed, has no privileges, or fills its disk."""

import ctypes
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

DISK_IS_FULL = "the disk is full from here on"
"""Printed by a child process when its disk becomes full."""
NEARLY_FULL = 4096
"""Bytes that a file can have on a disk that is nearly full."""


class CompletedCommand(NamedTuple):
    """How a command ended."""

    status: int
    """Exit status; the negative number of the signal if a signal ended the process."""
    output: str
    """Standard output and standard error together."""
    seconds: float

    @property
    def error_message(self) -> str:
        """The one-line message of a command that ended with status 2 and without a traceback, as for unusable input."""
        messages = [line for line in self.output.splitlines() if line.startswith("tl-floor: ")]
        assert (self.status, len(messages)) == (2, 1), self.output
        assert "Traceback" not in self.output
        assert "--debug" not in messages[0], "an unexpected error"
        return messages[0]


def run_in_fork(
    command: tuple[Any, ...], before: Callable[[], Any] = bool, kill_after: float = 1e9
) -> CompletedCommand:
    """Run a command in a fork of this process, in which everything is already imported.

    Args:
        command: arguments of `tl-floor`.
        before: called first in the child process.
        kill_after: seconds after which the child process is killed.
    """
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest's own threads, about which Python warns, do not exist in the child
        child = os.fork()
    if not child:
        _run_and_exit([str(argument) for argument in command], write_end, before)
    os.close(write_end)
    started = time.monotonic()
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - started >= kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = 1e9
        time.sleep(0.001)
    seconds = time.monotonic() - started
    with open(read_end) as output:
        return CompletedCommand(os.waitstatus_to_exitcode(waited[1]), output.read(), seconds)


def _run_and_exit(command: list[str], output: int, before: Callable[[], Any]) -> None:
    """Run the command in the child process, and end the process; this never returns."""
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
    except SystemExit as exit_request:
        status = int(exit_request.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def on_write(directory: str, number: int, action: Callable[[bool], Any]) -> None:
    """Call a function when this process makes its nth write below a directory.

    A write is: a file is opened for writing, a file is renamed, or a directory is created.

    Args:
        directory: name of a directory, at any depth.
        number: the number of the write, from 1.
        action: called just before the write, with whether it adds a new name to the disk.
    """
    remaining = [number]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            is_write = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            is_write = event == "os.rename" or (event == "os.mkdir" and not os.path.exists(arguments[0]))
        if is_write and directory in str(arguments[0]).split("/"):
            remaining[0] -= 1
            if not remaining[0]:
                action(event != "open" and not (event == "os.rename" and os.path.exists(arguments[1])))

    sys.addaudithook(audit)


def fill_disk(max_file_bytes: int) -> Callable[[bool], None]:
    """Return an action for `on_write`: from then on, no file of this process can have more than the given bytes.

    The limit also holds for files that a library writes.
    """
    import resource  # not available on every system

    def action(adds_name: bool) -> None:
        print(DISK_IS_FULL, file=sys.stderr, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
        if adds_name:
            raise OSError(28, "No space left on device")

    return action


def kill_this_process(_adds_name: bool) -> None:
    """Kill this process; an action for `on_write`."""
    os.kill(os.getpid(), signal.SIGKILL)


def drop_privileges() -> None:
    """Give up the capabilities of root, so that file permissions hold for root too. Linux only."""
    header, no_capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, no_capabilities) == 0
