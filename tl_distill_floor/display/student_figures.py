"""Figures of students and calibrations."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.display.figure_style import COLOURS, CYCLE, apply_style, escape_markup
from tl_distill_floor.display.units import LONG_UNIT, loss_with_unit
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.student import StudentResult

LOSS_AXIS = loss_with_unit("nats")
AXIS_UNIT = {"nats": LONG_UNIT["nats"], "mse": "squared error per token"}


def learning_figure(students: Sequence[StudentResult]) -> go.Figure:
    """Return the held-out loss of each student against its training tokens, and the limit of its learning curve."""
    figure = go.Figure()
    for number, student in enumerate(student for student in students if student.tokens):
        colour = CYCLE[number % len(CYCLE)]
        figure.add_scatter(
            x=list(student.tokens),
            y=list(student.losses),
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 5},
            name=escape_markup(f"{student.name} ({student.status})"),
        )
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
