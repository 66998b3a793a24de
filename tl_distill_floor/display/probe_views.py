"""Probes as rich tables and figures: what is left of each label, and which features can still be decoded."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.annotations import ProbedActivation
from tl_distill_floor.display.figure_style import COLOURS, CYCLE, apply_style, escape_markup
from tl_distill_floor.display.tables import format_number, plain_table, warning_lines
from tl_distill_floor.results.probes import Decodability, ProbeResult, Probes

ACTIVATION_NAMES: dict[ProbedActivation, str] = {
    "student": "student",
    "kept": "features kept",
    "bottleneck": "bottleneck",
}
"""What is probed at each width."""
FORECASTS: tuple[ProbedActivation, ...] = ("kept", "bottleneck")
"""Activations that are probed in place of a student."""
DASHES: dict[ProbedActivation, str] = {"student": "solid", "kept": "dot", "bottleneck": "dash"}
"""Line of each activation that is probed at a width."""
QUANTILES = {"lowerfence": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "upperfence": 0.95}
"""What a box shows, by plotly's names."""
SUPPORTING_SEPARATION = 0.9
"""AUROC from which on decodability is said to support assumption A2."""


def probes_table(probes: Probes) -> RenderableType:
    """Return the probes of the teacher, of the students and of the forecasts, and the decoded features.

    If several students have the same width, their mean is shown.
    """
    parts: list[RenderableType] = [_teacher(probes), Text(), _retained(probes), Text(_forecast_errors(probes))]
    if len(probes.features) > 1:
        parts += [Text(), decodability_table(probes.features), Text(_assumption(probes.features))]
    return Group(*parts, warning_lines(probes.warnings))


def probe_table(result: ProbeResult) -> RenderableType:
    """Return the probes of one task on one activation."""
    table = _scores_table(f"Linear probes for {result.task} at {result.hook_name} of {result.subject}")
    table.add_row(*_scores(result))
    return Group(table, warning_lines(result.warnings)) if result.warnings else table


def decodability_table(models: Sequence[Decodability]) -> Table:
    """Return how well kept and lost features can be decoded from each model; the mean over features."""
    n_features, n_tokens = len(models[0].feature), models[0].n_tokens
    table = plain_table(f"Decoding {n_features:,} features from activations, on {n_tokens:,} held-out tokens")
    headings = ("model", "kept", "AUROC: kept", "lost", "sep.", "variance: kept", "lost", "sep.")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in models:
        kept = np.array(model.kept)
        table.add_row(
            Text(model.subject),
            f"{int(kept.sum()):,}",
            *_mean_cells(model.auroc, kept, ".3f"),
            format_number(model.separation, ".2f"),
            *_mean_cells(model.explained, kept, ".1%"),
            format_number(model.separation_by_explained, ".2f"),
        )
    return table


def probe_figure(result: ProbeResult) -> go.Figure:
    """Return the test accuracy of each split, with the majority class and chance."""
    splits = [f"split {number}" for number in range(1, len(result.accuracy) + 1)]
    figure = go.Figure()
    figure.add_bar(x=splits, y=list(result.accuracy), marker={"color": CYCLE[0]}, name="accuracy")
    figure.add_bar(x=splits, y=list(result.majority), marker={"color": "grey"}, name="majority class")
    figure.add_hline(result.chance, line_dash="dot", annotation_text="chance")
    figure.update_yaxes(range=[0, 1])
    title = f"Probes for {escape_markup(result.task)} on {escape_markup(result.subject)}"
    return apply_style(figure, title, "", "share of the test examples")


def retention_figure(probes: Probes) -> go.Figure:
    """Return the share of the teacher's gain that is left at each width, for students and forecasts.

    The gain of a probe is its accuracy above that of the majority class.
    """
    figure = go.Figure()
    kinds = [kind for kind in DASHES if any(result.kind == kind for result in probes.results)]
    for number, task in enumerate(probes.tasks):
        (teacher,) = probes.of(task, "teacher")
        is_coarse = teacher.level == "text"
        for kind in kinds:
            results = probes.of(task, kind)
            figure.add_scatter(
                x=[result.width for result in results],
                y=[round(100 * result.retained(teacher), 2) for result in results],
                mode="lines+markers",
                line={
                    "color": CYCLE[number % len(CYCLE)],
                    "dash": DASHES[kind],
                    "width": 2 if kind == "student" else 1.2,
                },
                marker={"symbol": "square" if is_coarse else "circle", "size": 7},
                legendgroup=escape_markup(task),
                showlegend=kind == kinds[0],
                name=escape_markup(f"{task} ({'coarse' if is_coarse else 'fine'})"),
            )
    figure.add_hline(100, line_dash="dot", line_color="grey")
    legend = ", ".join(f"{DASHES[kind]}: {ACTIVATION_NAMES[kind]}" for kind in kinds)
    title = f"Labels that linear probes still predict ({legend})"
    return apply_style(figure, title, "width (dimensions)", "% of the teacher's gain")


