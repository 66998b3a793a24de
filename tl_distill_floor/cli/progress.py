"""Progress on stderr: a bar on a terminal, a log line per minute in a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_PER_LINE = 60.0


class Bar:
    """A progress bar; call it with the amount done, the total, and a message that replaces the description."""

    def __init__(self, progress: Progress, task: TaskID, description: str) -> None:
        self._progress, self._task, self._description = progress, task, description

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Draw the bar."""
        self._progress.update(self._task, description=message or self._description, completed=done, total=total)


class LogLines:
    """Progress as log lines; call it with the amount done, the total, and a message to append."""

    def __init__(self, unit: str, description: str) -> None:
        self._unit, self._description = unit, description
        self._started = self._last_line = time.monotonic()
        self._done_at_start: int | None = None

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Print a line, unless the last one is less than a minute old."""
        now = time.monotonic()
        if self._done_at_start is None:
            self._done_at_start = done
        if now - self._last_line < SECONDS_PER_LINE or done == self._done_at_start:
            return
        self._last_line = now
        minutes = (now - self._started) * (total - done) / (done - self._done_at_start) / 60
        line = f"{self._description}: {done:,} of {total:,} {self._unit}, {minutes:,.0f} min left"
        print(f"{line}; {message}" if message else line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(unit: str, description: str, *, quiet: bool) -> Iterator[Bar | LogLines | None]:
    """Show progress on stderr while the context is open.

    Args:
        unit: what is counted, such as "tokens".
        description: what is done, such as "measuring".
        quiet: show nothing.

    Yields:
        A callback for the progress; None if `quiet`.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield LogLines(unit, description)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task("loading", total=None), description)
