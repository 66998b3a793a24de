"""Errors of a command: one sentence on stderr and an exit status; the traceback only with `--debug`."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.errors import InputError, options_of_command_line

P = ParamSpec("P")
FAILED, INTERRUPTED = 2, 130
"""Exit statuses; 130 is the shell's for Ctrl-C."""


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that it reports an error in one sentence."""

    @functools.wraps(command)
    @options_of_command_line()
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()  # a full disk is an error of the command, not of Python's exit
        except KeyboardInterrupt:
            has_checkpoints = "resume" in kwargs and not kwargs.get("no_sae")
            resuming = " with --resume, to continue from the last checkpoint" if has_checkpoints else ""
            _exit(f"interrupted; type the same command again{resuming}", INTERRUPTED)
        except typer.Exit:
            raise
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _exit(_sentence(error), FAILED)

    return run


def _sentence(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    expected = isinstance(error, ValueError | OSError)
    return f"{'' if expected else f'unexpected {type(error).__name__}: '}{error}; add --debug to see the traceback"


def _exit(sentence: str, status: int) -> None:
    print(f"tl-floor: {escape_control(' '.join(sentence.split()))}", file=sys.stderr)
    raise typer.Exit(status)
