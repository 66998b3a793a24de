"""The work of `tl-floor measure` and `tl-floor train-sae`: a run directory, a progress bar, quiet libraries."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tl_distill_floor.errors import InputError
from tl_distill_floor.files import check_writable
from tl_distill_floor.prediction import FloorPrediction

PARTIAL_FILE = "partial.safetensors"


@dataclass(frozen=True)
class Run:
    """A directory of results; each command reads what the earlier ones left there."""

    directory: Path
    resume: bool = False
    quiet: bool = False

    @property
    def partial(self) -> Path:
        return self.directory / PARTIAL_FILE

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The directory, writable, with nothing in it that would be lost; gone again if it stays empty.

        Raises:
            InputError: it cannot be written, or an interrupted measurement lies in it and `--resume` was not given.
        """
        made = [path for path in (self.directory, self.directory.parent) if not path.exists()]
        try:
            check_writable(self.directory)
            self._keep_what_was_measured()
            yield
        finally:
            for path in made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def _keep_what_was_measured(self) -> None:
        if self.partial.exists() and not self.resume:
            raise InputError(
                f"{self.partial} holds an interrupted measurement; add --resume to go on, delete it to start again,"
                " or name another directory with --out"
            )


def run_measure(
    run: Run,
    model: Any,
    sae: Any,
    text: Any,
    *,
    layer: int | None,
    where: dict[str, Any],
    predict: dict[str, Any],
    **options: Any,
) -> FloorPrediction:
    """Measure into a run directory and predict; the interrupted sums go once the result is saved."""
    with run.prepared(), quiet_libraries():
        from tl_distill_floor.measuring.features import measure_subject
        from tl_distill_floor.measuring.subject import subject_of
        from tl_distill_floor.predict import floor_of
        from tl_distill_floor.sources.text import is_cached_activations

        teacher = None if text is not None and is_cached_activations(Path(text)) else model
        with progress_bar(run.quiet, "tokens", "measuring") as progress:
            subject = subject_of(teacher, [sae], text, layers=[layer], **where)
            (stats,) = measure_subject(
                subject, checkpoints=[run.partial], resume=run.resume, progress=progress, **options
            )
        floor = floor_of(subject, stats, bar=partial(progress_bar, run.quiet), **predict)
        floor.save(run.directory)
        run.partial.unlink(missing_ok=True)
    return floor


def train(model: str, text: str | None, *, out: Path, layer: int, **options: Any) -> None:
    """Train an SAE and say what to type next."""
    with quiet_libraries():
        from tl_distill_floor.sources.train_sae import train_sae

        train_sae(model, text, out=out, layer=layer, **options)
    Console().print(f"Saved in {out}. Next: tl-floor measure {model} --layer {layer} --sae {out}", highlight=False)


def parsed_widths(widths: str | None) -> list[int] | None:
    """The whole numbers of "64,128,256".

    Raises:
        InputError: it holds something else.
    """
    if widths is None:
        return None
    if not re.fullmatch(r"\s*[1-9]\d{0,8}(\s*,\s*[1-9]\d{0,8})*\s*", widths):
        raise InputError(f"widths must be whole numbers above 0 with commas between, got {widths!r}; try 64,128,256")
    return [int(width) for width in widths.split(",")]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the loaders' own bars, notes and warnings off the terminal; what matters is in our own results."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # torch asks Linux for huge pages when it finds this at its import; codes are large, and pages cost a fault each.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    level = logging.root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.setLevel(level)


@contextmanager
def progress_bar(quiet: bool, unit: str, doing: str) -> Iterator[Any]:
    """A progress bar on stderr, counting `unit`; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total: bar.update(task, description=doing, completed=done, total=total)
