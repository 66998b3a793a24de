"""`plan`: choose the narrowest student for a loss, or the widest for a size."""

import dataclasses
import math
from functools import partial

import numpy as np

from tl_distill_floor.annotations import HookedModel, MemoryDtype, ProgressMessageCallback, TeacherLike
from tl_distill_floor.distilling.planning.candidates import Choice, StudentFamily, choose_student
from tl_distill_floor.distilling.students.build import count_parameters
from tl_distill_floor.distilling.students.student_config import checked_depth, hugging_face_config
from tl_distill_floor.distilling.students.widths import family_widths, teacher_width
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.reloading import check_outputs
from tl_distill_floor.results.expected_loss import LossPredictor, expected_loss_fit
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.plan import Candidate, Limits, Plan
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.theory.bootstrap import Z_95
from tl_distill_floor.theory.regression import PredictedLoss

TWO_SIDED_LEVEL = 0.8
"""Level of the two-sided interval whose upper end is the one-sided bound of 90 %."""
Z_ONE_SIDED_90 = 1.2816
"""Quantiles of the normal distribution: 90 % and 97.5 %."""


@neutral_torch_state()
def plan(
    floor: FloorPrediction | HeadFloor,
    teacher: TeacherLike | None = None,
    *,
    max_loss: float | None = None,
    max_width: int | None = None,
    max_params: int | None = None,
    max_memory: int | None = None,
    memory_dtype: MemoryDtype = "bf16",
    context: int | None = None,
    min_speedup: float | None = None,
    divisor: int | None = None,
    depth: int | None = None,
    progress: ProgressMessageCallback | None = None,
) -> Plan:
    """Choose a student to train: the narrowest that meets a loss; without a loss, the widest within the other limits.

    At least one limit is needed. The plan lists other students within the limits, too.

    Args:
        floor: prediction for the teacher, or its head floor alone. Losses are those expected of trained students if
            there is a head floor in nats or a calibration; else they are feature floors.
        teacher: see `load_teacher`; a model that `build_student` accepts. If None, the teacher is loaded by the name in
            `floor`.
        max_loss: loss that the student must not exceed with 90 % confidence, in nats per token if a trained student's
            loss is expected, otherwise in the unit of `floor`.
        max_width: largest width, dimensions.
        max_params: largest number of parameters.
        max_memory: most bytes of the weights and the KV cache of one sequence together.
        memory_dtype: dtype of both, "fp32", "bf16" or "fp16".
        context: tokens in the KV cache; if None, 4096 or the teacher's context if that is shorter.
        min_speedup: least tokens per second of the student's forward pass, divided by the teacher's, on this machine.
            Some students are built and timed.
        divisor: the width is a multiple of this.
        depth: number of layers; the teacher's if None. What fewer layers cost is not predicted.
        progress: called after each student that is timed, with the number done, about how many there will be, and a
            message.

    Returns:
        The student's shape, its expected loss, its speed, which statements are measured and which are assumed, and
        other students within the limits.

    Raises:
        InputError: no limit is set, a limit is out of range, no student of the teacher's family is within all, or the
            teacher has another width or other outputs than the measured one.

    Example:
        >>> chosen = plan(floor, max_loss=0.2, max_memory=2_000_000_000)  # doctest: +SKIP
        >>> chosen.width, chosen.loss, chosen.upper_bound  # doctest: +SKIP
        >>> [(other.width, other.n_parameters, other.loss) for other in chosen.candidates]  # doctest: +SKIP
    """
    floor = FloorPrediction.from_head(floor) if isinstance(floor, HeadFloor) else floor
    limits = Limits(max_loss, max_width, max_params, max_memory, min_speedup, divisor)
    _check_limits(limits)
    calibration = floor.calibration if floor.expected is None else None
    if calibration is not None and not calibration.fit.rises:
        raise InputError(
            "the losses of the calibration's students do not fall where the predicted floor falls (C is"
            f" {calibration.slope:.3g}); train the wider students longer and run tl-floor calibrate again"
        )
    model = load_planned_teacher(floor, teacher).model
    depth = checked_depth(depth, _teacher_depth(model))
    other_depth = _other_depth(floor, depth)
    if other_depth is not None:
        floor = dataclasses.replace(floor, calibration=None)
    family = StudentFamily(model, depth, memory_dtype, context, progress)
    widths = [width for width in family_widths(model, limits.divisor) if width >= least_width(floor)]
    if max_loss is not None and floor.expected is not None:  # a student as wide as its teacher can be its copy
        widths = [width for width in widths if width < teacher_width(model)]
    choice = choose_student(family, limits, widths, partial(expected_loss, floor))
    chosen = _plan_of(floor, family, limits, choice)
    return chosen if other_depth is None else dataclasses.replace(chosen, known=(*chosen.known, other_depth))


