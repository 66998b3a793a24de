"""The work of `tl-floor lost`: which features a student loses, and from which width on it keeps one."""

import json
from pathlib import Path

from rich.console import Console

from tl_distill_floor.display.lost_features import feature_json, feature_view, lost_json, lost_view
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.lost_features import lost_features, one_feature
from tl_distill_floor.results.floor_prediction import FLOOR_FILE, FloorPrediction


def loaded_run(directory: Path) -> FloorPrediction:
    """The prediction that a run holds.

    Raises:
        InputError: there is no such run, or it is damaged.
    """
    if not (directory / FLOOR_FILE).is_file():
        others = sorted(str(file.parent) for file in Path("runs").glob(f"*/{FLOOR_FILE}"))
        named = f", or name one of {', '.join(others[:8])}" if others else ""
        raise InputError(f"there is no run at {directory}; make one with tl-floor measure --out {directory}{named}")
    return FloorPrediction.load(directory)


def show_lost(floor: FloorPrediction, width: int | None, top: int, as_json: bool) -> None:
    """The lost features on stdout: one JSON object, or a table."""
    found = lost_features(floor, width, top)
    if as_json:
        print(json.dumps(lost_json(found)))
    else:
        Console().print(lost_view(found))


def show_feature(floor: FloorPrediction, feature: int, width: int | None, as_json: bool) -> None:
    """One feature on stdout, in the same two ways."""
    found = one_feature(floor, feature, width)
    if as_json:
        print(json.dumps(feature_json(found)))
    else:
        Console().print(feature_view(found))
