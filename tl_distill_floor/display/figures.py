"""Figures of predictions and of toy models: a record in, a plotly figure out."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int64

from tl_distill_floor.display.escaping import shown
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import UNIT_IN_WORDS
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.storage.atomic import write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart; blue is for what is expected.
COLOURS = {"theorem": "#d55e00", "independent": "#009e73", "simulated": "#0072b2", "calibrated": "#0072b2"}
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000")
POINTS, BINS = 400, 60
"""Points of a curve over many thousands of features, and of one that is a mean over neighbours."""
IMAGES = (".svg", ".png", ".pdf", ".html")


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as `.svg`, `.png` or `.pdf`, for papers, or as `.html`.

    Raises:
        InputError: another suffix, no kaleido or no browser to draw with, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix not in IMAGES:
        raise InputError(f"a figure is written as {', '.join(IMAGES)}, got {file.name}")
    try:
        html = file.suffix == ".html"
        drawn = figure.to_html().encode() if html else figure.to_image(file.suffix[1:], width=800, height=500, scale=2)
    except Exception as error:  # kaleido's and its browser's, of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot draw {file.name} ({reason}); pip install kaleido, and install Chrome or Chromium, or write .html"
        ) from error
    return write_atomically(file, drawn)


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
            fillcolor="rgba(0, 114, 178, 0.15)",
            line={"width": 0},
            name="95 % interval",
            hoverinfo="skip",
        )
    for name in ("theorem", "independent", "simulated"):
        curve = getattr(floor, name)
        if curve is not None:
            expected = curve is floor.expected
            line = {"color": COLOURS[name], "width": 3 if expected else 1.5}
            shown = f"{name} (expected)" if expected else name
            figure.add_scatter(x=widths, y=curve.tolist(), mode="lines+markers", line=line, name=shown)
    calibration, calibrated = floor.calibration, floor.calibrated
    if calibration is not None and calibrated is not None and floor.unit == "nats":
        line = {"dash": "dash", "color": COLOURS["calibrated"]}
        figure.add_scatter(x=widths, y=calibrated.tolist(), mode="lines", line=line, name="calibrated")
        students = {"x": list(calibration.widths), "y": list(calibration.losses)}
        figure.add_scatter(**students, mode="markers", marker={"color": "black", "size": 9}, name="students")
    figure.add_vline(
        floor.critical_width,
        line_dash="dash",
        annotation_text=f"d* = {floor.critical_width:.0f}",
        annotation_position="top right",
    )
    figure.add_vline(floor.stats.d_model, line_dash="dot", annotation_text="teacher", annotation_position="top left")
    return laid_out(
        figure,
        f"Loss floor of students of {as_words(floor.stats.model_name)}",
        "student width (dimensions)",
        UNIT_IN_WORDS[floor.unit],
    )


def costs_figure(floor: FloorPrediction) -> go.Figure:
    """Sorted costs of the alive features, their power law, and the cliff beyond which they fall faster."""
    cost = floor.stats.cost[floor.ranked]
    cost = cost[cost > 0]
    ranks = spaced(len(cost))
    figure = go.Figure()
    line = {"color": COLOURS["simulated"]}
    if len(cost):
        figure.add_scatter(x=ranks.tolist(), y=cost[ranks - 1].tolist(), mode="lines", line=line, name="measured")
    law = floor.power_law
    if law is not None:
        for slope, at, values in law.lines(cost, ranks):
            dashed = {"dash": "dash", "color": "black", "width": 1.5}
            named = f"rank^-{slope:.3g}"
            figure.add_scatter(x=at.tolist(), y=values.tolist(), mode="lines", line=dashed, name=named)
        if law.cliff is not None:
            figure.add_vline(law.cliff, line_dash="dot")
            # Plotly places a line on a logarithmic axis by its value, and words by its logarithm.
            words = {"text": f"cliff at {law.cliff:,.0f}", "showarrow": False, "xanchor": "right"}
            figure.add_annotation(x=np.log10(law.cliff), y=1.0, yref="paper", **words)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", exponentformat="power")
    unit = UNIT_IN_WORDS[floor.unit]
    return laid_out(figure, "What each feature is worth", "rank by cost", f"cost ({unit})")


def capacities_figure(floor: FloorPrediction, widths: Sequence[int] | None = None) -> go.Figure:
    """Dimensions that water-filling gives each feature at a few widths, the mean over neighbours in rank.

    Neighbours cost about the same and fire more or less often, so that one may get half a dimension and the next none.
    """
    order = floor.ranked
    starts = spaced(len(order), BINS) - 1
    counts = np.diff(np.append(starts, len(order)))
    middle = starts + (counts + 1) / 2
    figure = go.Figure()
    for number, width in enumerate(widths or floor.widths.tolist()):
        capacity = np.add.reduceat(floor.capacities(width)[order], starts) / counts
        line = {"color": CYCLE[number % len(CYCLE)]}
        figure.add_scatter(x=middle.tolist(), y=capacity.tolist(), mode="lines", line=line, name=f"width {width:,}")
    figure.update_xaxes(type="log")
    return laid_out(figure, "Capacity given to each feature", "rank by cost", "dimensions, mean over neighbours")


def growth_figure(floor: FloorPrediction) -> go.Figure:
    """F, the alive features, against the tokens read: a curve that still rises says that more text would find more."""
    tokens, alive = floor.stats.growth(floor.min_count)
    figure = go.Figure()
    line = {"color": COLOURS["simulated"]}
    figure.add_scatter(x=tokens.tolist(), y=alive.tolist(), mode="lines+markers", line=line, name="alive features")
    return laid_out(figure, "Features found in the text", "tokens", f"F (fired {floor.min_count:,} times or more)")


def critical_widths_figure(floors: Sequence[FloorPrediction], labels: Sequence[str] | None = None) -> go.Figure:
    """d* over layers or SAEs, with its interval, beside the teacher's width."""
    names = [as_words(name) for name in labels or [floor.stats.hook_name for floor in floors]]
    widths = [floor.critical_width for floor in floors]
    high, low = (
        [abs(floor.critical_width_interval[side] - floor.critical_width) for floor in floors] for side in (1, 0)
    )
    figure = go.Figure()
    figure.add_scatter(
        x=names,
        y=widths,
        error_y={"array": np.nan_to_num(high).tolist(), "arrayminus": np.nan_to_num(low).tolist()},
        mode="lines+markers",
        line={"color": COLOURS["simulated"]},
        name="d*",
    )
    if len({floor.stats.d_model for floor in floors}) == 1:
        figure.add_hline(floors[0].stats.d_model, line_dash="dot", annotation_text="teacher's width")
    figure.update_yaxes(rangemode="tozero")
    teachers = ", ".join(dict.fromkeys(floor.stats.model_name for floor in floors))
    return laid_out(figure, f"Critical width of {as_words(teachers)}", "", "d* (dimensions)")


