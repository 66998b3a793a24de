"""Run a function in several processes that form a process group, as torchrun starts them, without importing again."""

import json
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from tl_distill_floor.errors import InputError

TIMEOUT = 300.0
"""Seconds after which the processes are killed."""


def run_in_processes(n: int, function: Callable[[int], Any]) -> list[Any]:
    """Run a function in n forks of this process, and return its results.

    Args:
        n: number of processes.
        function: called with the number of the process. It returns JSON values.

    Returns:
        The result of each process, or the message of its InputError.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, n, port, function) for rank in range(n)]
    deadline, results = time.monotonic() + TIMEOUT, []
    for child, read_end in children:
        while not (waited := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                for other, _ in children:
                    os.kill(other, 9)
                raise AssertionError(f"the {n} processes did not end within {TIMEOUT:.0f} s")
            time.sleep(0.01)
        with open(read_end) as output:
            text = output.read()
        assert os.waitstatus_to_exitcode(waited[1]) == 0, text
        results.append(json.loads(text))
    return results


def _fork(rank: int, n: int, port: int, function: Callable[[int], Any]) -> tuple[int, int]:
    """Start one process, and return its id and the end of a pipe that has its result."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest's own threads, about which Python warns, do not exist in the child
        child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    status, text = 1, ""
    try:
        from accelerate.state import AcceleratorState

        warnings.simplefilter("ignore")
        AcceleratorState._reset_state(reset_partial_state=True)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        try:
            text = json.dumps(function(rank))
        except InputError as error:
            text = json.dumps(str(error))
        status = 0
    except BaseException:
        text = traceback.format_exc()
    finally:
        with open(write_end, "w") as output:
            output.write(text)
        os._exit(status)
