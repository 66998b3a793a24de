"""`tl-floor plan --pilots --train`: train the pilots of a plan into its run, and plan again."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tl_distill_floor.cli.progress import progress_bar
from tl_distill_floor.distilling.planning.pilots import LEVEL, choose_pilots, train_pilots
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.plan import Pilots, Plan
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.storage.io_errors import COPY_ADVICE
from tl_distill_floor.storage.locks import lock_directory
from tl_distill_floor.theory.regression import PredictedLoss

Planner: TypeAlias = Callable[..., Plan]
"""The function `plan` with its teacher and its limits."""


@dataclass(frozen=True)
class TrainedPilots:
    """Pilots that were trained, and the plan that was made with them."""

    pilots: Pilots
    """The narrow students."""
    width: int
    """Width that was planned before they were trained, dimensions."""
    now: PredictedLoss
    """Expected loss at this width with the pilots, and its 80 % interval, nats per token."""
    plan: Plan
    """The plan with the pilots."""
    warnings: tuple[str, ...]
    """What to keep in mind when using their losses."""


def train_and_plan(
    floor: FloorPrediction,
    choose: Planner,
    teacher: Teacher,
    run: Path,
    text: str | None,
    n_tokens: int | None,
    *,
    quiet: bool,
) -> TrainedPilots:
    """Train the pilots of a plan that the run does not have yet, calibrate the run with them, and plan again.

    The pilots are those of the prediction without its calibration, so that the same command names the same ones.

    Args:
        floor: prediction of the run.
        choose: makes a plan from a prediction.
        teacher: the teacher.
        run: directory of the run.
        text: training text; the run's if None.
        n_tokens: training tokens; the default of `DistillConfig` if None.
        quiet: show no progress.
    """
    with lock_directory(run, COPY_ADVICE):
        uncalibrated = dataclasses.replace(floor, calibration=None)
        width = plan_with_progress(uncalibrated, choose, quiet=quiet).width
        pilots = choose_pilots(uncalibrated, teacher, width=width)
        config = DistillConfig() if n_tokens is None else DistillConfig(n_tokens=n_tokens)
        with progress_bar("tokens", "distilling pilots", quiet=quiet) as progress:
            calibrated = train_pilots(uncalibrated, pilots, run, teacher, text, config=config, progress=progress)
        chosen = plan_with_progress(calibrated, choose, quiet=quiet)
        warnings = () if calibrated.calibration is None else calibrated.calibration.warnings
        return TrainedPilots(pilots, width, calibrated.expected_at(width, LEVEL), chosen, warnings)


def plan_with_progress(floor: FloorPrediction, choose: Planner, *, quiet: bool) -> Plan:
    """Return a plan, with a progress bar for the students that are timed.

    Args:
        floor: the prediction.
        choose: makes a plan from it.
        quiet: show no progress.
    """
    with progress_bar("students", "timing students", quiet=quiet) as progress:
        return choose(floor, progress=progress)