def compared_floors_figure(floors: Sequence[FloorPrediction], labels: Sequence[str]) -> go.Figure:
    """Expected floors of several predictions against the width."""
    figure = go.Figure()
    for number, (floor, label) in enumerate(zip(floors, labels, strict=True)):
        sure = np.isfinite(floor.interval).all()
        error = np.abs(floor.interval - floor.expected[:, None]) if sure else np.zeros((len(floor.widths), 2))
        figure.add_scatter(
            x=floor.widths.tolist(),
            y=floor.expected.tolist(),
            error_y={"array": error[:, 1].tolist(), "arrayminus": error[:, 0].tolist()},
            mode="lines+markers",
            line={"color": CYCLE[number % len(CYCLE)]},
            name=as_words(label),
        )
    units = {floor.unit for floor in floors}
    unit = UNIT_IN_WORDS[floors[0].unit] if len(units) == 1 else "each in its own unit"
    return laid_out(figure, "Expected floors", "student width (dimensions)", unit)


def as_words(name: str) -> str:
    """A name from elsewhere, which plotly is not to read as markup."""
    return escape(shown(name))


def laid_out(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    """In the one style of all figures."""
    return figure.update_layout(
        title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", font={"size": 13}, margin={"r": 40, "t": 60}
    )


def spaced(n: int, points: int = POINTS) -> Int64[np.ndarray, " rank"]:
    """At most so many ranks from 1 to n, evenly spaced in their logarithm."""
    return np.unique(np.geomspace(1, max(n, 1), points).round().astype(np.int64))


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
    title = f"Toy models of {result['n_features']} features, sparsity {result['alpha']:g}{teacher}"
    return laid_out(figure, title, "width (dimensions)", "floor (importance-weighted squared error)")


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
