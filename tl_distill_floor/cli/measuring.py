"""The work of `tl-floor measure` and `tl-floor train-sae`: a run directory, a progress bar, quiet libraries."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tl_distill_floor.cli.memory import keep_memory
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.storage.atomic import commit_together, remove_file
from tl_distill_floor.storage.locks import lock_directory

PARTIAL_FILE = "partial.safetensors"
SECONDS_A_LINE = 60.0


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
        """The directory, writable and nobody else's, with nothing in it that would be lost; see `held`.

        Raises:
            InputError: it cannot be written, another command is at work in it, or an interrupted measurement lies in it
                and `--resume` was not given.
        """
        with lock_directory(self.directory):
            self._keep_what_was_measured()
            yield

    def _keep_what_was_measured(self) -> None:
        if self.partial.exists() and not self.resume:
            raise InputError(
                f"{self.partial} holds an interrupted measurement; add --resume to go on, delete it to start again,"
                " or name another directory with --out"
            )


def run_measure(
    runs: list[Run], model: Any, saes: list[Any], text: Any, *, layers: Sequence[int | None], **options: Any
) -> list[FloorPrediction]:
    """Measure SAEs in one pass, each into its own run directory, and predict; interrupted sums go once all is saved.

    Of several processes the first one predicts and saves; the others give nothing back.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as prepared, quiet_libraries():
        for run in runs if first else ():
            prepared.enter_context(run.prepared())
        from tl_distill_floor.measuring.processes import current_process_group
        from tl_distill_floor.predicting.predict import predict_floors
        from tl_distill_floor.sources.text import is_cached_activations

        teacher = None if text is not None and is_cached_activations(Path(text)) else model
        options |= {
            "checkpoints": [run.partial for run in runs],
            "resume": runs[0].resume,
            "everyone": current_process_group(),
        }
        if options.get("device") == "cuda" and "LOCAL_RANK" in os.environ:
            options["device"] = f"cuda:{os.environ['LOCAL_RANK']}"  # each process its own
        bar = partial(progress_bar, runs[0].quiet or not first)
        floors = predict_floors(teacher, saes, text, layers=layers, bar=bar, **options)
        if not first:
            return []
        with commit_together():
            for run, floor in zip(runs, floors, strict=True):
                floor.save(run.directory)
        for run in runs:
            remove_file(run.partial)
    return floors


def parsed_layers(layer: str | None, model: str, sae: str | None) -> Sequence[int | None]:
    """The layers of "4", "4,8,12" or "all": those that an SAE is known for, or that `{layer}` in --sae has one for.

    Raises:
        InputError: it is something else, or no SAE is known for any layer.
    """
    if layer is None:
        return [None]
    if layer != "all":
        if not re.fullmatch(r"\s*\d{1,3}(\s*,\s*\d{1,3})*\s*", layer):
            raise InputError(f"layers must be whole numbers with commas between, or all, got {layer!r}; try 4,8,12")
        return sorted({int(number) for number in layer.split(",")})
    from tl_distill_floor.sources.sae_directory import find_saes

    if sae is not None:
        found = {number for number in range(200) if Path(sae.replace("{layer}", str(number))).exists()}
        found = found if "{layer}" in sae else set()
    else:
        found = {entry.layer for entry in find_saes(model, None) if entry.layer is not None}
    if not found:
        raise InputError(
            f"no SAE is known for the layers of {model}; name them with --layer 4,8 and a --sae that holds {{layer}}"
        )
    return sorted(found)


def saes_of_layers(sae: str | None, layers: Sequence[int | None]) -> list[str | None]:
    """For each layer its SAE, `{layer}` in the name replaced by its number.

    Raises:
        InputError: one name is given for several layers.
    """
    if len(layers) > 1 and sae is not None and "{layer}" not in sae:
        raise InputError(f"--sae {sae} names one SAE for {len(layers)} layers; write {{layer}} where its number stands")
    return [None if sae is None else sae.replace("{layer}", str(layer)) for layer in layers]


def train(model: str, text: str | None, *, out: Path, layer: int, **options: Any) -> None:
    """Train an SAE and say what to type next."""
    with quiet_libraries(), progress_bar(False, "tokens", "training") as progress:
        from tl_distill_floor.sae_training.train_sae import train_sae

        train_sae(model, text, out=out, layer=layer, progress=progress, **options)
    console = Console(highlight=False, markup=False)
    console.print(f"Saved in {out}. Next: tl-floor measure {model} --layer {layer} --sae {out}")


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
    keep_memory()
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
    """A progress bar on stderr, counting `unit`; a line a minute where stderr is a file; None where it is to be quiet.

    What it gives is called with how much is done, how much there is, and what else to say.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _Lines(unit, doing)
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
        yield lambda done, total, words="": bar.update(task, description=words or doing, completed=done, total=total)


class _Lines:
    """Progress as lines of a log, one a minute."""

    def __init__(self, unit: str, doing: str) -> None:
        self._unit, self._doing = unit, doing
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int, words: str = "") -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._said < SECONDS_A_LINE or done == self._first:
            return
        self._said = now
        left = (now - self._started) * (total - done) / (done - self._first) / 60
        line = f"{self._doing}: {done:,} of {total:,} {self._unit}, {left:,.0f} min left"
        print(f"{line}; {words}" if words else line, file=sys.stderr, flush=True)
