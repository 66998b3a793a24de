"""Progress on stderr: a bar on a terminal, a log line per minute in a file."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_PER_LINE = 60.0
"""Least time between two log lines."""


class Bar:
    """A progress bar; call it with the amount done, the total, and a message that replaces the description."""

    def __init__(self, progress: Progress, task: TaskID, description: str) -> None:
        self._progress, self._task, self._description = progress, task, description

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Draw the bar."""
        self._progress.update(self._task, description=message or self._description, completed=done, total=total)


class RateColumn(ProgressColumn):
    """The rate of a bar, in units per second."""

    def render(self, task: Task) -> Text:
        """Return the rate; nothing before it is known."""
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="progress.data.speed")


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
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task("loading", total=None), description)


class StagedProgress:
    """Progress bars of the stages of one command, which also say about how long the full command still takes.

    Args:
        seconds: stages in the order in which they run, with about how long each takes. Only the ratios matter: the time
            left follows from them and from the time that has passed.
        quiet: show nothing.
    """

    def __init__(self, seconds: Mapping[str, float], *, quiet: bool) -> None:
        self._seconds, self._quiet = dict(seconds), quiet
        self._finished = 0.0
        self._start: tuple[float, float] | None = None

    @contextmanager
    def __call__(self, unit: str, stage: str) -> Iterator["StageBar | None"]:
        """Show the progress of one stage on stderr while the context is open.

        Args:
            unit: what is counted, such as "tokens".
            stage: one of the stages, such as "measuring".
        """
        self._seconds.setdefault(stage, 0.0)
        number = list(self._seconds).index(stage) + 1
        title = f"{stage} ({number} of {len(self._seconds)})" if len(self._seconds) > 1 else stage
        with progress_bar(unit, title, quiet=self._quiet) as bar:
            yield None if bar is None else StageBar(bar, self, stage, title)
        self._finished += self._seconds[stage]

    def minutes_left(self, stage: str, share: float) -> float | None:
        """Return about how many minutes the full command still takes; None if nothing was done since the first call.

        What was done before the first call, such as the part of a resumed stage, does not count.

        Args:
            stage: the stage that runs.
            share: share of it that is done.
        """
        now, done = time.monotonic(), self._finished + share * self._seconds[stage]
        self._start = self._start or (now, done)
        started, done_before = self._start
        if done <= done_before:
            return None
        left = sum(self._seconds.values()) - done
        return (now - started) * left / (done - done_before) / 60


class StageBar:
    """The progress bar of one stage; call it with the amount done and the total."""

    def __init__(self, bar: Bar | LogLines, stages: StagedProgress, stage: str, title: str) -> None:
        self._bar, self._stages, self._stage, self._title = bar, stages, stage, title

    def __call__(self, done: int, total: int) -> None:
        """Draw the bar, with the time that is left for the full command."""
        minutes = self._stages.minutes_left(self._stage, done / total) if total else None
        if minutes is None:
            self._bar(done, total)
            return
        left = f"about {minutes:.1f} min left in all"
        self._bar(done, total, f"{self._title}, {left}" if isinstance(self._bar, Bar) else left)
