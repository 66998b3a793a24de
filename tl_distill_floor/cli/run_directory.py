"""A run directory: each command saves its results there and reads those of the earlier commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_files import FLOOR_FILE
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HEAD_FILE, HeadFloor
from tl_distill_floor.storage.locks import lock_directory

PARTIAL_FILE = "partial.safetensors"
"""Checkpoint of an interrupted measurement."""
N_LISTED = 8
"""Runs that the message about a missing run lists at most."""


@contextmanager
def lock_for_measuring(directory: Path, *, resume: bool) -> Iterator[None]:
    """Lock a run directory, and create it if it is missing.

    Raises:
        InputError: the directory cannot be written, another command is using it, or it holds an interrupted
            measurement and `resume` is false.
    """
    with lock_directory(directory):
        checkpoint = directory / PARTIAL_FILE
        if checkpoint.exists() and not resume:
            raise InputError(
                f"{checkpoint} holds an interrupted measurement; add --resume to continue it, delete the file to start"
                " again, or name another directory with --out"
            )
        yield


def load_prediction(directory: Path) -> FloorPrediction | HeadFloor:
    """Load the prediction of a run, or its head floor if it was measured without an SAE.

    Raises:
        InputError: there is no such run, or a file of it is damaged.
    """
    if not (directory / FLOOR_FILE).is_file() and (directory / HEAD_FILE).is_file():
        return HeadFloor.load(directory)
    return load_floor(directory)


def load_floor(directory: Path) -> FloorPrediction:
    """Load the prediction of a run.

    Raises:
        InputError: there is no such run, or a file of it is damaged.
    """
    if not (directory / FLOOR_FILE).is_file():
        if (directory / HEAD_FILE).is_file():
            raise InputError(
                f"{directory} was measured without an SAE and holds a head floor only; measure with an SAE"
                f" (tl-floor train-sae makes one): tl-floor measure MODEL --sae SAE --out {directory}"
            )
        runs = sorted(str(file.parent) for file in Path("runs").glob(f"*/{FLOOR_FILE}"))
        others = f", or name one of {', '.join(runs[:N_LISTED])}" if runs else ""
        raise InputError(f"there is no run at {directory}; make one with tl-floor measure --out {directory}{others}")
    return FloorPrediction.load(directory)
