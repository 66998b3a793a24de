"""Report a failed write in one sentence."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tl_distill_floor.errors import InputError

COPY_ADVICE = "copy the run to another directory and name that"
"""What to do when a run directory cannot be written."""


@contextlib.contextmanager
def report_io_errors(path: Path, advice: str = "free some space or name another directory") -> Iterator[None]:
    """Turn an error of the operating system into an InputError.

    Args:
        path: what is being written, as the message names it.
        advice: what the user can do.

    Raises:
        InputError: an OSError, or the error that a library written in Rust makes of one (its text has the number).
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {path}: {reason}; {advice}") from error
