"""The features that a student loses, and one feature by itself, as rich tables and as plain JSON values."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.escaping import shown
from tl_distill_floor.results.feature_stats import UNIT_IN_WORDS
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.lost_features import Context, FeatureAt, LostFeatures, OneFeature

PEAK_STYLE = "bold reverse"
CUT = "…"
NO_CONTEXTS = Text("This run kept no contexts: measure again to see what features fire on.", style="dim")


def lost_view(found: LostFeatures) -> RenderableType:
    """The most costly of the lost features, and how many there are."""
    floor = found.floor
    head = lost_head(found)
    if not found.lost:
        return Text(head)
    shown, lost = len(found.shown), len(found.lost)
    listed = f"The {shown:,} most costly" if shown < lost else "The most costly first"
    title = f"{listed}; cost is {UNIT_IN_WORDS[floor.unit]}"
    parts: list[RenderableType] = [Text(head), Text(), Text(title, style="italic"), _rows(found.shown)]
    parts.append(
        Text("Rank is by cost; dims is what water-filling gives; lost is of the feature's own cost.", style="dim")
    )
    return Group(*parts, *_footnotes(found.shown[0]))


def lost_head(found: LostFeatures) -> str:
    """How many features are lost, and what they are worth."""
    n = found.floor.n_features
    if not found.lost:
        return f"A student of width {found.width:,} is expected to hold all {n:,} alive features."
    return (
        f"A student of width {found.width:,} is expected to lose {len(found.lost):,} of {n:,} alive features,"
        f" which hold {found.cost_share:.1%} of the cost."
    )


def feature_view(found: OneFeature) -> RenderableType:
    """Everything that is known of one feature."""
    floor, first = found.floor, found.at[0]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = [
        ("feature", f"{first.feature:,} of {floor.stats.sae_name}"),
        ("rank", f"{first.rank:,} of {floor.n_features:,} alive features by cost"),
        ("cost", f"{first.cost:.4g} ({UNIT_IN_WORDS[floor.unit]}){_share(first.cost, floor.total_cost)}"),
        ("fires on", f"{_percent(first.firing_rate)} of the tokens"),
        ("survives", _survival(found)),
        ("promotes", _listed(first.promoted)),
        ("address", first.neuronpedia or ""),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, Text(value))
    contexts = _all_contexts(first) if first.contexts else NO_CONTEXTS
    return Group(table, Text(), _over_widths(found), Text(), contexts)


def lost_json(found: LostFeatures) -> dict[str, Any]:
    """One JSON object; `lost` has the indices of all lost features, `features` the details of the most costly."""
    return {
        **_identity(found.floor),
        "width": found.width,
        "n_lost": len(found.lost),
        "lost_cost_share": found.cost_share,
        "lost": list(found.lost),
        "features": [_described(feature) | _of_width(feature) for feature in found.shown],
    }


def feature_json(found: OneFeature) -> dict[str, Any]:
    """One JSON object; `survives_from` is null where even the widest width that was looked at loses it."""
    widths = [{"width": width} | _of_width(at) for width, at in zip(found.widths, found.at, strict=True)]
    survival = {"survives_from": found.survives_from, "widest": found.widest}
    return _identity(found.floor) | _described(found.at[0]) | survival | {"widths": widths}


class Around(NamedTuple):
    """A context on one line, cut so that its peak stays in sight, over the tokens that the feature promotes."""

    context: Context | None
    promoted: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width
        if self.context is not None:
            yield _cut_around(self.context, room)
        if self.promoted:
            yield Text(_start(f"→ {_listed(self.promoted)}", room), style="dim", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(16, options.max_width), options.max_width)


def _rows(features: tuple[FeatureAt, ...]) -> Table:
    told = any(feature.contexts or feature.promoted for feature in features)
    table = Table(box=None, pad_edge=False, expand=told)
    for heading in ("rank", "feature", "cost", "fires", "dims", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    if told:
        table.add_column("fires on «…» → promotes", ratio=1)
    for feature in features:
        numbers = (
            f"{feature.rank:,}",
            Text(str(feature.feature), style=Style(link=feature.neuronpedia)),
            f"{feature.cost:.3g}",
            _percent(feature.firing_rate),
            f"{feature.capacity:.2f}",
            f"{feature.lost_share:.0%}",
        )
        context = feature.contexts[0] if feature.contexts else None
        table.add_row(*numbers, *([Around(context, feature.promoted)] if told else []))
    return table


def _footnotes(feature: FeatureAt) -> list[Text]:
    """What is missing, or where to read on."""
    notes = []
    if not feature.contexts:
        notes.append(NO_CONTEXTS)
    if feature.neuronpedia:
        notes.append(Text(f"Feature {feature.feature} on Neuronpedia: {feature.neuronpedia}", style="dim"))
    return notes


def _over_widths(found: OneFeature) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("width", "dims", "lost", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for width, at in zip(found.widths, found.at, strict=True):
        table.add_row(f"{width:,}", f"{at.capacity:.2f}", f"{at.lost_share:.0%}", "kept" if at.kept else "lost")
    return table


def _all_contexts(feature: FeatureAt) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("strength", justify="right", no_wrap=True)
    table.add_column("fires on", overflow="fold")
    for context in feature.contexts:
        before, peak, after = _marked(context)
        table.add_row(f"{context.activation:.3g}", Text.assemble(before, (peak, PEAK_STYLE), after))
    return table


def _survival(found: OneFeature) -> str:
    if found.survives_from is None:
        return f"at no width up to {found.widest:,}"
    return "at every width" if found.survives_from == 1 else f"from width {found.survives_from:,} on"


def _marked(context: Context) -> tuple[str, str, str]:
    """(before, «peak», after), ready to be shown; the space before a word stays outside the marks."""
    before, peak, after = (shown(text) for text in context[1:])
    word = peak.lstrip(" ") or peak
    return before + " " * (len(peak) - len(word)), f"«{word}»", after


def _cut_around(context: Context, room: int) -> Text:
    before, peak, after = _marked(context)
    peak = _start(peak, room)
    left = room - cell_len(peak)
    after_room = min(cell_len(after), max(left // 3, left - cell_len(before)))
    return Text.assemble(_end(before, left - after_room), (peak, PEAK_STYLE), _start(after, after_room), no_wrap=True)


def _start(text: str, cells: int) -> str:
    """As much of its beginning as has room."""
    if cell_len(text) <= cells:
        return text
    while text and cell_len(text) >= cells:
        text = text[:-1]
    return text + CUT if cells > 0 else ""


def _end(text: str, cells: int) -> str:
    """As much of its end as has room."""
    return _start(text[::-1], cells)[::-1]


def _listed(tokens: tuple[str, ...]) -> str:
    return " · ".join(shown(token.strip() or token) for token in tokens)


def _percent(share: float) -> str:
    """With as many places as say something."""
    return f"{100 * share:.3g}%" if share >= 1e-5 else f"{100 * share:.0e}%"


def _share(cost: float, total: float) -> str:
    return f", {_percent(cost / total)} of all" if total > 0 else ""


def _identity(floor: FloorPrediction) -> dict[str, Any]:
    stats = floor.stats
    names = {"model": stats.model_name, "hook": stats.hook_name, "sae": stats.sae_name}
    return names | {"n_features": floor.n_features, "unit": floor.unit}


def _described(feature: FeatureAt) -> dict[str, Any]:
    names = ("feature", "rank", "cost", "firing_rate", "neuronpedia")
    contexts = [context._asdict() for context in feature.contexts]
    return {name: getattr(feature, name) for name in names} | {
        "contexts": contexts,
        "promoted": list(feature.promoted),
    }


def _of_width(feature: FeatureAt) -> dict[str, Any]:
    return {"capacity": feature.capacity, "lost_share": feature.lost_share, "kept": feature.kept}
