"""Tests of the choice of a student."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.models import WIDTH
from tests.helpers.records import stats_of
from tl_distill_floor.distilling.plan import plan
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.sources.teachers import load_teacher


@pytest.fixture(scope="module")
def floor(teacher_dir: Path) -> FloorPrediction:
    """Predict floors from synthetic features, for a teacher whose name is its directory."""
    sampled = np.zeros(WIDTH)
    stats = stats_of(1.0 / np.arange(1, 65), d_model=WIDTH, model_name=str(teacher_dir), sampled_sum=sampled)
    return floor_from_stats(stats, widths=[4, 8, 16, WIDTH])


def without_speed(chosen: Plan) -> Plan:
    """Return a plan with the measured speed removed."""
    assert math.isfinite(chosen.speed)
    return dataclasses.replace(chosen, speed=1.0)


def test_accepts_all_teachers_that_load_teacher_accepts(floor: FloorPrediction, bridge: Any, teacher_dir: Path) -> None:
    from_floor = without_speed(plan(floor, max_width=16))
    assert (from_floor.width, from_floor.teacher_depth) == (16, 3)
    for teacher in (bridge, load_teacher(bridge), teacher_dir, str(teacher_dir)):
        assert without_speed(plan(floor, teacher, max_width=16)) == from_floor


@pytest.mark.parametrize("limits", [{}, {"max_loss": 0.1, "max_width": 8}, {"max_width": 8, "max_params": 1000}])
def test_rejects_no_limit_and_several_limits(floor: FloorPrediction, limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exactly one limit; set one of --max-loss, --max-width, --max-params"):
        plan(floor, "no-teacher", **limits)
