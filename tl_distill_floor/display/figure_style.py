"""Colours, layout and text of all figures."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int64

from tl_distill_floor.display.escaping import escape_control

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = {
    "theorem": "#d55e00",
    "independent": "#009e73",
    "simulated": "#0072b2",
    "calibrated": "#0072b2",
    "head": "#444444",
    "expected": "#a0447f",
}
"""Colour of each predictor."""
BAND = "rgba(160, 68, 127, 0.15)"
"""Colour of the interval of the expected loss."""
SAMPLING_BAND = "rgba(0, 114, 178, 0.15)"
"""Colour of the sampling interval of the feature floor."""
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000")
"""Colours of curves that are not predictors."""
SYMBOLS = ("circle", "square", "diamond", "cross")
"""Markers of curves that share a colour."""
MAX_POINTS = 400
"""Points of a curve over many thousands of features."""


def colour_and_symbol(number: int) -> tuple[str, str]:
    """Return the colour and the marker of one of many curves.

    Example:
        >>> colour_and_symbol(0), colour_and_symbol(7)
        (('#0072b2', 'circle'), ('#0072b2', 'square'))
    """
    return CYCLE[number % len(CYCLE)], SYMBOLS[number // len(CYCLE) % len(SYMBOLS)]


def escape_markup(name: str) -> str:
    """Escape a name from elsewhere, so that plotly does not read it as HTML."""
    return escape(escape_control(name))


def apply_style(figure: go.Figure, title: str, x_title: str, y_title: str) -> go.Figure:
    """Set the titles and the common layout of a figure, and return it."""
    return figure.update_layout(
        title=title,
        xaxis_title=x_title,
        yaxis_title=y_title,
        template="plotly_white",
        font={"size": 13},
        margin={"r": 40, "t": 60},
    )


def log_spaced_ranks(n: int, n_points: int = MAX_POINTS) -> Int64[np.ndarray, " rank"]:
    """Return at most `n_points` ranks from 1 to `n`, evenly spaced in their logarithm."""
    return np.unique(np.geomspace(1, max(n, 1), n_points).round().astype(np.int64))


def error_bars(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, list[float]]:
    """Return plotly error bars from `low` to `high` around `values`.

    There is none towards an end that is NaN or on the other side of its value.
    """
    return {
        "array": np.nan_to_num(np.maximum(high - values, 0.0)).tolist(),
        "arrayminus": np.nan_to_num(np.maximum(values - low, 0.0)).tolist(),
    }


def add_curve(
    figure: go.Figure,
    x: Sequence[int] | Sequence[float] | Sequence[str] | np.ndarray,
    y: Sequence[float | None] | np.ndarray,
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    width: float = 2.0,
    markers: bool = True,
    error_y: dict[str, list[float]] | None = None,
) -> None:
    """Draw a curve.

    Args:
        figure: the figure, which is changed.
        x: positions.
        y: values.
        name: name in the legend.
        colour: colour of the line and its markers.
        dash: "solid", "dash" or "dot".
        width: width of the line in pixels.
        markers: whether the points are marked.
        error_y: see `error_bars`.
    """
    figure.add_scatter(
        x=np.asarray(x).tolist(),
        y=np.asarray(y).tolist(),
        error_y=error_y,
        mode="lines+markers" if markers else "lines",
        line={"color": colour, "dash": dash, "width": width},
        name=name,
    )


def add_band(
    figure: go.Figure,
    x: Sequence[int] | Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    name: str,
) -> None:
    """Draw the area between two curves.

    Args:
        figure: the figure, which is changed.
        x: positions, rising.
        low: lower curve.
        high: upper curve.
        colour: colour of the area.
        name: name in the legend.
    """
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        mode="lines",
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        name=name,
        hoverinfo="skip",
    )


def add_loss_axis_switch(figure: go.Figure, lowest: float) -> go.Figure:
    """Make the vertical axis logarithmic, and add buttons that switch between a logarithmic and a linear axis.

    Args:
        figure: the figure with all of its curves, which is changed.
        lowest: smallest loss that the logarithmic axis shows, above 0.

    Returns:
        The figure.
    """
    highest = max(lowest, *(loss for curve in figure.data for loss in curve.y))
    bounds = [math.log10(lowest), math.log10(1.5 * highest)]
    logarithmic = {"yaxis.type": "log", "yaxis.range": bounds, "yaxis.autorange": False, "yaxis.dtick": 1}
    linear = {"yaxis.type": "linear", "yaxis.autorange": True, "yaxis.dtick": None}
    buttons = [
        {"label": label, "method": "relayout", "args": [change]}
        for label, change in (("log", logarithmic), ("linear", linear))
    ]
    figure.update_yaxes(type="log", range=bounds, dtick=1)
    # Right of the figure, below the legend: plotly's own tools are at the top, the title of the axis below.
    place = {"x": 1.02, "y": 0.0, "xanchor": "left", "yanchor": "bottom"}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, **place}
    return figure.update_layout(updatemenus=[menu])
