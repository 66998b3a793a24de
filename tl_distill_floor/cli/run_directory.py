"""A run directory: each command saves its results there and reads those of the earlier commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_files import FLOOR_FILE, holds_head_only
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
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


def load_floor(directory: Path) -> FeatureFloorPrediction:
    """Load the prediction of a run that was measured with an SAE.

    Raises:
        InputError: there is no such run, it was measured without an SAE, or a file of it is damaged.
    """
    floor = load_prediction(directory)
    if floor.stats is None:
        raise InputError(
            f"{directory} was measured without an SAE, so nothing is known of the teacher's features; measure with an"
            f" SAE (tl-floor train-sae makes one): tl-floor measure {quote(floor.model_name)} --sae SAE"
            " --out OTHER_DIRECTORY"
        )
    return floor.with_features()


def load_prediction(directory: Path) -> FloorPrediction:
    """Load the prediction of a run, which has no features if it was measured without an SAE.

    Raises:
        InputError: there is no such run, or a file of it is damaged.
    """
    if not (directory / FLOOR_FILE).is_file() and not holds_head_only(directory):
        runs = sorted(str(file.parent) for file in Path("runs").glob(f"*/{FLOOR_FILE}"))
        if directory.is_file():
            raise InputError(
                f"{directory} is a file; name the directory of a run, such as {quote(str(directory.parent))}"
            )
        others = f", or name another: {', '.join(map(quote, runs[:N_LISTED]))}" if runs else ""
        raise InputError(
            f"there is no run at {directory}; make one with tl-floor measure --out {quote(str(directory))}{others}"
        )
    return FloorPrediction.load(directory)
