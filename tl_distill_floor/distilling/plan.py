"""`plan`: choose the narrowest student for a loss, or the widest for a size."""

import math
import time
from bisect import bisect_right

import numpy as np
import torch

from tl_distill_floor.annotations import HookedModel, TeacherLike
from tl_distill_floor.distilling.build import build_student, count_parameters
from tl_distill_floor.distilling.student_config import check_depth, hugging_face_config
from tl_distill_floor.distilling.widths import can_be_built, family_widths, teacher_width
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.expected_loss import LossPredictor, student_losses
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.sources.teachers import choose_context_size, load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.theory.regression import PredictedLoss

TWO_SIDED_LEVEL = 0.8
"""Level of the two-sided interval whose upper end is the one-sided bound of 90 %."""
Z_ONE_SIDED_90, Z_TWO_SIDED_95 = 1.2816, 1.96
"""Quantiles of the normal distribution: 90 % and 97.5 %."""
TIMED_TOKENS, TIMED_ROUNDS = 1024, 3
"""Tokens per timed forward pass, and timed passes per model."""
NO_STUDENT = "no student of the teacher's family is as small as that; raise --max-width or --max-params"
"""Message if no width is within a limit."""


@neutral_torch_state()
def plan(
    floor: FloorPrediction | HeadFloor,
    teacher: TeacherLike | None = None,
    *,
    max_loss: float | None = None,
    max_width: int | None = None,
    max_params: int | None = None,
    depth: int | None = None,
) -> Plan:
    """Choose a student to train: the narrowest for a loss, or the widest for a size.

    Set exactly one of `max_loss`, `max_width` and `max_params`.

    Args:
        floor: prediction for the teacher, or its head floor alone. Losses are those expected of trained students if
            there is a head floor in nats or a calibration; else they are feature floors.
        teacher: see `load_teacher`; a model that `build_student` accepts. If None, the teacher is loaded by the name in
            `floor`.
        max_loss: loss that the student must not exceed with 90 % confidence, in nats per token if a trained student's
            loss is expected, otherwise in the unit of `floor`.
        max_width: largest width, dimensions.
        max_params: largest number of parameters.
        depth: number of layers; the teacher's if None.

    Returns:
        The student's shape, its expected loss, its speed, and which statements are measured and which are assumed.

    Raises:
        InputError: not exactly one limit is set, or no student of the teacher's family is within it.

    Example:
        >>> chosen = plan(floor, max_loss=0.2)  # doctest: +SKIP
        >>> chosen.width, chosen.loss, chosen.bound  # doctest: +SKIP
    """
    if sum(limit is not None for limit in (max_loss, max_width, max_params)) != 1:
        raise InputError("a plan needs exactly one limit; set one of --max-loss, --max-width, --max-params")
    if max_loss is not None and not max_loss > 0:
        raise InputError(f"the loss must be above 0, got {max_loss}; set --max-loss")
    calibration = floor.calibration if isinstance(floor, FloorPrediction) and floor.expected is None else None
    if calibration is not None and not calibration.fit.rises:
        raise InputError(
            "the losses of the calibration's students do not fall where the predicted floor falls (C is"
            f" {calibration.slope:.3g}); train the wider students longer and run tl-floor calibrate again"
        )
    model = load_teacher(teacher_name(floor) if teacher is None else teacher).model
    check_depth(depth, _teacher_depth(model))
    if max_loss is not None:
        width = _narrowest_width(floor, model, max_loss, depth)
    else:
        width = _widest_width(model, max_width, max_params, depth)
    return _plan_of(floor, model, width, depth)


def teacher_name(floor: FloorPrediction | HeadFloor) -> str:
    """Return the name of the teacher of a prediction."""
    return floor.model_name


def least_width(floor: FloorPrediction | HeadFloor) -> int:
    """Return the narrowest width at which a loss is predicted, dimensions."""
    if isinstance(floor, HeadFloor):
        return floor.widths[0]
    return 1 if floor.head is None or floor.expected is None else floor.head.widths[0]


