"""Figures: a record in, a plotly figure out."""

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.prediction import FloorPrediction
from tl_distill_floor.records import UNIT_IN_WORDS


def floor_figure(floor: FloorPrediction) -> go.Figure:
    """Floor against student width, with the interval of the expected floor, d* and the teacher's width."""
    widths = floor.widths.tolist()
    figure = go.Figure()
    if np.isfinite(floor.interval).all():
        figure.add_scatter(
            x=widths + widths[::-1],
            y=[*floor.interval[:, 1].tolist(), *floor.interval[::-1, 0].tolist()],
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
    figure.add_vline(floor.critical_width, line_dash="dash", annotation_text=f"d* = {floor.critical_width:.0f}")
    figure.add_vline(floor.stats.d_model, line_dash="dot", annotation_text="teacher")
    figure.update_layout(
        title=f"Loss floor of students of {floor.stats.model_name}",
        xaxis_title="student width (dimensions)",
        yaxis_title=UNIT_IN_WORDS[floor.unit],
        template="plotly_white",
    )
    return figure
