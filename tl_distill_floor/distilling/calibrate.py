"""The prediction held against students that were trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from scipy.optimize import curve_fit

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.teachers import same_model
from tl_distill_floor.theory.regression import fit_line, leave_one_out_error

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

FEWEST, FOR_A_POWER_LAW = 3, 5
PREDICTORS = ("theorem", "independent", "simulated")


def calibrate(floor: "FloorPrediction", students: Sequence[StudentResult] | Mapping[int, float]) -> Calibration:
    """Fit L = C · floor + B (Sarkar and Deka 2026, sec. 5) to the losses at which trained students saturate.

    Every predictor is fitted, and judged by predicting each width from the others, as are models that know nothing of
    features: lines in 1/width and in the logarithm of the parameters, and, from five students on, the power law with
    an offset that scaling laws of distillation take (Busbridge et al. 2025, eq. 8, at one teacher and saturated data).

    Args:
        floor: of the students' teacher.
        students: results of `distill`, those that diverged left out; or the loss of each width, nats per token.

    Raises:
        InputError: fewer than three widths, or students of another teacher.
    """
    used, warnings = _usable(floor, students)
    widths = np.array([width for width, *_ in used])
    losses = np.array([loss for _, loss, _, _ in used])
    if len(set(widths.tolist())) < FEWEST:
        raise InputError(
            f"calibrating takes students of at least {FEWEST} widths, got {len(set(widths.tolist()))}"
            f"{''.join(f' ({warning})' for warning in warnings)}; distil more with tl-floor distill --widths"
        )
    names = [name for name in PREDICTORS if name != "simulated" or floor.simulated is not None]
    predicted = {name: np.array([floor.predicted(name, int(width)) for width in widths]) for name in names}
    fits = {name: fit_line(x, losses, widths) for name, x in predicted.items()}
    best = min(fits, key=lambda name: fits[name].loo_error)
    own = floor.predicted(best, floor.stats.d_model)
    return Calibration(
        teacher=floor.stats.model_name,
        stats=floor.stats.digest(),
        unit=floor.unit,
        widths=tuple(int(width) for width in widths),
        losses=tuple(losses.tolist()),
        statuses=tuple(status for *_, status, _ in used),
        predictor=best,
        predictors=fits,
        nulls=_nulls(widths.astype(float), losses, [n for *_, n in used]),
        at_teacher_width=fits[best].at(own).value,
        warnings=tuple(warnings),
    )


def _usable(
    floor: "FloorPrediction", students: Sequence[StudentResult] | Mapping[int, float]
) -> tuple[list[tuple[int, float, str, int | None]], list[str]]:
    """(width, loss, status, parameters) of the students that have a floor, the narrowest first, and what to say."""
    if isinstance(students, Mapping):
        if not all(np.isfinite(loss) and loss > 0 for loss in students.values()):
            raise InputError("every student's loss must be a number above 0, in nats per token")
        return [(int(width), float(loss), "given", None) for width, loss in sorted(students.items())], []
    warnings = []
    foreign = {s.teacher for s in students if s.teacher != floor.stats.model_name}
    foreign = {name for name in foreign if not same_model(name, floor.stats.model_name)}
    if foreign:
        raise InputError(f"the students are of {', '.join(sorted(foreign))}, the floor is of {floor.stats.model_name}")
    lost = [student.name for student in students if student.status == "diverged"]
    open_ended = [s.name for s in students if s.status != "diverged" and s.floor <= 0]
    fine = sorted((s for s in students if s.name not in {*lost, *open_ended}), key=lambda s: s.width)
    short = [student.name for student in fine if student.status == "under-trained"]
    if lost:
        warnings.append(f"left out, since they diverged: {', '.join(lost)}")
    if open_ended:
        warnings.append(f"left out, since their learning curves do not bend yet: {', '.join(open_ended)}; train longer")
    if short:
        warnings.append(f"not saturated, so that their floors are extrapolated or not known: {', '.join(short)}")
    return [(s.width, s.floor, s.status, s.n_parameters) for s in fine], warnings


def _nulls(
    widths: Float64[np.ndarray, " width"], losses: Float64[np.ndarray, " width"], parameters: list[Any]
) -> dict[str, float]:
    """Leave-one-width-out errors of models without features."""
    found = {"1/width": leave_one_out_error(1.0 / widths, losses, widths)}
    size = widths if None in parameters else np.array(parameters, dtype=np.float64)
    found["log size" if size is not widths else "log width"] = leave_one_out_error(np.log(size), losses, widths)
    error = _power_law_error(size, losses, widths) if len(set(widths.tolist())) >= FOR_A_POWER_LAW else None
    return found if error is None else found | {"power law": error}


def _power_law_error(
    size: Float64[np.ndarray, " student"],
    losses: Float64[np.ndarray, " student"],
    widths: Float64[np.ndarray, " student"],
) -> float | None:
    """Of L = E + A · size^-b, fitted to the other widths; None where no fit is found."""
    shape: Callable[..., Any] = lambda x, offset, scale, power: offset + scale * x**-power  # noqa: E731
    scaled, errors = size / np.exp(np.log(size).mean()), []
    for width in np.unique(widths):
        out = widths == width
        start = (0.5 * losses.min(), losses.mean(), 0.5)
        try:
            fit, _ = curve_fit(shape, scaled[~out], losses[~out], p0=start, bounds=(0, np.inf), maxfev=20_000)
        except RuntimeError:
            return None
        errors += np.abs(shape(scaled[out], *fit) - losses[out]).tolist()
    return float(np.mean(errors)) / float(losses.mean())
