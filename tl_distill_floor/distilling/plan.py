"""Choosing a student: the narrowest below a loss, or the best within a size."""

import math
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tl_distill_floor.distilling.build import build_student, parameters_of, student_config
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.theory.regression import PredictedLoss

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

TWO_SIDED = 0.8
"""A two-sided interval of this confidence ends above at the one-sided bound of 90 %."""
Z90, Z95 = 1.2816, 1.96
TIMED_TOKENS, ROUNDS = 1024, 3


def plan(
    floor: "FloorPrediction",
    teacher: Any,
    *,
    max_loss: float | None = None,
    max_width: int | None = None,
    max_params: int | None = None,
    depth: int | None = None,
) -> Plan:
    """The student to train.

    Args:
        floor: of the teacher; with a calibration, losses are the student's own.
        teacher: a TransformerBridge on a Hugging Face model, as `build_student` takes it.
        max_loss: the narrowest student that stays below it with 90 % confidence, in nats per token, or in the unit of
            `floor` where nothing was calibrated.
        max_width, max_params: the widest student within them, in dimensions and parameters.
        depth: layers; the teacher's when left out.

    Raises:
        InputError: nothing was asked for, or no student of the teacher's family is good or small enough.
    """
    asked = (max_loss is not None) + (max_width is not None) + (max_params is not None)
    if asked != 1:
        raise InputError("say what the student may be: one of --max-loss, --max-width, --max-params")
    if max_loss is not None and not max_loss > 0:
        raise InputError(f"the loss must be above 0, got {max_loss}")
    width = (
        _narrowest(floor, teacher, max_loss) if max_loss is not None else _widest(teacher, max_width, max_params, depth)
    )
    loss, in_nats = expected_loss(floor, width), floor.calibration is not None or floor.unit == "nats"
    known, assumed = _grounds(floor, width, depth is not None)
    return Plan(
        teacher=floor.stats.model_name,
        width=width,
        depth=depth or int(teacher.cfg.n_layers),
        teacher_depth=int(teacher.cfg.n_layers),
        unit="nats" if in_nats else "mse",
        loss=loss.value,
        bound=None if math.isnan(loss.high) else loss.high,
        calibrated=floor.calibration is not None,
        n_parameters=parameters_of(teacher, width, depth),
        teacher_parameters=parameters_of(teacher, int(teacher.cfg.d_model)),
        speed=relative_speed(teacher, width, depth),
        features=floor.n_features,
        kept=floor.n_features - len(floor.lost(width)),
        known=known,
        assumed=assumed,
    )


def expected_loss(floor: "FloorPrediction", width: int) -> PredictedLoss:
    """What a student of `width` is expected to lose, and its interval of 80 %, which ends at the 90 % bound."""
    if floor.calibration is not None:
        return floor.calibrated_at(width, TWO_SIDED)
    value = floor.floor_at(width)
    relative = (floor.interval[:, 1] - floor.interval[:, 0]) / (2 * np.maximum(floor.expected, 1e-300))
    reach = value * float(np.interp(np.log(width), np.log(floor.widths), relative)) * Z90 / Z95
    return PredictedLoss(value, max(value - reach, 0.0), value + reach)  # not numbers where the text is one block


def relative_speed(teacher: Any, width: int, depth: int | None = None) -> float:
    """Tokens a second of a student's forward pass ÷ those of a model of the teacher's own shape, medians in turn."""
    device = next(teacher.parameters()).device
    shapes = ((int(teacher.cfg.d_model), None), (width, depth))
    models = [build_student(teacher, each, depth=layers, start="random").to(device) for each, layers in shapes]
    length = min(256, int(teacher.cfg.n_ctx))
    ids = torch.zeros((max(1, TIMED_TOKENS // length), length), dtype=torch.long, device=device)
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        for _ in range(ROUNDS + 1):
            for model, of_model in zip(models, seconds, strict=True):
                started = time.perf_counter()
                float(model(ids).logits[0, 0, 0])  # waits for the device
                of_model.append(time.perf_counter() - started)
    of_teacher, of_student = (float(np.median(each[1:])) for each in seconds)
    return of_teacher / of_student


def _widths(teacher: Any) -> list[int]:
    """Widths of students of the teacher's family, in steps of 8 where it is 128 dimensions wide or wider."""
    widest = int(teacher.cfg.d_model)
    step = 8 if widest >= 128 else 1
    return [width for width in range(step, widest + 1, step) if _fits(teacher, width)]


def _narrowest(floor: "FloorPrediction", teacher: Any, max_loss: float) -> int:
    found = [(width, expected_loss(floor, width)) for width in _widths(teacher)]
    for width, loss in found:
        if (loss.value if math.isnan(loss.high) else loss.high) <= max_loss:
            return width
    width, loss = min(found, key=lambda each: each[1].value)
    raise InputError(
        f"no student up to the teacher's width stays below {max_loss:g} with 90 % confidence: at width {width:,}"
        f" {loss.value:.4g} is expected, at most {loss.high:.4g}; raise --max-loss"
    )


def _widest(teacher: Any, max_width: int | None, max_params: int | None, depth: int | None) -> int:
    fitting = [width for width in _widths(teacher) if max_width is None or width <= max_width]
    if max_params is not None:
        fitting = fitting[: bisect_right(fitting, max_params, key=lambda width: parameters_of(teacher, width, depth))]
    if not fitting:
        raise InputError("no student of the teacher's family is as small as that; raise --max-width or --max-params")
    return fitting[-1]


def _fits(teacher: Any, width: int) -> bool:
    try:
        student_config(teacher, width)
    except InputError:
        return False
    return True


def _grounds(floor: "FloorPrediction", width: int, shallow: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what was measured, what is assumed)."""
    stats, calibration = floor.stats, floor.calibration
    known = [f"{floor.n_features:,} features of {stats.sae_name} at {stats.hook_name}, on {stats.n_tokens:,} tokens"]
    assumed = [f"what the SAE leaves unexplained, {stats.fvu:.1%} of the variance, is in no floor"]
    if calibration is None:
        known.append("no student: the loss is the floor itself, which no training goes below by much")
        assumed.append("that a student loses nothing but what its width cannot hold (C = 1, B = 0)")
    else:
        fit = calibration.fit
        known.append(
            f"students of widths {', '.join(str(w) for w in calibration.widths)}: loss ="
            f" {fit.slope:.3g} · {calibration.predictor} + {fit.baseline:.3g}, each width predicted from the others"
            f" {fit.loo_error:.1%} off"
        )
        if not min(calibration.widths) <= width <= max(calibration.widths):
            assumed.append(f"that the line holds at width {width}, outside of the widths that were trained")
        if "under-trained" in calibration.statuses:
            assumed.append("that the learning curves of students that are not saturated end where their fit says")
        assumed.append("that it is trained on text of the same kind, as those students were")
    if shallow:
        assumed.append("that fewer layers lose nothing more: no floor knows of depth")
    return tuple(known), tuple(assumed)
