"""Pilots, narrow students whose losses narrow the expected loss of a wide one: choose them, and train them."""

from itertools import combinations
from pathlib import Path

from tl_distill_floor.annotations import ProgressMessageCallback, TeacherLike, TextLike
from tl_distill_floor.distilling.planning.calibrate import calibrate
from tl_distill_floor.distilling.planning.plan import least_width, load_planned_teacher
from tl_distill_floor.distilling.students.build import count_parameters
from tl_distill_floor.distilling.students.widths import family_widths, spaced_widths
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE, interrupted_widths
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.plan import Pilots
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.results.student_loss import StudentLoss
from tl_distill_floor.sources.documents import EMBEDDED_TEXT
from tl_distill_floor.sources.teacher import Teacher

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
        InputError: no loss is expected of a trained student, too few narrower students can be built, or the teacher has
            another width or other outputs than the measured one.

    Example:
        >>> choose_pilots(floor, width=96).widths  # doctest: +SKIP
    """
    floor = FloorPrediction.from_head(floor) if isinstance(floor, HeadFloor) else floor
    before = floor.expected_at(width, LEVEL)
    model, least = load_planned_teacher(floor, teacher).model, least_width(floor)
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


def train_pilots(
    floor: FloorPrediction,
    pilots: Pilots,
    directory: str | Path,
    teacher: TeacherLike | None = None,
    text: TextLike | None = None,
    *,
    config: DistillConfig | None = None,
    progress: ProgressMessageCallback | None = None,
) -> FloorPrediction:
    """Distil the pilots that a run does not have yet, and calibrate its prediction with its students of full depth.

    An interrupted training is continued. Students have the teacher's depth, start from its weights (svd), and read
    sequences as long as those that were measured.

    Args:
        floor: prediction of the run.
        pilots: the narrow students; see `choose_pilots`.
        directory: directory of the run. Students are saved in its `students/`, the fit in its `calibration.json`.
        teacher: see `load_teacher`. If None, the teacher is loaded by the name in `floor`.
        text: training text; see `load_text`. If None, the run's text, which must be the embedded one.
        config: settings of the training; `DistillConfig()` if None.
        progress: called after every step with the tokens done, the total, and the last held-out losses.

    Returns:
        The calibrated prediction, which has a narrower interval.

    Raises:
        InputError: the run's text cannot be read again, the teacher is not the measured one, or see `distill_students`
            and `calibrate`.

    Example:
        >>> calibrated = train_pilots(floor, choose_pilots(floor, width=96), "runs/tiny")  # doctest: +SKIP
        >>> calibrated.expected_at(96, level=0.8)  # doctest: +SKIP
    """
    directory = Path(directory)
    check_training_text(floor, text)
    loaded = load_planned_teacher(floor, teacher)
    trained = {student.width for student in _of_full_depth(directory, loaded)}
    # A checkpoint is of all students that were trained together, also of those that were already saved.
    interrupted = interrupted_widths(directory / "students" / SWEEP_CHECKPOINT_FILE)
    specs = [StudentSpec(width) for width in pilots.widths if width in interrupted or width not in trained]
    if specs:
        distill_students(
            loaded,
            specs,
            text,
            out=directory,
            config=config,
            context_size=_measured_on(floor).settings.get("context_size"),
            resume=bool(interrupted),
            progress=progress,
        )
    calibration = calibrate(floor, _of_full_depth(directory, loaded))
    calibration.save(directory)
    return floor.calibrated_by(calibration)


def _of_full_depth(directory: Path, teacher: Teacher) -> list[StudentResult]:
    """Return the students of a run that have as many layers as their teacher."""
    return [student for student in load_students(directory) if student.depth == teacher.model.cfg.n_layers]


def check_training_text(floor: FloorPrediction, text: TextLike | None) -> None:
    """Raise an InputError if no training text is given, and the run's text cannot be read again."""
    name = _measured_on(floor).text_name
    if text is None and name != EMBEDDED_TEXT:
        raise InputError(
            f"the run was measured on {name}, of which only the name is known; name a text of the same kind with"
            " --text, to train the pilots on"
        )


def _measured_on(floor: FloorPrediction) -> FeatureStats | HeadFloor:
    """Return the measurement that has the name of the text and the settings."""
    return floor.head_floor if floor.stats is None else floor.stats
