"""How a command ends: an error is one sentence on stderr and exit status 2, a traceback only with `--debug`."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from tl_distill_floor.errors import InputError

INTERRUPTED = 130


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that what goes wrong is said in one sentence."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            kept = "; --resume goes on from the last checkpoint, if one was written" if "resume" in kwargs else ""
            _end(f"interrupted{kept}", INTERRUPTED)
        except (InputError, ValueError, OSError) as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _end(str(error) if isinstance(error, InputError) else f"{error}; --debug shows where", 2)
        except typer.Exit:
            raise
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _end(f"unexpected {type(error).__name__}: {error}; --debug shows where", 2)

    return run


def _end(sentence: str, status: int) -> None:
    print(f"tl-floor: {' '.join(sentence.split())}", file=sys.stderr)
    raise typer.Exit(status)
