"""Several predictions side by side: the layers of a teacher, or the SAEs of one layer."""

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.results.floor_prediction import FloorPrediction


def several_view(floors: list[FloorPrediction]) -> RenderableType:
    """What was measured of each, the floor of every width, and what they agree on."""
    labels = labels_of(floors)
    unit = "nats/token" if floors[0].unit == "nats" else "MSE"
    parts: list[RenderableType] = [
        _measured(floors, labels),
        Text(),
        _floors(floors, labels, unit),
        Text(_verdict(floors)),
    ]
    for label, floor in zip(labels, floors, strict=True):
        parts += [Text(f"! {label}: {warning}", style="yellow") for warning in floor.warnings]
    return Group(*parts)


def compared_view(floors: list[FloorPrediction], labels: list[str]) -> RenderableType:
    """The same of runs that need not be of one teacher, of one unit or of the same widths."""
    unit = {"nats": "nats/token", "mse": "MSE"}
    table = Table(box=None, pad_edge=False, title="Expected floor", title_justify="left")
    table.add_column("width", justify="right")
    for floor, label in zip(floors, labels, strict=True):
        table.add_column(Text(f"{label} ({unit[floor.unit]})"), justify="right")
    for width in sorted({int(width) for floor in floors for width in floor.widths}):
        table.add_row(f"{width:,}", *(f"{floor.floor_at(width):.4g}" for floor in floors))
    return Group(_measured(floors, labels), table)


def labels_of(floors: list[FloorPrediction]) -> list[str]:
    """Short names that differ: hook points, or else a letter for each SAE."""
    hooks = [floor.stats.hook_name for floor in floors]
    if len(set(hooks)) == len(hooks):
        return [hook.removeprefix("blocks.").replace(".hook_resid_post", "") for hook in hooks]
    return [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(floors))]


def binding(floors: list[FloorPrediction]) -> list[int]:
    """At each width the place of the largest floor: a student of that width loses no less (assumption A3)."""
    found: list[int] = np.stack([floor.expected for floor in floors]).argmax(0).tolist()
    return found


def _measured(floors: list[FloorPrediction], labels: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, title=Text(_teachers(floors)), title_justify="left")
    for heading in ("", "hook point", "features", "L0", "unexplained", "F", "α", "d*"):
        table.add_column(heading, justify="left" if heading in ("", "hook point") else "right", overflow="fold")
    for label, floor in zip(labels, floors, strict=True):
        stats = floor.stats
        low, high = floor.critical_width_interval
        width = f"{floor.critical_width:.1f}" + ("" if np.isnan(high) else f" ({low:.1f} to {high:.1f})")
        table.add_row(
            Text(label), Text(stats.hook_name), f"{len(stats.cost):,}", f"{stats.l0:.1f}", f"{stats.fvu:.1%}",
            f"{floor.n_features:,}", f"{floor.alpha:.5f}", width,
        )  # fmt: skip
    return table


def _teachers(floors: list[FloorPrediction]) -> str:
    return ", ".join(dict.fromkeys(floor.stats.model_name for floor in floors))


def _floors(floors: list[FloorPrediction], labels: list[str], unit: str) -> Table:
    table = Table(box=None, pad_edge=False, title=f"Expected floor ({unit})", title_justify="left")
    for heading in ("width", *labels, "largest"):
        table.add_column(heading, justify="right")
    for i, (width, largest) in enumerate(zip(floors[0].widths.tolist(), binding(floors), strict=True)):
        table.add_row(f"{width:,}", *(f"{floor.expected[i]:.4g}" for floor in floors), labels[largest])
    return table


def _verdict(floors: list[FloorPrediction]) -> str:
    needed = [floor.critical_width for floor in floors]
    curves = np.stack([floor.expected for floor in floors])
    low, high = curves.min(0), curves.max(0)
    there = low > 0
    apart = float((high[there] / low[there]).max()) if there.any() else 1.0
    runs = f"d* runs from {min(needed):.1f} to {max(needed):.1f} dimensions"
    sentence = f"{runs}; floors differ by a factor of up to {apart:.2g}."
    if len({floor.stats.hook_name for floor in floors}) == len(floors):
        if floors[0].unit == "mse":
            return sentence + " Squared errors at different layers are not one loss: --cost fisher says which binds."
        return sentence + " A student of some width loses at least the largest floor of the layers: that layer binds."
    orders = {tuple(np.argsort(-curves[:, i], kind="stable").tolist()) for i in range(curves.shape[1])}
    same = "the same" if len(orders) == 1 else "not the same"
    return (
        f"{sentence} Which SAE has the larger floor is {same} at every width. What changes with the SAE is the SAE's."
    )