def load_planned_teacher(floor: FloorPrediction, teacher: TeacherLike | None) -> Teacher:
    """Load the teacher of a prediction.

    Args:
        floor: the prediction.
        teacher: see `load_teacher`; if None, the teacher is loaded by the name in `floor`.

    Raises:
        InputError: the teacher cannot be loaded, or has another width or other outputs than the measured one.
    """
    loaded = load_teacher(floor.model_name if teacher is None else teacher)
    measured = floor.with_features().stats.teacher_width if floor.head is None else floor.head.d_model
    width = teacher_width(loaded.model)
    if measured not in (None, width):  # older files do not tell
        raise InputError(
            f"the prediction is for {floor.model_name}, which has {measured:,} dimensions, and the teacher has"
            f" {width:,}; give the teacher that was measured"
        )
    check_outputs(floor, loaded)
    return loaded


def _other_depth(floor: FloorPrediction, depth: int) -> str | None:
    """Return a statement if the calibration is of students with another number of layers; None if it is not."""
    of_students = None if floor.calibration is None else floor.calibration.depth
    if of_students in (None, depth):
        return None
    return (
        f"the calibration is of students of {of_students} layers, so it is not used for one of {depth} layers; distil"
        " students of that depth"
    )


def least_width(floor: FloorPrediction) -> int:
    """Return the narrowest width at which a loss is predicted, dimensions."""
    return 1 if floor.head is None or floor.expected is None else floor.head.widths[0]


def expected_loss(floor: FloorPrediction, width: int) -> PredictedLoss:
    """Return the expected loss of a student, and its 80 % interval, whose upper end is the one-sided bound of 90 %.

    Args:
        floor: prediction for the teacher.
        width: width of the student, dimensions.

    Returns:
        The loss of a trained student in nats per token if one is expected, see `FloorPrediction.expected_at`. Otherwise
        the calibrated loss; without a calibration the feature floor in the unit of `floor`, whose interval is NaN if
        the text of the measurement is one block.
    """
    if floor.expected is not None:
        return floor.expected_at(width, TWO_SIDED_LEVEL)
    if floor.calibration is not None:
        return floor.calibrated_at(width, TWO_SIDED_LEVEL)
    features = floor.with_features()
    value = features.floor_at(width)
    lossy = features.feature_floor > 0
    if not lossy.any():
        return PredictedLoss(value, math.nan, math.nan)
    # The upper end alone, since the lower one is cut off at 0.
    relative = features.sampling_interval[lossy, 1] / features.feature_floor[lossy] - 1.0
    relative_at_width = float(np.interp(np.log(width), np.log(features.widths[lossy]), relative))
    margin = value * relative_at_width * Z_ONE_SIDED_90 / Z_95
    return PredictedLoss(value, max(value - margin, 0.0), value + margin)


def _check_limits(limits: Limits) -> None:
    """Raise an InputError unless at least one limit is set, and all are above 0."""
    named = {
        "--max-loss": limits.max_loss,
        "--max-width": limits.max_width,
        "--max-params": limits.max_params,
        "--max-memory": limits.max_memory,
        "--min-speedup": limits.min_speedup,
    }
    if all(limit is None for limit in named.values()):
        raise InputError(f"a plan needs a limit; set at least one of {', '.join(named)}")
    if limits.max_loss is not None and not limits.max_loss > 0:
        raise InputError(f"the loss must be above 0, got {limits.max_loss}; set --max-loss")
    for option, limit in (named | {"--divisor": limits.divisor}).items():
        if limit is not None and not (limit > 0 and math.isfinite(limit)):
            raise InputError(f"{option} must be a finite number above 0, got {limit}")


def _plan_of(floor: FloorPrediction, family: StudentFamily, limits: Limits, choice: Choice) -> Plan:
    """Return the plan of a chosen width."""
    features = None if floor.stats is None else floor.with_features()
    is_in_nats = floor.calibration is not None or floor.unit == "nats"
    model, width = family.model, choice.width
    candidates = {other: _candidate(floor, family, other) for other in choice.widths}
    chosen, teacher_depth = candidates[width], _teacher_depth(model)
    depth = family.depth or teacher_depth
    return Plan(
        teacher=floor.model_name,
        width=width,
        depth=depth,
        teacher_depth=teacher_depth,
        unit="nats" if is_in_nats else "mse",
        loss=chosen.loss,
        upper_bound=chosen.upper_bound,
        calibrated=floor.calibration is not None if floor.expected is None else bool(floor.student_losses),
        n_parameters=chosen.n_parameters,
        teacher_parameters=count_parameters(model, teacher_width(model)),
        speed=chosen.speed,
        features=floor.n_features,
        kept=None if features is None else features.n_features - len(features.lost(width)),
        known=_known(floor, width),
        assumed=_assumed(floor, width, has_fewer_layers=depth < teacher_depth),
        rule=choice.rule,
        limits=limits,
        memory_dtype=family.memory_dtype,
        context=family.context,
        candidates=tuple(candidates.values()),
    )


