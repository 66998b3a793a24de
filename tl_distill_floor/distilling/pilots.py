"""Choose pilots: narrow students whose losses narrow the expected loss of a wide one for little training."""

from itertools import combinations

import numpy as np

from tl_distill_floor.annotations import HookedModel, TeacherLike
from tl_distill_floor.distilling.build import count_parameters
from tl_distill_floor.distilling.plan import least_width, teacher_name
from tl_distill_floor.distilling.widths import family_widths
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.pilots import Pilots
from tl_distill_floor.sources.teachers import load_teacher

LEVEL = 0.8
"""Probability of the intervals; the upper end is a one-sided bound of 90 %."""
N_PILOTS = 3
"""Students that `tl-floor calibrate` needs."""
N_CANDIDATES = 8
WIDEST_SHARE = 0.5
"""Pilots are at most this share of the student's width."""
LARGEST_COST = 0.5
"""Pilots have together at most this share of the student's parameters, if there are such pilots."""


def choose_pilots(floor: FloorPrediction | HeadFloor, teacher: TeacherLike | None = None, *, width: int) -> Pilots:
    """Choose three narrow students whose losses would narrow the expected loss of a student most.

    Args:
        floor: prediction for the teacher, in nats and with a head floor; or the head floor alone.
        teacher: see `load_teacher`; a model that `build_student` accepts. If None, the teacher is loaded by the name in
            `floor`.
        width: width of the student, dimensions.

    Raises:
        InputError: no loss is expected of a trained student, or too few narrower students can be built.

    Example:
        >>> choose_pilots(floor, width=96).widths  # doctest: +SKIP
    """
    before = floor.expected_at(width, LEVEL)
    model, least = load_teacher(teacher_name(floor) if teacher is None else teacher).model, least_width(floor)
    candidates = _candidates(model, least, WIDEST_SHARE * width)
    if len(candidates) < N_PILOTS:
        raise InputError(
            f"only {len(candidates)} students can be built between width {least} and half of {width};"
            " measure with smaller --widths, or train the student itself"
        )
    parameters = {candidate: count_parameters(model, candidate) for candidate in (*candidates, width)}
    choices = []
    for widths in combinations(candidates, N_PILOTS):
        cost = sum(parameters[candidate] for candidate in widths) / parameters[width]
        known = {} if isinstance(floor, HeadFloor) else floor.student_losses
        expected = {candidate: floor.expected_at(candidate, LEVEL).value for candidate in widths}
        choices.append(Pilots(widths, cost, before, floor.expected_at(width, LEVEL, known | expected)))
    affordable = [choice for choice in choices if choice.cost <= LARGEST_COST]
    if not affordable:
        return min(choices, key=lambda choice: choice.cost)
    return min(affordable, key=lambda choice: choice.after.high / max(choice.after.low, 1e-300))


def _candidates(model: HookedModel, least: int, most: float) -> list[int]:
    """Return some widths that can be built, evenly spaced in their logarithm."""
    widths = [width for width in family_widths(model) if least <= width <= most]
    if len(widths) <= N_CANDIDATES:
        return widths
    spaced = np.geomspace(widths[0], widths[-1], N_CANDIDATES)
    return sorted({min(widths, key=lambda width: abs(width - wanted)) for wanted in spaced.tolist()})
