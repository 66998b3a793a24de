"""Predictions as rich tables, for the terminal and for notebooks."""

import math
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.results.feature_stats import UNIT_IN_WORDS
from tl_distill_floor.results.floor_prediction import FloorPrediction, Interval

BAR = 48
"""Characters of the longest bar."""

if TYPE_CHECKING:
    from tl_distill_floor.sources.sae_directory import SaeEntry


def floor_view(floor: FloorPrediction) -> RenderableType:
    """What was measured, the floor of every width, and what to be careful about."""
    return Group(measured_view(floor), Text(), widths_view(floor), curve_view(floor), warnings_view(floor))


def curve_view(floor: FloorPrediction) -> Table:
    """The expected floors as bars."""
    table = Table(title="Expected floor", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(width=BAR)
    table.add_column()
    most = float(floor.expected.max()) or 1.0
    for width, loss in zip(floor.widths.tolist(), floor.expected.tolist(), strict=True):
        table.add_row(f"{width:,}", Bar(most, 0.0, loss, width=BAR), f"{loss:.3g}")
    return table


def warnings_view(floor: FloorPrediction) -> Group:
    """What to be careful about."""
    return Group(*(Text(f"! {warning}", style="yellow") for warning in floor.warnings))


def saes_view(model_name: str, entries: "list[SaeEntry]") -> RenderableType:
    """The SAEs that are known for a model."""
    table = Table(title=Text(f"SAEs of {model_name}"), title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "hook point", "L0", "--sae"):
        table.add_column(heading, justify="right" if heading in ("layer", "L0") else "left", overflow="fold")
    for entry in entries:
        layer = "" if entry.layer is None else str(entry.layer)
        l0 = "" if entry.expected_l0 is None else f"{entry.expected_l0:.0f}"
        table.add_row(layer, Text(entry.hook_name or ""), l0, Text(entry.spec))
    return table


def measured_view(floor: FloorPrediction) -> Table:
    """What was measured."""
    stats = floor.stats
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = [
        ("teacher", f"{stats.model_name}, {stats.hook_name} ({stats.d_model:,} dimensions)"),
        ("SAE", f"{stats.sae_name}, {len(stats.firing_count):,} features"),
        (
            "text",
            f"{stats.text_name}, {stats.n_tokens:,} tokens counted ({stats.n_masked:,} special or first left out)",
        ),
        ("L0", _l0(floor)),
        ("unexplained", f"{stats.fvu:.4f} of the variance (on {stats.sampled_tokens:,} tokens), not in the floor"),
        ("F", f"{floor.n_features:,} alive features{_range(floor.n_features_interval, ',.0f')}{_growth(floor)}"),
        ("sparsity α", f"{floor.alpha:.5f}{_range(floor.alpha_interval, '.5f')}"),
        ("g(α)", f"{floor.capacity:.2f} features per dimension"),
        ("d*", f"{floor.critical_width:.1f} dimensions{_range(floor.critical_width_interval, '.1f')}"),
    ]
    if floor.power_law is not None:
        rows.append(("costs", str(floor.power_law)))
    for name, words in rows:
        table.add_row(name, Text(words))
    return table


def widths_view(floor: FloorPrediction) -> Group:
    """The floor of every width, and how to read it."""
    return Group(_widths(floor), Text(_verdict(floor)))


def _widths(floor: FloorPrediction) -> Table:
    unit = "MSE" if floor.unit == "mse" else "nats/token"
    words = "KL(teacher ‖ student)" if floor.unit == "nats" else UNIT_IN_WORDS[floor.unit]
    title = f"Loss floor ({unit}): {words}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    curves = {"theorem": floor.theorem, "independent": floor.independent, "simulated": floor.simulated}
    shown = {name: curve for name, curve in curves.items() if curve is not None}
    gains = floor.structure_gain
    columns = ["width", "kept", *shown, "95 % interval", "of all", *([] if gains is None else ["gain"])]
    for heading in columns:
        table.add_column(heading, justify="right")
    for i, width in enumerate(floor.widths.tolist()):
        low, high = floor.interval[i]
        table.add_row(
            f"{width:,}",
            f"{floor.n_features - len(floor.lost(width)):,}",
            *(f"{curve[i]:.4g}" for curve in shown.values()),
            "" if math.isnan(high) else f"{low:.3g}–{high:.3g}",
            f"{floor.expected[i] / floor.total:.1%}" if floor.total else "",
            *([] if gains is None else ["" if math.isnan(gains[i]) else f"{gains[i]:.1f}"]),
        )
    return table


def _verdict(floor: FloorPrediction) -> str:
    stats = floor.stats
    needed = math.ceil(floor.critical_width)
    held = "holds" if needed <= stats.d_model else "would hold"
    which = "independent" if floor.simulated is None else "simulated"
    sentence = (
        f"Expected is {which}, which the interval and the features kept belong to."
        f" At the teacher's own width, {stats.d_model:,}, it is {floor.teacher_floor:.4g}."
        f" By Theorem 1 a student of {needed:,} dimensions {held} every feature."
    )
    if floor.simulated is not None:
        sentence += " Gain is independent over simulated: what is won by the features that fire together."
    if floor.tail is not None:
        counted = int(floor.tail.n_tokens.sum())
        sentence += (
            f" Losses are measured on {counted:,} tokens of the text: the summed costs alone would give"
            f" {floor.additive[0]:.4g} for theorem at width {floor.widths[0]:,}."
        )
    if floor.simulation is not None and (widest := int(floor.simulation.widths[-1])) < stats.d_model:
        sentence += f" Beyond width {widest:,}, the widest that was simulated, its gain is taken."
    return sentence


def _l0(floor: FloorPrediction) -> str:
    stats = floor.stats
    expected = "" if stats.expected_l0 is None else f" (its publisher: {stats.expected_l0:.1f})"
    return f"{stats.l0:.1f} active features per token{expected}"


def _growth(floor: FloorPrediction) -> str:
    """F at half the tokens: a number that still grows says that more tokens would find more features."""
    tokens, alive = floor.stats.growth(floor.min_count)
    half = int((tokens >= tokens[-1] / 2).argmax())
    return f"; {alive[half]:,} after {tokens[half]:,} tokens" if len(tokens) > 1 else ""


def _range(interval: Interval, form: str) -> str:
    low, high = interval
    return "" if math.isnan(high) else f" ({low:{form}} to {high:{form}})"
