"""Figures of toy models and of the capacity function."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.display.figure_style import apply_style
from tl_distill_floor.theory.bootstrap import Z_95


def toy_floor_figure(result: Mapping[str, Any]) -> go.Figure:
    """Return the reached floor of one toy configuration and all predictions against the width.

    Args:
        result: one configuration, as `tl-floor toy --json` prints it.
    """
    figure = go.Figure()
    for name, floors in result["predicted"].items():
        figure.add_scatter(x=result["widths"], y=floors, mode="lines", name=name)
    figure.add_scatter(
        x=result["widths"],
        y=result["reached"],
        error_y={"array": [Z_95 * error for error in result["standard_error"]]},
        mode="markers",
        marker={"color": "black"},
        name="reached",
    )
    teacher = f", distilled from width {result['teacher_width']}" if result["teacher_width"] else ""
    title = f"Toy models of {result['n_features']} features, sparsity {result['alpha']:g}{teacher}"
    return apply_style(figure, title, "width (dimensions)", "floor (importance-weighted squared error)")


def predicted_against_reached_figure(results: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the predicted against the reached floors of several toy configurations; predictions of 0 are left out.

    Args:
        results: configurations, as `tl-floor toy --json` prints them.
    """
    figure = go.Figure()
    reached = np.concatenate([result["reached"] for result in results])
    for name in results[0]["predicted"]:
        predicted = np.concatenate([result["predicted"][name] for result in results])
        positive = predicted > 0
        figure.add_scatter(x=reached[positive], y=predicted[positive], mode="markers", marker={"size": 4}, name=name)
    ends = [float(reached.min()), float(reached.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "black", "width": 1}, name="equal")
    figure.update_xaxes(type="log", title="reached (importance-weighted squared error)")
    figure.update_yaxes(type="log", title="predicted", range=np.log10([ends[0] / 3, ends[1] * 3]).tolist())
    figure.update_layout(title=f"{len(results)} toy configurations", template="plotly_white")
    return figure


def capacity_figure(
    alpha: Sequence[float], capacity: Sequence[float], critical_width: Sequence[float], n_features: int
) -> go.Figure:
    """Return the capacity function g(α) and the critical width d* against the sparsity α, on two axes.

    Args:
        alpha: sparsities.
        capacity: g at each sparsity, features per dimension.
        critical_width: d* at each sparsity, dimensions.
        n_features: the number of features that d* is for.
    """
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
