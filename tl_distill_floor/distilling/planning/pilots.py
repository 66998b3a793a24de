"""Choose pilots: narrow students whose losses narrow the expected loss of a wide one for little training."""

from itertools import combinations

from tl_distill_floor.annotations import TeacherLike
from tl_distill_floor.distilling.planning.plan import least_width
from tl_distill_floor.distilling.students.build import count_parameters
from tl_distill_floor.distilling.students.widths import family_widths, spaced_widths
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.pilots import Pilots
from tl_distill_floor.results.student_loss import StudentLoss
from tl_distill_floor.sources.teachers import load_teacher

LEVEL = 0.8
"""Probability of the intervals; the upper end is a one-sided bound of 90 %."""
N_PILOTS = 3
"""Students that `tl-floor calibrate` needs."""
N_CANDIDATES = 8
"""Widths that pilots are chosen from, evenly spaced in their logarithm."""
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
    floor = FloorPrediction.from_head(floor) if isinstance(floor, HeadFloor) else floor
    before = floor.expected_at(width, LEVEL)
    model, least = load_teacher(floor.model_name if teacher is None else teacher).model, least_width(floor)
    narrow = [candidate for candidate in family_widths(model) if least <= candidate <= WIDEST_SHARE * width]
    candidates = spaced_widths(narrow, N_CANDIDATES)
    if len(candidates) < N_PILOTS:
        raise InputError(
            f"only {len(candidates)} students can be built between width {least} and half of {width};"
            " measure with smaller --widths, or train the student itself"
        )
    parameters = {candidate: count_parameters(model, candidate) for candidate in (*candidates, width)}
    choices = []
    for widths in combinations(candidates, N_PILOTS):
        cost = sum(parameters[candidate] for candidate in widths) / parameters[width]
        expected = {candidate: StudentLoss(floor.expected_at(candidate, LEVEL).value) for candidate in widths}
        choices.append(Pilots(widths, cost, before, floor.expected_at(width, LEVEL, floor.student_losses | expected)))
    affordable = [choice for choice in choices if choice.cost <= LARGEST_COST]
    if not affordable:
        return min(choices, key=lambda choice: choice.cost)
    return min(affordable, key=lambda choice: choice.after.high / max(choice.after.low, 1e-300))
