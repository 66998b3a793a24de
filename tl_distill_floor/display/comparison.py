"""Compare several predictions: the layers of a teacher, the SAEs of one layer, or any runs."""

import re
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.floor_tables import STILL_COMPUTED
from tl_distill_floor.display.tables import plain_table, warning_lines
from tl_distill_floor.display.units import LONG_UNIT, SHORT_UNIT, STUDENT_LOSS
from tl_distill_floor.errors import name_options
from tl_distill_floor.measuring.hooks import canonical_name, resid_post
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction


def comparison_table(floors: Sequence[FeatureFloorPrediction]) -> RenderableType:
    """Return a table of predictions for one teacher: what was measured, and the floor of each width.

    Args:
        floors: predictions with the same unit and the same widths.
    """
    labels = prediction_labels(floors)
    warnings = [
        f"{label}: {warning}" for label, floor in zip(labels, floors, strict=True) for warning in floor.warnings
    ]
    return Group(
        _measured(floors, labels),
        Text(),
        _floors(floors, labels),
        Text(_conclusion(floors)),
        warning_lines(warnings),
    )


def unfinished_comparison(floors: Sequence[FeatureFloorPrediction]) -> RenderableType:
    """Return what was measured of several SAEs, while the losses are still being computed.

    Args:
        floors: predictions for one teacher.
    """
    return Group(_measured(floors, prediction_labels(floors)), Text(STILL_COMPUTED[floors[0].unit]), Text())


def run_comparison_table(floors: Sequence[FeatureFloorPrediction], labels: Sequence[str]) -> Group:
    """Return a table of predictions that may differ in teacher, unit and widths.

    Args:
        floors: the predictions.
        labels: their names.
    """
    has_nats = any(floor.unit == "nats" for floor in floors)
    table = plain_table(f"Feature floor{f'; in nats, {STUDENT_LOSS}' if has_nats else ''}")
    table.add_column("width", justify="right")
    for floor, label in zip(floors, labels, strict=True):
        table.add_column(Text(f"{label} ({SHORT_UNIT[floor.unit]})"), justify="right")
    widths = sorted({int(width) for floor in floors for width in floor.widths})
    for width in widths:
        marks = ["" if width in floor.widths else "~" for floor in floors]
        cells = (f"{mark}{floor.floor_at(width):.4g}" for mark, floor in zip(marks, floors, strict=True))
        table.add_row(f"{width:,}", *cells)
    if all(len(floor.widths) == len(widths) for floor in floors):
        return Group(_measured(floors, labels), table)
    note = Text("~: not a width of this run; interpolated between its widths, or extrapolated beyond them.")
    return Group(_measured(floors, labels), table, note)


def prediction_labels(floors: Sequence[FeatureFloorPrediction]) -> list[str]:
    """Return short distinct names: the hook points if they differ, else letters."""
    hooks = [floor.stats.hook_name for floor in floors]
    if len(set(hooks)) == len(hooks):
        return [hook.removeprefix("blocks.").replace(".hook_resid_post", "") for hook in hooks]
    return [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(floors))]


def largest_floor_index(floors: Sequence[FeatureFloorPrediction]) -> list[int]:
    """Return, for each width, the index of the prediction with the largest floor.

    A student of that width loses at least that much (assumption A3 of Sarkar and Deka 2026, arXiv 2604.04037).
    """
    indices: list[int] = np.stack([floor.feature_floor for floor in floors]).argmax(0).tolist()
    return indices


def _measured(floors: Sequence[FeatureFloorPrediction], labels: Sequence[str]) -> Table:
    """Return what was measured, next to what the predictions differ in: their hook points, or the SAEs of one."""
    title = ", ".join(dict.fromkeys(floor.stats.model_name for floor in floors))
    hooks = {floor.stats.hook_name for floor in floors}
    if len(hooks) == 1:
        title, what = f"{title}, {hooks.pop()}", "SAE"
    else:
        what = "hook point"
    table = plain_table(f"{title} (intervals: 95 %)")
    for heading in ("", what, "features", "L0", "unexplained", "F", "α", "d*"):
        table.add_column(
            heading,
            justify="left" if heading in ("", what) else "right",
            overflow="fold" if heading == what else "ellipsis",
        )
    for label, floor in zip(labels, floors, strict=True):
        stats = floor.stats
        low, high = floor.critical_width_interval
        width = f"{floor.critical_width:.1f}" + ("" if np.isnan(high) else f" ({low:.1f} to {high:.1f})")
        table.add_row(
            Text(label), Text(stats.sae_name if what == "SAE" else stats.hook_name),
            f"{len(stats.cost):,}", f"{stats.l0:.1f}", f"{stats.fvu:.1%}",
            f"{floor.n_features:,}", f"{floor.alpha:.5f}", width,
        )  # fmt: skip
    return table


def _floors(floors: Sequence[FeatureFloorPrediction], labels: Sequence[str]) -> Table:
    loss = STUDENT_LOSS if floors[0].unit == "nats" else LONG_UNIT[floors[0].unit]
    table = plain_table(f"Feature floor ({SHORT_UNIT[floors[0].unit]}): {loss}")
    for heading in ("width", *labels, "largest"):
        table.add_column(heading, justify="right")
    for i, (width, largest) in enumerate(zip(floors[0].widths.tolist(), largest_floor_index(floors), strict=True)):
        table.add_row(f"{width:,}", *(f"{floor.feature_floor[i]:.4g}" for floor in floors), labels[largest])
    return table


def _conclusion(floors: Sequence[FeatureFloorPrediction]) -> str:
    critical_widths = [floor.critical_width for floor in floors]
    curves = np.stack([floor.feature_floor for floor in floors])
    low, high = curves.min(0), curves.max(0)
    ranges = f"d* is {min(critical_widths):.1f} to {max(critical_widths):.1f} dimensions"
    if (low > 0).any():
        ranges += f"; floors differ by a factor of up to {(high[low > 0] / low[low > 0]).max():.2g}"
        ranges += "" if (low > 0).all() else " where none is 0"
    return f"{ranges}. {_reason_of_differences(floors)}"


def _reason_of_differences(floors: Sequence[FeatureFloorPrediction]) -> str:
    """Return what the differences between predictions are due to: their hook points, or the SAEs of one."""
    n_points = len({_point(floor.stats.hook_name) for floor in floors})
    if n_points == 1:
        order = np.argsort([-floor.feature_floor for floor in floors], axis=0, kind="stable")
        same = "the same" if (order == order[:, :1]).all() else "not the same"
        return f"The order of the SAEs by floor is {same} at every width. These differences are due to the SAEs."
    if floors[0].unit == "mse":
        return name_options(
            "Squared errors at different layers cannot be compared; use --cost fisher to find the layer that binds."
        )
    if n_points < len(floors):
        return (
            "These differences are due to the SAEs and to their hook points; compare one SAE of each hook point to find"
            " the layer that binds."
        )
    return "A student loses at least the largest floor of the layers at its width: that layer binds."


def _point(hook_name: str) -> str:
    """Return one name for a hook point; the residual stream before a layer is that after the previous one."""
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.(hook_resid_pre|hook_in)", hook_name)
    return canonical_name(resid_post(int(before[1]) - 1) if before else hook_name)