def _candidate(floor: FloorPrediction, family: StudentFamily, width: int) -> Candidate:
    """Return the size, the speed and the losses of one student."""
    loss, size, head = expected_loss(floor, width), family.size(width), floor.head
    return Candidate(
        width=width,
        n_parameters=size.n_parameters,
        weight_bytes=size.weight_bytes,
        cache_bytes=size.cache_bytes,
        speed=family.timer.at(width),
        speed_is_measured=width in family.timer.timed,
        loss=loss.value,
        upper_bound=None if math.isnan(loss.high) else loss.high,
        least_loss=None if head is None or width < head.widths[0] else head.floor_at(width),
    )


def _teacher_depth(model: HookedModel) -> int:
    return int(hugging_face_config(model).num_hidden_layers)


def _known(floor: FloorPrediction, width: int) -> tuple[str, ...]:
    """Return statements about what was measured."""
    calibration = floor.calibration
    widths = "" if calibration is None else ", ".join(str(width) for width in calibration.widths)
    own_widths = ", ".join(str(width) for width in floor.student_losses)
    own = (f"students of this teacher, of widths {own_widths}, which narrow the interval",) if own_widths else ()
    if floor.stats is None:
        head = floor.head_floor
        text = f"the teacher's logits on {head.n_heldout_tokens:,} held-out tokens of {head.text_name}"
        return text, *_known_of_students(head, "encoded", width), *own
    stats = floor.stats
    measured = f"{floor.n_features:,} features of {stats.sae_name} at {stats.hook_name}, on {stats.n_tokens:,} tokens"
    if floor.expected is not None and floor.head is not None:
        return measured, *_known_of_students(floor.head, floor.loss_predictor, width), *own
    if calibration is None:
        return measured, "no trained student: the loss is the feature floor, and a trained student tends to lose more"
    fit = calibration.fit
    return measured, (
        f"students of widths {widths}: loss = {fit.slope:.3g} · {calibration.predictor} + {fit.baseline:.3g}, with a"
        f" leave-one-width-out error of {fit.loo_error:.1%}"
    )


def _known_of_students(head: HeadFloor, predictor: LossPredictor, width: int) -> tuple[str, str]:
    """Return statements about the least loss of a student, and about the students of other teachers."""
    losses = expected_loss_fit(predictor)
    return (
        f"a student of width {width} loses at least about {head.floor_at(width):.3g} nats per token (head floor)",
        f"{losses.n_students} trained students of {len(losses.teachers)} teachers: the loss and its interval are fitted"
        " to them",
    )


def _assumed(floor: FloorPrediction, width: int, *, has_fewer_layers: bool) -> tuple[str, ...]:
    """Return statements about what was not measured."""
    if floor.expected is not None:
        assumed = _assumed_of_students(floor.head_floor)
    else:
        assumed = _assumed_of_features(floor.with_features(), width)
    if has_fewer_layers:
        assumed.append("that fewer layers cost nothing, because no prediction depends on the depth")
    return tuple(assumed)


def _assumed_of_students(head: HeadFloor) -> list[str]:
    """Return what is assumed if the loss is fitted to students of other teachers."""
    assumed = [
        "that this teacher differs from those of the fit no more than they differ from each other",
        "that the student is trained until its loss hardly falls, on text of the teacher's kind",
    ]
    if respects := expected_loss_fit("encoded").extrapolations(head.d_model, head.vocab_size, head.known_share):
        assumed.append(f"that the fit holds for a teacher unlike those of the fit: {', '.join(respects)}")
    return assumed


def _assumed_of_features(floor: FeatureFloorPrediction, width: int) -> list[str]:
    """Return what is assumed if the loss is the feature floor, or calibrated from it."""
    calibration = floor.calibration
    assumed = [f"that what the SAE does not explain, {floor.stats.fvu:.1%} of the variance, costs nothing"]
    if calibration is None:
        return [*assumed, "that a student loses only what its width cannot hold (C = 1, B = 0)"]
    if not min(calibration.widths) <= width <= max(calibration.widths):
        assumed.append(f"that the linear fit holds at width {width}, outside the widths that were trained")
    if "under-trained" in calibration.statuses:
        assumed.append("that the floors extrapolated from the learning curves of under-trained students are right")
    return [*assumed, "that the student is trained on text of the same kind as the students of the calibration"]
