"""Figures of predictions, and `save_figure`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.display.figure_style import (
    COLOURS,
    CYCLE,
    SAMPLING_BAND,
    add_band,
    add_curve,
    add_loss_axis_switch,
    apply_style,
    error_bars,
    escape_markup,
    log_spaced_ranks,
)
from tl_distill_floor.display.head_views import SHOWN_LEVEL, add_expected, add_students
from tl_distill_floor.display.measurement_views import sorted_costs_figure
from tl_distill_floor.display.units import loss_with_unit
from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.storage.atomic import write_atomically

SMALLEST_SHOWN_SHARE = 1e-4
"""Smallest loss of a logarithmic axis, as a share of the largest."""
N_BINS = 60
"""Points of a curve that is a mean over features of neighbouring rank."""
SUFFIXES = (".svg", ".png", ".pdf", ".html")
"""Formats of a saved figure."""


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Save a plotly figure, for papers or for the web.

    Args:
        figure: the figure, such as the result of `.plot()`.
        path: file with the suffix `.svg`, `.png`, `.pdf` or `.html`. Its directory is created.

    Returns:
        Path of the file.

    Raises:
        InputError: the suffix is another one, kaleido or its browser is missing, or the file cannot be written.

    Example:
        >>> from tl_distill_floor import FloorPrediction, save_figure
        >>> save_figure(FloorPrediction.load("runs/tiny-prose").plot(), "floor.svg")  # doctest: +SKIP
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"a figure can be saved as {', '.join(SUFFIXES)}, got {file.name}")
    try:
        if suffix == ".html":
            content = figure.to_html().encode()
        else:
            without_buttons = go.Figure(figure)
            without_buttons.layout.updatemenus = ()  # plotly's update_layout would keep them
            content = without_buttons.to_image(suffix.removeprefix("."), width=800, height=500, scale=2)
    except Exception as error:  # kaleido and its browser raise errors of many types
        reason = reason_of(error).rstrip(" ,.:")
        raise InputError(
            f"cannot draw {file.name} ({reason}); pip install kaleido, and install Chrome or Chromium, or save .html"
        ) from error
    return write_atomically(file, content)


def floor_figure(floor: FeatureFloorPrediction) -> go.Figure:
    """Return the floor against the student width, with d* and the teacher's width.

    Trained students and the calibrated prediction are shown if there is a calibration and the unit is nats. The loss
    axis is logarithmic; buttons switch it.
    """
    figure = go.Figure()
    largest = float(max(floor.independent.max(), floor.feature_floor.max(), floor.theorem.max(), 1e-300))
    lowest = SMALLEST_SHOWN_SHARE * largest
    _add_feature_floors(figure, floor, lowest)
    if floor.expected is not None:
        narrower = [width for width in floor.widths.tolist() if width < floor.d_model]
        expected = [floor.expected_at(width, SHOWN_LEVEL) for width in narrower]
        add_expected(figure, narrower, expected)
    if floor.unit == "nats":
        _add_bound_and_students(figure, floor)
    figure.add_vline(
        floor.critical_width,
        line_dash="dash",
        annotation_text=f"d* = {floor.critical_width:.0f}",
        annotation_position="top right",
    )
    figure.add_vline(floor.d_model, line_dash="dot", annotation_text="teacher", annotation_position="top left")
    title = f"Predicted loss of students of {escape_markup(floor.stats.model_name)}"
    apply_style(figure, title, "student width (dimensions)", loss_with_unit(floor.unit))
    return add_loss_axis_switch(figure, lowest)


def _add_feature_floors(figure: go.Figure, floor: FeatureFloorPrediction, lowest: float) -> None:
    """Draw the floors that the features predict, and the sampling interval of the feature floor.

    Args:
        figure: the figure, which is changed.
        floor: the prediction.
        lowest: smallest loss that the axis shows; ends of the interval below it are drawn there.
    """
    widths = floor.widths.tolist()
    if np.isfinite(floor.sampling_interval).all():
        low, high = np.maximum(floor.sampling_interval, lowest).T.tolist()
        add_band(figure, widths, low, high, SAMPLING_BAND, "sampling (95 %)")
    for name in ("theorem", "independent", "simulated"):
        curve = getattr(floor, name)
        if curve is not None:
            is_feature_floor = curve is floor.feature_floor
            label = f"{name} (feature floor)" if is_feature_floor else name
            add_curve(figure, widths, curve, label, COLOURS[name], width=3.0 if is_feature_floor else 1.5)


def _add_bound_and_students(figure: go.Figure, floor: FeatureFloorPrediction) -> None:
    """Draw the bound, the calibrated prediction and the students of the calibration, as far as there are any."""
    if floor.bound is not None:
        # A bound of 0, which a logarithmic axis lacks, would be drawn as a vertical line at the width before it.
        shown = floor.bound > 0
        add_curve(figure, floor.widths[shown], floor.bound[shown], "bound (head floor)", COLOURS["head"], dash="dot")
    calibration, calibrated = floor.calibration, floor.calibrated
    if calibration is not None and calibrated is not None:
        add_curve(figure, floor.widths, calibrated, "calibrated", COLOURS["calibrated"], dash="dash", markers=False)
        add_students(figure, calibration)


def costs_figure(floor: FeatureFloorPrediction) -> go.Figure:
    """Return the sorted costs of the alive features with their power law."""
    return sorted_costs_figure(floor.stats.cost[floor.ranked_features], floor.unit, floor.power_law)


def capacities_figure(floor: FeatureFloorPrediction) -> go.Figure:
    """Return the dimensions that water-filling allocates to each feature at the widths of a prediction.

    Each point is a mean over features of neighbouring rank. They have about the same cost but different firing rates,
    so that one feature may get half a dimension and the next one none.
    """
    order = floor.ranked_features
    starts = log_spaced_ranks(len(order), N_BINS) - 1
    counts = np.diff(np.append(starts, len(order)))
    centres = starts + (counts + 1) / 2
    figure = go.Figure()
    for number, width in enumerate(floor.widths.tolist()):
        capacity = np.add.reduceat(floor.capacities(width)[order], starts) / counts
        add_curve(figure, centres, capacity, f"width {width:,}", CYCLE[number % len(CYCLE)], markers=False)
    figure.update_xaxes(type="log")
    return apply_style(figure, "Capacity of each feature", "rank by cost", "dimensions, mean over neighbouring ranks")


def growth_figure(floor: FeatureFloorPrediction) -> go.Figure:
    """Return F, the number of alive features, against the tokens read; if F still grows, more text is needed."""
    tokens, alive = floor.stats.growth(floor.min_count)
    figure = go.Figure()
    add_curve(figure, tokens, alive, "alive features", COLOURS["simulated"])
    y_title = f"F (features that fired at least {floor.min_count:,} times)"
    return apply_style(figure, "Alive features against tokens", "tokens", y_title)


def critical_widths_figure(floors: Sequence[FeatureFloorPrediction], labels: Sequence[str]) -> go.Figure:
    """Return d* of several predictions with its interval, and the teacher's width."""
    names = [escape_markup(label) for label in labels]
    critical_widths = np.array([floor.critical_width for floor in floors])
    low, high = np.array([floor.critical_width_interval for floor in floors]).T
    figure = go.Figure()
    add_curve(
        figure, names, critical_widths, "d*", COLOURS["simulated"], error_y=error_bars(critical_widths, low, high)
    )
    if len({floor.d_model for floor in floors}) == 1:
        figure.add_hline(floors[0].d_model, line_dash="dot", annotation_text="teacher's width")
    figure.update_yaxes(rangemode="tozero")
    teachers = ", ".join(dict.fromkeys(floor.stats.model_name for floor in floors))
    return apply_style(figure, f"Critical width of {escape_markup(teachers)}", "", "d* (dimensions; bars: 95 %)")


def compared_floors_figure(floors: Sequence[FeatureFloorPrediction], labels: Sequence[str]) -> go.Figure:
    """Return the feature floors of several predictions against the width."""
    figure = go.Figure()
    for number, (floor, label) in enumerate(zip(floors, labels, strict=True)):
        bars = error_bars(floor.feature_floor, *floor.sampling_interval.T)
        colour = CYCLE[number % len(CYCLE)]
        add_curve(figure, floor.widths, floor.feature_floor, escape_markup(label), colour, error_y=bars)
    units = {floor.unit for floor in floors}
    unit = loss_with_unit(floors[0].unit) if len(units) == 1 else "each in its own unit"
    return apply_style(figure, "Feature floors (bars: sampling, 95 %)", "student width (dimensions)", unit)
