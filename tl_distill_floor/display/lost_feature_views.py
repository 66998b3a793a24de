"""The features that a student loses, and one feature over several widths, as rich tables, figures and JSON values."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.display.figure_style import COLOURS, add_curve, apply_style, escape_markup
from tl_distill_floor.display.tables import format_share, key_value_table, plain_table
from tl_distill_floor.display.units import LONG_UNIT
from tl_distill_floor.results.lost_features import FeatureAtWidth, FeatureContext, LostFeatures, OneFeature

PEAK_STYLE = "bold reverse"
"""Style of the token on which a feature fires."""
ELLIPSIS = "…"
NO_CONTEXTS = Text("This run has no contexts; measure again to see what features fire on.", style="dim")


def lost_table(lost_features: LostFeatures) -> RenderableType:
    """Return the number of lost features and a table of the most costly ones."""
    summary = Text(lost_summary(lost_features))
    shown = lost_features.shown
    if not shown:
        return summary
    n_shown, n_lost = len(shown), len(lost_features.lost)
    most_costly = "The most costly one" if n_shown == 1 else f"The {n_shown:,} most costly"
    selection = most_costly if n_shown < n_lost else "The most costly first"
    title = Text(f"{selection}; cost in {LONG_UNIT[lost_features.unit]}", style="italic")
    note = Text(
        "rank: by cost; fires: share of the tokens; dims: dimensions allocated by water-filling; lost: share of the"
        " feature's own cost, of which a feature that fires often may be lost with less than half.",
        style="dim",
    )
    return Group(summary, Text(), title, _feature_rows(shown), note, *_footnotes(shown))


def lost_summary(lost_features: LostFeatures) -> str:
    """Return how many features are lost, and their share of the cost, in one sentence."""
    n, width = lost_features.n_features, lost_features.width
    if not lost_features.lost:
        return f"A student of width {width:,} is expected to keep all {n:,} alive features."
    return (
        f"A student of width {width:,} is expected to lose {len(lost_features.lost):,} of {n:,} alive features,"
        f" which have {lost_features.cost_share:.1%} of the cost."
    )


def promoted_note(features: Sequence[FeatureAtWidth]) -> str | None:
    """Return what to type for the promoted tokens of features that lack them; None if no feature does."""
    n = len({feature.feature for feature in features if feature.promoted is None})
    if not n:
        return None
    subject = "this feature" if n == 1 else f"{n:,} of these features"
    return f"The promoted tokens of {subject} were not computed; add --promoted (in Python, call add_promoted_tokens)."


def join_tokens(tokens: Sequence[str]) -> str:
    """Return tokens in one line, with control characters escaped."""
    return " · ".join(escape_control(token.strip() or token) for token in tokens)


def feature_table(one_feature: OneFeature) -> RenderableType:
    """Return everything that is known about one feature."""
    first = one_feature.at[0]
    rows = [
        ("feature", f"{first.feature:,} of {one_feature.sae_name}"),
        ("rank", f"{first.rank:,} of {one_feature.n_features:,} alive features by cost"),
        ("cost", f"{first.cost:.4g} ({LONG_UNIT[one_feature.unit]}){_share_of(first.cost, one_feature.total_cost)}"),
        ("fires on", f"{format_share(first.firing_rate)} of the tokens"),
        ("survives", _survival(one_feature)),
        ("promotes", join_tokens(first.promoted or ())),
        ("address", first.neuronpedia or ""),
    ]
    contexts = _context_table(first) if first.contexts else NO_CONTEXTS
    properties = key_value_table((name, value) for name, value in rows if value)
    note = promoted_note(one_feature.at)
    notes = [] if note is None else [Text(note, style="dim")]
    return Group(properties, Text(), _width_table(one_feature), Text(), contexts, *notes)


def lost_features_figure(lost_features: LostFeatures) -> go.Figure:
    """Return the cost of each of the most costly lost features as a bar, and the part of it that is lost."""
    shown = lost_features.shown
    names = [f"feature {feature.feature}" for feature in shown]
    figure = go.Figure()
    figure.add_bar(x=names, y=[feature.cost for feature in shown], marker={"color": COLOURS["simulated"]}, name="cost")
    lost_cost = [feature.cost * feature.lost_share for feature in shown]
    figure.add_bar(x=names, y=lost_cost, marker={"color": COLOURS["theorem"]}, name="lost")
    figure.update_layout(barmode="overlay")
    title = (
        f"Features that a student of {escape_markup(lost_features.model_name)} of width {lost_features.width:,} loses"
    )
    return apply_style(figure, title, "", f"cost ({LONG_UNIT[lost_features.unit]})")


def one_feature_figure(one_feature: OneFeature) -> go.Figure:
    """Return the capacity of one feature and the part of its cost that is lost, against the student width."""
    figure, widths = go.Figure(), one_feature.widths
    capacities, shares = [at.capacity for at in one_feature.at], [at.lost_share for at in one_feature.at]
    add_curve(figure, widths, capacities, "capacity (dimensions)", COLOURS["simulated"])
    add_curve(figure, widths, shares, "share of its cost that is lost", COLOURS["theorem"])
    if one_feature.survives_from is not None:
        figure.add_vline(one_feature.survives_from, line_dash="dash", annotation_text="survives from here")
    title = f"Feature {one_feature.at[0].feature} of {escape_markup(one_feature.sae_name)}"
    return apply_style(figure, title, "student width (dimensions)", "capacity, share lost")


def lost_json(lost_features: LostFeatures) -> dict[str, Any]:
    """Return one JSON object: `lost` holds the indices of all lost features, `features` details of the costliest."""
    return {
        **_measurement_json(lost_features),
        "width": lost_features.width,
        "n_lost": len(lost_features.lost),
        "lost_cost_share": lost_features.cost_share,
        "lost": list(lost_features.lost),
        "features": [_feature_json(feature) | _at_width_json(feature) for feature in lost_features.shown],
    }


def feature_json(one_feature: OneFeature) -> dict[str, Any]:
    """Return one JSON object; `survives_from` is null if even the largest width that was checked loses the feature."""
    widths = [
        {"width": width} | _at_width_json(at) for width, at in zip(one_feature.widths, one_feature.at, strict=True)
    ]
    survival = {"survives_from": one_feature.survives_from, "widest": one_feature.widest}
    return _measurement_json(one_feature) | _feature_json(one_feature.at[0]) | survival | {"widths": widths}


class ContextCell(NamedTuple):
    """A table cell with a context on one line, cut so that its peak stays visible, above the promoted tokens."""

    context: FeatureContext | None
    promoted: tuple[str, ...] | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines of the cell."""
        if self.context is not None:
            yield _cut_context(self.context, options.max_width)
        if self.promoted:
            line = _cut_end(f"→ {join_tokens(self.promoted)}", options.max_width)
            yield Text(line, style="dim", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the least and the greatest width of the cell."""
        return Measurement(min(16, options.max_width), options.max_width)


def _feature_rows(features: tuple[FeatureAtWidth, ...]) -> Table:
    has_context = any(feature.contexts or feature.promoted for feature in features)
    table = plain_table(expand=has_context)
    for heading in ("rank", "feature", "cost", "fires", "dims", "lost"):
        table.add_column(heading, justify="right")
    if has_context:
        table.add_column("fires on «…» → promotes", ratio=1)
    for feature in features:
        numbers = (
            f"{feature.rank:,}",
            Text(str(feature.feature), style=Style(link=feature.neuronpedia)),
            f"{feature.cost:.3g}",
            format_share(feature.firing_rate),
            f"{feature.capacity:.2f}",
            f"{feature.lost_share:.0%}",
        )
        context = feature.contexts[0] if feature.contexts else None
        table.add_row(*numbers, *([ContextCell(context, feature.promoted)] if has_context else []))
    return table


def _footnotes(features: Sequence[FeatureAtWidth]) -> list[Text]:
    """Return notes on missing contexts and promoted tokens, and the address of a feature, as far as they apply."""
    feature, note = features[0], promoted_note(features)
    notes = [] if feature.contexts else [NO_CONTEXTS]
    if note is not None:
        notes.append(Text(note, style="dim"))
    if feature.neuronpedia:
        notes.append(Text(f"Feature {feature.feature} on Neuronpedia: {feature.neuronpedia}", style="dim"))
    return notes


def _width_table(one_feature: OneFeature) -> Table:
    table = plain_table()
    for heading in ("width", "dims", "lost", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for width, at in zip(one_feature.widths, one_feature.at, strict=True):
        table.add_row(f"{width:,}", f"{at.capacity:.2f}", f"{at.lost_share:.0%}", "kept" if at.kept else "lost")
    return table


def _context_table(feature: FeatureAtWidth) -> Table:
    table = plain_table()
    table.add_column("strength", justify="right")
    table.add_column("fires on", overflow="fold")
    for context in feature.contexts:
        before, peak, after = _mark_peak(context)
        table.add_row(f"{context.activation:.3g}", Text.assemble(before, (peak, PEAK_STYLE), after))
    return table


def _survival(one_feature: OneFeature) -> str:
    if one_feature.survives_from is None:
        return f"at no width up to {one_feature.widest:,}"
    return "at every width" if one_feature.survives_from == 1 else f"from width {one_feature.survives_from:,} on"


def _mark_peak(context: FeatureContext) -> tuple[str, str, str]:
    """Return (before, «peak», after) with control characters escaped; a leading space stays outside the marks."""
    before, peak, after = (escape_control(text) for text in (context.before, context.peak, context.after))
    word = peak.lstrip(" ") or peak
    return before + " " * (len(peak) - len(word)), f"«{word}»", after


def _cut_context(context: FeatureContext, n_cells: int) -> Text:
    """Return a context cut to a number of terminal cells; of those left by the peak, the text after it gets a third."""
    before, peak, after = _mark_peak(context)
    peak = _cut_end(peak, n_cells)
    remaining = n_cells - cell_len(peak)
    after_cells = min(cell_len(after), max(remaining // 3, remaining - cell_len(before)))
    start, end = _cut_start(before, remaining - after_cells), _cut_end(after, after_cells)
    return Text.assemble(start, (peak, PEAK_STYLE), end, no_wrap=True)


def _cut_end(text: str, n_cells: int) -> str:
    """Cut the end of a text that is longer than a number of terminal cells."""
    if cell_len(text) <= n_cells:
        return text
    while text and cell_len(text) >= n_cells:
        text = text[:-1]
    return text + ELLIPSIS if n_cells > 0 else ""


def _cut_start(text: str, n_cells: int) -> str:
    """Cut the start of a text that is longer than a number of terminal cells."""
    return _cut_end(text[::-1], n_cells)[::-1]


def _share_of(cost: float, total: float) -> str:
    return f", {format_share(cost / total)} of all" if total > 0 else ""


def _measurement_json(record: LostFeatures | OneFeature) -> dict[str, Any]:
    names = {"model": record.model_name, "hook": record.hook_name, "sae": record.sae_name}
    return names | {"n_features": record.n_features, "unit": record.unit}


def _feature_json(feature: FeatureAtWidth) -> dict[str, Any]:
    names = ("feature", "rank", "cost", "firing_rate", "neuronpedia")
    contexts = [context._asdict() for context in feature.contexts]
    return {name: getattr(feature, name) for name in names} | {
        "contexts": contexts,
        "promoted": None if feature.promoted is None else list(feature.promoted),
    }


def _at_width_json(feature: FeatureAtWidth) -> dict[str, Any]:
    return {"capacity": feature.capacity, "lost_share": feature.lost_share, "kept": feature.kept}