def expected_loss(floor: FloorPrediction | HeadFloor, width: int) -> PredictedLoss:
    """Return the expected loss of a student, and its 80 % interval, whose upper end is the one-sided bound of 90 %.

    Args:
        floor: prediction for the teacher.
        width: width of the student, dimensions.

    Returns:
        The loss of a trained student in nats per token if one is expected, see `FloorPrediction.expected_at`. Otherwise
        the calibrated loss; without a calibration the feature floor in the unit of `floor`, whose interval is NaN if
        the text of the measurement is one block.
    """
    if isinstance(floor, HeadFloor) or floor.expected is not None:
        return floor.expected_at(width, TWO_SIDED_LEVEL)
    if floor.calibration is not None:
        return floor.calibrated_at(width, TWO_SIDED_LEVEL)
    features = floor.with_features()
    value = features.floor_at(width)
    low, high = features.sampling_interval.T
    relative = (high - low) / (2 * np.maximum(features.feature_floor, 1e-300))
    relative_at_width = float(np.interp(np.log(width), np.log(features.widths), relative))
    margin = value * relative_at_width * Z_ONE_SIDED_90 / Z_TWO_SIDED_95
    return PredictedLoss(value, max(value - margin, 0.0), value + margin)


def relative_speed(teacher: HookedModel, width: int, depth: int | None = None) -> float:
    """Measure how many times as fast as its teacher a student runs, in tokens per second of the forward pass.

    Args:
        teacher: the teacher's model.
        width: width of the student, dimensions.
        depth: number of layers; the teacher's if None.

    Returns:
        The ratio of median times. The teacher is replaced by a `transformers` model of its shape.
    """
    device = next(teacher.parameters()).device
    shapes = ((teacher_width(teacher), None), (width, depth))
    models = [build_student(teacher, w, depth=layers, start="random").to(device) for w, layers in shapes]
    length = choose_context_size(teacher)
    ids = torch.zeros((max(1, TIMED_TOKENS // length), length), dtype=torch.long, device=device)
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for _ in range(TIMED_ROUNDS + 1):
            for model, model_seconds in zip(models, seconds, strict=True):
                start_time = time.perf_counter()
                float(model(ids).logits[0, 0, 0])  # waits for the device
                model_seconds.append(time.perf_counter() - start_time)
    # The first pass of each model warms up caches.
    teacher_seconds, student_seconds = (float(np.median(model_seconds[1:])) for model_seconds in seconds)
    return teacher_seconds / student_seconds


def _plan_of(floor: FloorPrediction | HeadFloor, model: HookedModel, width: int, depth: int | None) -> Plan:
    """Return the plan of a chosen width."""
    loss = expected_loss(floor, width)
    features = None if isinstance(floor, HeadFloor) or floor.stats is None else floor.with_features()
    calibration = None if isinstance(floor, HeadFloor) else floor.calibration
    is_in_nats = features is None or calibration is not None or features.unit == "nats"
    return Plan(
        teacher=teacher_name(floor),
        width=width,
        depth=depth or _teacher_depth(model),
        teacher_depth=_teacher_depth(model),
        unit="nats" if is_in_nats else "mse",
        loss=loss.value,
        bound=None if math.isnan(loss.high) else loss.high,
        calibrated=calibration is not None,
        n_parameters=count_parameters(model, width, depth),
        teacher_parameters=count_parameters(model, teacher_width(model)),
        speed=relative_speed(model, width, depth),
        features=None if features is None else features.n_features,
        kept=None if features is None else features.n_features - len(features.lost(width)),
        known=_known(floor, width),
        assumed=_assumed(floor, width, has_fewer_layers=depth is not None),
    )


def _narrowest_width(floor: FloorPrediction | HeadFloor, model: HookedModel, max_loss: float, depth: int | None) -> int:
    widths = [width for width in family_widths(model) if width >= least_width(floor)]
    if isinstance(floor, HeadFloor) or floor.expected is not None:  # a student as wide as its teacher can be its copy
        widths = [width for width in widths if width < teacher_width(model)]
    losses = {width: expected_loss(floor, width) for width in widths}
    for width, loss in losses.items():
        is_within = (loss.value if math.isnan(loss.high) else loss.high) <= max_loss
        if is_within and can_be_built(model, width, depth):
            return width
    if not losses:
        raise InputError(NO_STUDENT)
    width, loss = min(losses.items(), key=lambda item: item[1].value)
    raise InputError(
        f"no student that is narrower than its teacher stays below {max_loss:g} with 90 % confidence: at width"
        f" {width:,} {loss.value:.4g} is expected, at most {loss.high:.4g}; raise --max-loss"
    )


def _widest_width(model: HookedModel, max_width: int | None, max_params: int | None, depth: int | None) -> int:
    widths = [width for width in family_widths(model) if max_width is None or width <= max_width]
    if max_params is not None:
        widths = widths[: bisect_right(widths, max_params, key=lambda width: _n_parameters(model, width, depth))]
    for width in reversed(widths):
        if can_be_built(model, width, depth):
            return width
    raise InputError(NO_STUDENT)


def _n_parameters(model: HookedModel, width: int, depth: int | None) -> int:
    """Return the number of parameters of a student, or of the next narrower student if this one cannot be built."""
    for narrower in range(width, 0, -1):
        try:
            return count_parameters(model, narrower, depth)
        except InputError:
            continue
    return 0


def _teacher_depth(model: HookedModel) -> int:
    return int(hugging_face_config(model).num_hidden_layers)


def _known(floor: FloorPrediction | HeadFloor, width: int) -> tuple[str, ...]:
    """Return statements about what was measured."""
    head = floor if isinstance(floor, HeadFloor) else floor.head
    calibration = None if isinstance(floor, HeadFloor) else floor.calibration
    widths = "" if calibration is None else ", ".join(str(width) for width in calibration.widths)
    own = (f"students of this teacher, of widths {widths}, which narrow the interval",) if calibration else ()
    if isinstance(floor, HeadFloor) or floor.stats is None:
        assert head is not None
        text = f"the teacher's logits on {head.n_heldout_tokens:,} held-out tokens of {head.text_name}"
        return text, *_known_of_students(head, "head", width), *own
    stats = floor.stats
    measured = f"{floor.n_features:,} features of {stats.sae_name} at {stats.hook_name}, on {stats.n_tokens:,} tokens"
    if floor.expected is not None and head is not None:
        known = _known_of_students(head, "head" if floor.simulation is None else "head and simulated", width)
        return measured, *known, *own
    if calibration is None:
        return measured, "no student: the loss is the predicted floor, and training does not go far below it"
    fit = calibration.fit
    return measured, (
        f"students of widths {widths}: loss = {fit.slope:.3g} · {calibration.predictor} + {fit.baseline:.3g}, with a"
        f" leave-one-width-out error of {fit.loo_error:.1%}"
    )


def _known_of_students(head: HeadFloor, predictor: LossPredictor, width: int) -> tuple[str, str]:
    """Return statements about the least loss of a student, and about the students of other teachers."""
    losses = student_losses(predictor)
    return (
        f"a student of width {width} loses at least about {head.floor_at(width):.3g} nats per token (head floor)",
        f"{losses.n_students} trained students of {len(losses.teachers)} teachers: the loss and its interval are fitted"
        " to them",
    )


def _assumed(floor: FloorPrediction | HeadFloor, width: int, *, has_fewer_layers: bool) -> tuple[str, ...]:
    """Return statements about what was not measured."""
    if isinstance(floor, HeadFloor) or floor.expected is not None:
        assumed = _assumed_of_students(floor.d_model)
    else:
        assumed = _assumed_of_features(floor.with_features(), width)
    if has_fewer_layers:
        assumed.append("that fewer layers cost nothing, because no prediction depends on the depth")
    return tuple(assumed)


def _assumed_of_students(d_model: int) -> list[str]:
    """Return what is assumed if the loss is fitted to students of other teachers."""
    assumed = [
        "that this teacher differs from those of the fit no more than they differ from each other",
        "that the student is trained until its loss hardly falls, on text of the teacher's kind",
    ]
    if d_model > (widest := student_losses("head").widest):
        assumed.append(f"that the fit, to teachers of up to {widest:,} dimensions, holds for {d_model:,}")
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
