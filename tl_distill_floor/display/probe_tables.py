"""Probes as tables: what is left of each label at each width, and which features are still there."""

import math

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.results.probes import Decodability, ProbeResult, Probes

KIND_IN_WORDS = {"student": "student", "kept": "features kept", "bottleneck": "bottleneck"}


def probes_view(probes: Probes) -> RenderableType:
    """The teacher's probes, what of them is left at each width, how well that was forecast, and the features.

    Of several students of one width the mean is shown.
    """
    parts: list[RenderableType] = [_teacher(probes), Text(), _left(probes), Text(_verdict(probes))]
    if len(probes.features) > 1:
        parts += [Text(), _features(probes.features), Text(_of_features(probes.features))]
    return Group(*parts, *(Text(f"! {warning}", style="yellow") for warning in probes.warnings))


def probe_view(result: ProbeResult) -> RenderableType:
    """One probe."""
    table = _table(f"Linear probes for {result.task} at {result.hook_name} of {result.subject}")
    _headings(table)
    table.add_row(*_of_one(result))
    return table


def _headings(table: Table) -> None:
    for heading in ("label", "of", "classes", "items", "chance", "commonest", "accuracy", "AUROC"):
        table.add_column(heading, justify="left" if heading in ("label", "of") else "right")


def _of_one(result: ProbeResult) -> tuple[str | Text, ...]:
    low, high = result.interval
    sure = "" if math.isnan(low) else f" ± {50 * (high - low):.1f}"
    return (
        Text(result.task),
        "texts" if result.level == "text" else "words",
        f"{len(result.classes):,}",
        f"{result.n_items:,}",
        f"{100 * result.chance:.1f} %",
        f"{100 * result.mean_majority:.1f} %",
        f"{100 * result.mean_accuracy:.1f}{sure} %",
        f"{result.mean_auroc:.3f}",
    )


def _teacher(probes: Probes) -> Table:
    table = _table(f"Linear probes at {probes.hook_name} of {probes.teacher}, on {probes.labelled}")
    _headings(table)
    for task in probes.tasks:
        for result in probes.of(task, "teacher"):
            table.add_row(*_of_one(result))
    return table


def _left(probes: Probes) -> Table:
    widths = sorted({result.width for result in probes.results if result.width is not None})
    table = _table("Left of the teacher's accuracy above the commonest class, by width")
    for heading in ("label", "in", *(f"{width:,}" for width in widths)):
        table.add_column(heading, justify="left" if heading in ("label", "in") else "right")
    for task in probes.tasks:
        (teacher,) = probes.of(task, "teacher")
        for kind, words in KIND_IN_WORDS.items():
            found = probes.of(task, kind)
            if found:
                left = ([r.retained(teacher) for r in found if r.width == width] for width in widths)
                table.add_row(Text(task), words, *(_number(float(np.mean(of)), ".0%") if of else "" for of in left))
    return table


def _verdict(probes: Probes) -> str:
    """How far the forecasts are from the students."""
    errors = {kind: probes.forecast_error(kind) for kind in ("kept", "bottleneck")}
    known = {kind: error for kind, error in errors.items() if not math.isnan(error)}
    words = (
        "features kept: the teacher's activation, rebuilt from the features that a width is expected to keep;"
        " bottleneck: what the bottleneck student of that width holds."
    )
    if not any(result.kind == "student" for result in probes.results):
        return words + " No student was probed, so these are forecasts."
    if not known:
        return words + " No student was probed at a width that was forecast."
    listed = ", ".join(f"{KIND_IN_WORDS[kind]} {100 * error:.1f} points" for kind, error in known.items())
    return f"{words} They miss the students' accuracy by, in the mean: {listed}."


def _features(features: tuple[Decodability, ...]) -> Table:
    first = features[0]
    title = f"Reading {len(first.feature):,} features off activations, on {first.n_tokens:,} held-out tokens"
    table = _table(title)
    for heading in ("model", "kept", "AUROC: kept", "lost", "apart", "variance: kept", "lost", "apart"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for each in features:
        kept = np.array(each.kept)
        table.add_row(
            Text(each.subject),
            f"{int(kept.sum()):,}",
            *_means(each.auroc, kept, ".3f"),
            _number(each.separation, ".2f"),
            *_means(each.explained, kept, ".1%"),
            _number(each.separation_by_explained, ".2f"),
        )
    return table


def _means(values: tuple[float, ...], kept: np.ndarray, form: str) -> tuple[str, str]:
    found = np.array(values)
    return tuple(f"{found[part].mean():{form}}" if part.any() else "" for part in (kept, ~kept))  # type: ignore[return-value]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _of_features(features: tuple[Decodability, ...]) -> str:
    separations = [each.separation for each in features if not math.isnan(each.separation)]
    if not separations:
        return "Every feature is expected to be kept at these widths, or none."
    held = "bear out" if min(separations) >= 0.9 else "do not bear out"
    return (
        "AUROC is of whether a feature fires, variance is of its activation, explained by a line. Apart: the AUROC of"
        " telling kept from lost features by that, 0.5 for not at all."
        f" Of {min(separations):.2f} to {max(separations):.2f}, these students {held} assumption A2, that the features"
        " lost are gone and the others there."
    )


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
