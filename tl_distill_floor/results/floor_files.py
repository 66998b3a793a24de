"""Save and load the files of a floor prediction: `floor.json` and the records that it was computed from."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import STATS_FILE, FeatureStats
from tl_distill_floor.results.head_floor import HEAD_FILE, HeadFloor
from tl_distill_floor.results.promoted_tokens import PROMOTED_FILE, PromotedTokens
from tl_distill_floor.results.record_files import ArrayRecord, JsonFile
from tl_distill_floor.results.simulation import SIMULATION_FILE, Simulation
from tl_distill_floor.results.tail_loss import TAIL_FILE, TailLoss
from tl_distill_floor.storage.atomic import commit_together, write_atomically
from tl_distill_floor.storage.versioned import VERSION, load_json, to_json

FLOOR_FILE = "floor.json"
UNFINISHED = "not finished"
"""Beginning of a warning of predictions that are saved before everything is computed."""


def _floats(value: object) -> Float64[np.ndarray, " width"]:
    """Return a list of the file as a vector; null is NaN."""
    return np.array(value, dtype=np.float64).reshape(-1)


def _interval(value: Any) -> tuple[float, float]:
    """Return a pair of the file as a tuple; null is NaN."""
    low, high = (math.nan if bound is None else float(bound) for bound in value)
    return low, high


def _intervals(value: object) -> Float64[np.ndarray, "width 2"]:
    """Return a list of pairs of the file as an array; null is NaN."""
    return np.array(value, dtype=np.float64).reshape(-1, 2)


def _integers(value: object) -> Int64[np.ndarray, " width"]:
    """Return a list of the file as a vector of integers."""
    return np.array(value, dtype=np.int64).reshape(-1)


def _strings(value: Any) -> tuple[str, ...]:
    """Return a list of the file as strings."""
    return tuple(str(item) for item in value)


STORED_FIELDS: dict[str, Callable[[Any], Any]] = {
    "min_count": int,
    "n_features": int,
    "alpha": float,
    "capacity": float,
    "critical_width": float,
    "n_features_interval": _interval,
    "alpha_interval": _interval,
    "critical_width_interval": _interval,
    "widths": _integers,
    "theorem": _floats,
    "independent": _floats,
    "sampling_interval": _intervals,
    "theorem_interval": _intervals,
    "independent_interval": _intervals,
    "additive": _floats,
    "warnings": _strings,
}
"""Fields of a `FloorPrediction` in `floor.json`, and the function that reads each from JSON."""


class StoredFloor(NamedTuple):
    """Content of the files of a floor prediction."""

    fields: dict[str, Any]
    """Values of `STORED_FIELDS` that are not null."""
    records: dict[str, Any]
    """The records that the prediction was computed from: `stats`, `simulation`, `tail` and `head`; None if missing. And
    the `promoted` tokens. `stats` is None if the teacher was measured without an SAE."""
    curves: dict[str, object]
    """`simulated` and `bound` as the file has them; None for a record that is missing."""


def save_floor(
    directory: Path, fields: dict[str, Any], records: Mapping[str, FeatureStats | ArrayRecord | JsonFile | None]
) -> Path:
    """Write `floor.json` and the files of its records into a directory: all of them, or none.

    Args:
        directory: the run directory.
        fields: content of `floor.json`.
        records: records by the name of their file; those that are None have none.

    Returns:
        Path of `floor.json`.

    Raises:
        InputError: the directory cannot be written.
    """
    stored = {name: to_json(value) for name, value in fields.items()}
    stored = {"format": "tl-distill-floor/floor", "version": VERSION, **stored}
    with commit_together():
        for name, record in records.items():
            if record is not None:
                record.save(directory / name)
        return write_atomically(directory / FLOOR_FILE, json.dumps(stored, indent=1, allow_nan=False).encode())


def holds_finished_floor(directory: Path) -> bool:
    """Return whether a directory holds a prediction that was not saved before everything was computed."""
    file = directory / FLOOR_FILE
    if not file.exists():
        return False
    try:
        warnings = load_json(file, "floor").get("warnings") or []
    except (InputError, OSError, ValueError):
        return True  # a damaged file, which only a finished prediction replaces
    return not any(str(warning).startswith(UNFINISHED) for warning in warnings)


def holds_head_only(directory: Path) -> bool:
    """Return whether a directory holds a head floor and nothing else, as earlier releases saved it without an SAE."""
    others = (directory / name for name in (FLOOR_FILE, STATS_FILE))
    return (directory / HEAD_FILE).exists() and not any(file.exists() for file in others)


def load_floor(file: Path) -> StoredFloor:
    """Read `floor.json` and the files of its records; call it inside `report_damaged_floor`.

    Args:
        file: path of `floor.json`.

    Returns:
        The content of the files, except of the calibration.

    Raises:
        InputError: a file is in another format, or of another version.
        ValueError: the files do not belong together.
    """
    stored = load_json(file, "floor")
    # The first files of this version had neither a tail loss, nor a separate curve of summed costs, nor a head floor.
    stored = {"additive": stored.get("theorem"), "has_tail": False, "has_head": False, "bound": None} | stored
    # Earlier files of this version name the feature floor "expected", which is not read, and its interval "interval".
    if "interval" in stored:
        stored.setdefault("sampling_interval", stored["interval"])
    # Intervals that an earlier file lacks are not known.
    unknown = None if stored["stats"] is None else [[None, None]] * len(stored["widths"])
    stored = {"theorem_interval": unknown, "independent_interval": unknown} | stored
    stats = None if stored["stats"] is None else FeatureStats.load(file.parent / STATS_FILE)
    if stats is not None and stored["stats"] != stats.digest():
        raise ValueError(f"it was not computed from the {STATS_FILE} in the same directory")
    simulated = stored["simulated"]
    records = {
        "stats": stats,
        "simulation": None if simulated is None else Simulation.load(file.parent / SIMULATION_FILE),
        "tail": TailLoss.load(file.parent / TAIL_FILE) if stored["has_tail"] else None,
        "head": HeadFloor.load(file.parent / HEAD_FILE) if stored["has_head"] else None,
        "promoted": None if stats is None else _load_promoted(file.parent, stored["stats"]),
    }
    fields = {name: decode(stored[name]) for name, decode in STORED_FIELDS.items() if stored[name] is not None}
    return StoredFloor(fields, records, {"simulated": simulated, "bound": stored["bound"]})


def _load_promoted(directory: Path, stats: str) -> PromotedTokens | None:
    """Return the promoted tokens in a directory; None if there are none, or if they are of other statistics."""
    if not (directory / PROMOTED_FILE).exists():
        return None
    promoted = PromotedTokens.load(directory)
    return promoted if promoted.stats == stats else None


def check_curve(computed: Float64[np.ndarray, " width"] | None, stored: object, file_name: str) -> None:
    """Raise a ValueError if the floors in `floor.json` do not follow from the record that was loaded.

    Args:
        computed: floors at the widths, from the loaded record.
        stored: the same floors as `floor.json` has them.
        file_name: name of the record's file.
    """
    if computed is not None and not np.allclose(computed, _floats(stored), rtol=1e-3):
        raise ValueError(f"it was not computed from the {file_name} in the same directory")


@contextlib.contextmanager
def report_damaged_floor(file: Path) -> Iterator[None]:
    """Turn the errors that a missing or damaged `floor.json` causes into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is missing or not a valid floor file ({error}); run tl-floor measure") from error