def decodability_figure(models: Sequence[Decodability]) -> go.Figure:
    """Return how well kept and lost features can be decoded from each model: quartiles, 5th and 95th percentile."""
    figure = go.Figure()
    for name, is_kept, colour in (("kept", True, COLOURS["simulated"]), ("lost", False, COLOURS["theorem"])):
        subjects: list[str] = []
        quantiles: list[list[float]] = []
        for model in models:
            auroc = np.array(model.auroc)[np.array(model.kept) == is_kept]
            if len(auroc):
                subjects.append(escape_markup(model.subject))
                quantiles.append(np.quantile(auroc, list(QUANTILES.values())).round(4).tolist())
        if subjects:
            boxes = {mark: list(values) for mark, values in zip(QUANTILES, zip(*quantiles, strict=True), strict=True)}
            figure.add_box(x=subjects, **boxes, name=name, marker={"color": colour})
    figure.update_layout(boxmode="group")
    return apply_style(figure, "Features decoded from each model", "", "AUROC of whether the feature fires")


def _scores_table(title: str) -> Table:
    table = plain_table(title)
    for heading in ("label", "of", "classes", "items", "chance", "majority", "accuracy", "AUROC"):
        table.add_column(heading, justify="left" if heading in ("label", "of") else "right")
    return table


def _scores(result: ProbeResult) -> tuple[str | Text, ...]:
    low, high = result.interval
    margin = "" if math.isnan(low) else f" ± {50 * (high - low):.1f}"
    return (
        Text(result.task),
        "texts" if result.level == "text" else "words",
        f"{len(result.classes):,}",
        f"{result.n_items:,}",
        f"{100 * result.chance:.1f} %",
        f"{100 * result.mean_majority:.1f} %",
        f"{100 * result.mean_accuracy:.1f}{margin} %",
        f"{result.mean_auroc:.3f}",
    )


def _teacher(probes: Probes) -> Table:
    table = _scores_table(f"Linear probes at {probes.hook_name} of {probes.teacher}, on {probes.labelled}")
    for task in probes.tasks:
        for result in probes.of(task, "teacher"):
            table.add_row(*_scores(result))
    return table


def _retained(probes: Probes) -> Table:
    widths = sorted({result.width for result in probes.results if result.width is not None})
    table = plain_table("Share of the teacher's gain (accuracy above the majority class) that is left, by width")
    for heading in ("label", "in", *(f"{width:,}" for width in widths)):
        table.add_column(heading, justify="left" if heading in ("label", "in") else "right")
    for task in probes.tasks:
        (teacher,) = probes.of(task, "teacher")
        for kind, name in ACTIVATION_NAMES.items():
            results = probes.of(task, kind)
            if results:
                shares = ([r.retained(teacher) for r in results if r.width == width] for width in widths)
                cells = (format_number(float(np.mean(values)), ".0%") if values else "" for values in shares)
                table.add_row(Text(task), name, *cells)
    return table


def _forecast_errors(probes: Probes) -> str:
    """Return what the forecasts are, and how far they are from the students."""
    explanation = (
        "accuracy: ± is half of the 95 % interval over splits. features kept: the teacher's activation, reconstructed"
        " from the features that a width is expected to keep;"
        " bottleneck: the hidden state of the bottleneck student of that width."
    )
    if not any(result.kind == "student" for result in probes.results):
        return explanation + " No student was probed, so these are forecasts."
    errors = {kind: probes.forecast_error(kind) for kind in FORECASTS}
    known = ", ".join(
        f"{ACTIVATION_NAMES[kind]} {100 * error:.1f} points" for kind, error in errors.items() if not math.isnan(error)
    )
    if not known:
        return explanation + " No student was probed at a width that was forecast."
    return f"{explanation} Mean absolute error of the forecasts of the students' accuracy: {known}."


def _assumption(models: Sequence[Decodability]) -> str:
    """Return whether the decoded features support assumption A2."""
    separations = [model.separation for model in models if not math.isnan(model.separation)]
    if not separations:
        return "At these widths, all features are expected to be kept, or all to be lost."
    support = "support" if min(separations) >= SUPPORTING_SEPARATION else "do not support"
    return (
        "AUROC: of whether a feature fires; variance: share of the variance of its activation that is explained by a"
        " ridge regression; sep.: the AUROC of separating kept from lost features by these values, 0.5 for chance."
        f" With separations of {min(separations):.2f} to {max(separations):.2f}, these students {support} assumption"
        " A2: that a student represents the kept features and nothing of the lost ones."
    )


def _mean_cells(values: Sequence[float], kept: Bool[np.ndarray, " feature"], spec: str) -> list[str]:
    """Return the mean over the kept and over the lost features; empty if there are none."""
    array = np.array(values)
    return [f"{array[part].mean():{spec}}" if part.any() else "" for part in (kept, ~kept)]
