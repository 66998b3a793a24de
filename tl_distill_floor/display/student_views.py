"""Students and calibrations as rich tables and figures."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.figure_style import COLOURS, apply_style, colour_and_symbol, escape_markup
from tl_distill_floor.display.tables import plain_table, warning_lines
from tl_distill_floor.display.units import AXIS_UNIT, SHORT_UNIT, STUDENT_LOSS, loss_with_unit
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.theory.regression import LinearFit

LOSS_AXIS = loss_with_unit("nats")


def students_table(students: Sequence[StudentResult]) -> RenderableType:
    """Return the held-out loss of each student, and the limit of its learning curve."""
    teachers = list(dict.fromkeys(student.teacher for student in students))
    heldout_tokens = " or ".join(dict.fromkeys(f"{student.heldout_tokens:,}" for student in students))
    table = plain_table(
        f"Students of {', '.join(teachers)}: {STUDENT_LOSS}, {SHORT_UNIT['nats']}, on {heldout_tokens} held-out tokens"
    )
    of_teacher = ["teacher"] if len(teachers) > 1 else []
    for heading in ("student", *of_teacher, "parameters", "tokens", "reached", "floor", "95 % interval", ""):
        table.add_column(heading, justify="left" if heading in ("student", "teacher", "") else "right")
    for student in students:
        low, high = student.interval
        table.add_row(
            Text(student.name),
            *(Text(student.teacher) for _ in of_teacher),
            f"{student.n_parameters:,}",
            f"{student.tokens[-1]:,}" if student.tokens else "",
            f"{student.loss:.4f}" if student.tokens else "",
            "" if not student.tokens else f"{student.floor:.4f}" if student.floor_is_known else "not known",
            f"{low:.4g}–{high:.4g}" if student.tokens else "",
            student.status,
        )
    note = Text(
        "floor: L∞ of the learning curve L∞ + A · t^-b; the interval covers the error of that fit, and how far real"
        " curves are from this form."
    )
    diverged = [student for student in students if student.status == "diverged"]
    warnings = [f"{student.name} diverged {student.settings.get('diverged', '')}" for student in diverged]
    warnings += dict.fromkeys(text for student in students for text in student.settings.get("warnings", ()))
    return Group(table, note, warning_lines(warnings))


def calibration_table(calibration: Calibration) -> RenderableType:
    """Return the students' losses with the predictions, the linear fits, and the null models."""
    students = plain_table(
        f"Students of {calibration.teacher}: {STUDENT_LOSS}, {SHORT_UNIT['nats']}; predictions:"
        f" {SHORT_UNIT[calibration.unit]}"
    )
    names = list(calibration.predictors)
    for heading in ("width", "student", *names, "calibrated", "95 %"):
        students.add_column(heading, justify="right")
    for i, (width, loss) in enumerate(zip(calibration.widths, calibration.losses, strict=True)):
        predicted = calibration.fit.at(calibration.fit.x[i])
        students.add_row(
            f"{width:,}",
            f"{loss:.4f}",
            *(f"{calibration.predictors[name].x[i]:.4g}" for name in names),
            f"{predicted.value:.4f}",
            f"{predicted.low:.3g}–{predicted.high:.3g}",
        )
    conclusion = Text(_conclusion(calibration))
    return Group(students, Text(), _fits(calibration), conclusion, warning_lines(calibration.warnings))


def learning_figure(students: Sequence[StudentResult]) -> go.Figure:
    """Return the held-out loss of each student against its training tokens, and the limit of its curve if known."""
    figure = go.Figure()
    for number, student in enumerate(student for student in students if student.tokens):
        colour, symbol = colour_and_symbol(number)
        figure.add_scatter(
            x=list(student.tokens),
            y=list(student.losses),
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 5, "symbol": symbol},
            name=escape_markup(f"{student.name} ({student.status})"),
        )
        if student.floor_is_known:
            figure.add_scatter(
                x=[student.tokens[0], student.tokens[-1]],
                y=[student.floor, student.floor],
                mode="lines",
                line={"color": colour, "dash": "dot", "width": 1},
                name=escape_markup(f"{student.name}, floor {student.floor:.3g}"),
                showlegend=False,
            )
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return apply_style(figure, "Learning curves (dotted: their limits)", "tokens", LOSS_AXIS)


def calibration_figure(calibration: Calibration) -> go.Figure:
    """Return the loss of each student against each prediction, with the linear fits."""
    figure = go.Figure()
    labels = [f"width {width:,}" for width in calibration.widths]
    for name, fit in calibration.predictors.items():
        x, order = np.array(fit.x), np.argsort(fit.x)
        fitted = fit.slope * x + fit.baseline
        best = " (best)" if name == calibration.predictor else ""
        figure.add_scatter(
            x=x.tolist(),
            y=list(calibration.losses),
            mode="markers",
            marker={"color": COLOURS[name], "size": 9},
            text=labels,
            name=name + best,
        )
        figure.add_scatter(
            x=x[order].tolist(),
            y=fitted[order].tolist(),
            mode="lines",
            line={"color": COLOURS[name], "dash": "dash", "width": 1.5},
            name=f"{name}: C = {fit.slope:.3g}, B = {fit.baseline:.2g}, R² = {fit.r2:.4f}",
            showlegend=False,
        )
    x_title = f"predicted floor ({AXIS_UNIT[calibration.unit]})"
    return apply_style(figure, "Predicted floors and trained students", x_title, f"student's floor ({LOSS_AXIS})")


def _fits(calibration: Calibration) -> Table:
    table = plain_table(
        "loss = C · prediction + B, nats/token (95 %); error: leave-one-width-out, as a share of the mean loss"
    )
    for heading in ("", "C", "B", "R²", "error"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, fit in calibration.predictors.items():
        mark = " *" if name == calibration.predictor else ""
        table.add_row(name + mark, *_fit_cells(fit))
    for null_model, error in calibration.nulls.items():
        table.add_row(f"null, {null_model}", "", "", "", f"{error:.1%}")
    return table


def _fit_cells(fit: LinearFit) -> tuple[str, ...]:
    (slope_low, slope_high), (low, high) = fit.slope_interval, fit.baseline_interval
    return (
        f"{fit.slope:.3g} ({slope_low:.2g}…{slope_high:.2g})",
        f"{fit.baseline:.2g} ({low:.2g}…{high:.2g})",
        f"{fit.r2:.4f}",
        f"{fit.loo_error:.1%}",
    )


def _conclusion(calibration: Calibration) -> str:
    best_null, null_error = min(calibration.nulls.items(), key=lambda item: item[1])
    comparison = "less than" if calibration.loo_error < null_error else "not less than"
    return (
        f"calibrated: the linear fit marked *, with the 95 % prediction interval of a new student. Its error is"
        f" {comparison} that of the best null model, {best_null}. For a student as wide as the teacher it predicts"
        f" {calibration.at_teacher_width:.4g} nats per token."
    )
