"""Figures: a record in, a plotly figure out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.prediction import FloorPrediction
from tl_distill_floor.records import UNIT_IN_WORDS


def floor_figure(floor: FloorPrediction) -> go.Figure:
    """Floor against student width: predictions, their interval, d*, the teacher's width, and students if there are any.

    Students, which lose nats per token, are drawn where predictions are in nats.
    """
    widths = floor.widths.tolist()
    figure = go.Figure()
    if np.isfinite(floor.interval).all():
        figure.add_scatter(
            x=widths + widths[::-1],
            y=[*floor.interval[:, 1].tolist(), *floor.interval[::-1, 0].tolist()],
            mode="lines",
            fill="toself",
            fillcolor="rgba(0, 90, 160, 0.15)",
            line={"width": 0},
            name="95 % interval",
            hoverinfo="skip",
        )
    for name in ("theorem", "independent", "simulated"):
        curve = getattr(floor, name)
        if curve is not None:
            figure.add_scatter(x=widths, y=curve.tolist(), mode="lines+markers", name=name)
    calibration, calibrated = floor.calibration, floor.calibrated
    if calibration is not None and calibrated is not None and floor.unit == "nats":
        figure.add_scatter(x=widths, y=calibrated.tolist(), mode="lines", line={"dash": "dash"}, name="calibrated")
        students = {"x": list(calibration.widths), "y": list(calibration.losses)}
        figure.add_scatter(**students, mode="markers", marker={"color": "black", "size": 9}, name="students")
    figure.add_vline(floor.critical_width, line_dash="dash", annotation_text=f"d* = {floor.critical_width:.0f}")
    figure.add_vline(floor.stats.d_model, line_dash="dot", annotation_text="teacher")
    figure.update_layout(
        title=f"Loss floor of students of {floor.stats.model_name}",
        xaxis_title="student width (dimensions)",
        yaxis_title=UNIT_IN_WORDS[floor.unit],
        template="plotly_white",
    )
    return figure


def toy_floor_figure(result: dict[str, Any]) -> go.Figure:
    """Floor against width of one toy task, reached and predicted, as `tl-floor toy --json` has it."""
    figure = go.Figure()
    for name, floors in result["predicted"].items():
        figure.add_scatter(x=result["widths"], y=floors, mode="lines", name=name)
    figure.add_scatter(
        x=result["widths"],
        y=result["reached"],
        error_y={"array": [1.96 * error for error in result["standard_error"]]},
        mode="markers",
        marker={"color": "black"},
        name="reached",
    )
    teacher = f", distilled from width {result['teacher_width']}" if result["teacher_width"] else ""
    figure.update_layout(
        title=f"Toy models of {result['n_features']} features, sparsity {result['alpha']:g}{teacher}",
        xaxis_title="width (dimensions)",
        yaxis_title="floor (importance-weighted squared error)",
        template="plotly_white",
    )
    return figure


def predicted_against_reached_figure(results: Sequence[dict[str, Any]]) -> go.Figure:
    """Every toy floor of some configurations, predicted against reached, a colour a predictor; zeros are left out."""
    figure = go.Figure()
    reached = np.concatenate([result["reached"] for result in results])
    for name in results[0]["predicted"]:
        predicted = np.concatenate([result["predicted"][name] for result in results])
        shown = predicted > 0
        figure.add_scatter(x=reached[shown], y=predicted[shown], mode="markers", marker={"size": 4}, name=name)
    ends = [float(reached.min()), float(reached.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "black", "width": 1}, name="equal")
    figure.update_xaxes(type="log", title="reached (importance-weighted squared error)")
    figure.update_yaxes(type="log", title="predicted", range=np.log10([ends[0] / 3, ends[1] * 3]).tolist())
    figure.update_layout(title=f"{len(results)} toy configurations", template="plotly_white")
    return figure


def capacity_figure(
    alpha: Sequence[float], capacity: Sequence[float], critical_width: Sequence[float], n_features: int
) -> go.Figure:
    """g and, on a second axis, d* of so many features against the sparsity α."""
    figure = go.Figure()
    figure.add_scatter(x=list(alpha), y=list(capacity), name="g(α), features per dimension")
    figure.add_scatter(x=list(alpha), y=list(critical_width), name=f"d* of {n_features:,} features", yaxis="y2")
    figure.update_layout(
        title="Theorem 1's capacity function and critical width",
        xaxis_title="sparsity α",
        yaxis={"title": "features per dimension", "type": "log"},
        yaxis2={"title": "dimensions", "overlaying": "y", "side": "right", "type": "log"},
        legend={"x": 0.05, "y": 0.05},
        template="plotly_white",
    )
    return figure
