"""The sections and figures of a report."""

import dataclasses
import math
from collections.abc import Sequence

import plotly.graph_objects as go
from markupsafe import Markup

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.display.comparison import run_comparison_table
from tl_distill_floor.display.escaping import escape_control
from tl_distill_floor.display.figures import (
    capacities_figure,
    compared_floors_figure,
    costs_figure,
    critical_widths_figure,
    floor_figure,
    growth_figure,
)
from tl_distill_floor.display.floor_tables import measured_table, widths_table
from tl_distill_floor.display.head_views import SHOWN_LEVEL, prediction_figure, prediction_table
from tl_distill_floor.display.lost_feature_views import join_tokens, lost_summary, promoted_note
from tl_distill_floor.display.probe_views import decodability_figure, probes_table, retention_figure
from tl_distill_floor.display.report_page import (
    PageFeature,
    Section,
    page_figures,
    page_views,
    render_page,
)
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.display.sparse_probe_views import sparse_probes_figure, sparse_probes_table
from tl_distill_floor.display.student_views import (
    calibration_figure,
    calibration_table,
    learning_figure,
    students_table,
)
from tl_distill_floor.display.tables import format_share, warning_lines
from tl_distill_floor.display.units import LONG_UNIT
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.lost_features import FeatureAtWidth

CITATION = """@article{sarkar2026geometric,
  title = {Geometric Limits of Knowledge Distillation: A Minimum-Width Theorem via Superposition Theory},
  author = {Sarkar and Deka},
  year = {2026},
  journal = {arXiv preprint arXiv:2604.04037}
}"""
SECTION_FIGURES = {
    "floors": ("floors", "costs", "capacities"),
    "students": ("learning-curves", "predicted-and-reached"),
    "probes": ("retention", "decodability", "sparse-probes"),
    "method": ("growth",),
}
"""Names of the figures in each section."""
NO_PREDICTION = "This run has no prediction; make one with tl-floor measure."
NO_STUDENTS = "This run has no students; train some with tl-floor distill."
NOT_FITTED = "The prediction was not fitted to them; run tl-floor calibrate."
NO_PROBES = "This run has no probes; fit some with tl-floor probe."
NEEDS_FEATURES = "This needs a prediction from an SAE's features; make one with tl-floor measure."


def report_html(parts: RunParts) -> str:
    """Return the page of one run.

    Raises:
        ValueError: the run has neither a prediction nor students nor probes.
    """
    nothing_probed = parts.probes is None and parts.sparse_probes is None
    if parts.floor is None and not parts.students and nothing_probed:
        raise ValueError(f"{parts.name} has nothing to report")
    figures = report_figures(parts)
    sections = [
        dataclasses.replace(
            section,
            figures=page_figures(
                {name: figures[name] for name in SECTION_FIGURES.get(section.anchor, ()) if name in figures}
            ),
        )
        for section in (
            _floors_section(parts),
            _students_section(parts),
            _probes_section(parts),
            _lost_section(parts),
            _method_section(parts),
            _citation_section(),
        )
    ]
    return render_page(f"Students of {_teacher_name(parts)}: predicted losses", report_summary(parts), sections)


def comparison_html(runs: Sequence[RunParts]) -> str:
    """Return the page that compares several runs.

    Raises:
        InputError: fewer than two of them have a prediction from features.
    """
    compared = [(run.name, run.features) for run in runs if run.features is not None]
    if len(compared) < 2:
        raise InputError("a comparison needs two runs that were measured with an SAE; name another run")
    labels, floors = [label for label, _ in compared], [floor for _, floor in compared]
    overview = Section(
        "compared",
        "Comparison",
        page_views(*(f"! Left out: {reason}" for reason in left_out(runs)), run_comparison_table(floors, labels)),
        page_figures(comparison_figures(runs)),
    )
    sections = [_run_section(number, label, floor) for number, (label, floor) in enumerate(compared)]
    critical_widths = ", ".join(f"{label} {floor.critical_width:,.1f}" for label, floor in compared)
    summary = f"By Theorem 1 the features need, in dimensions: {critical_widths}."
    return render_page(f"{' and '.join(labels)} compared", summary, [overview, *sections, _citation_section()])


def left_out(runs: Sequence[RunParts]) -> list[str]:
    """Return a sentence for each run, or part of a run, that a comparison does not show."""
    return [
        *(reason for run in runs for reason in run.unreadable),
        *(f"{run.name} was measured without an SAE" for run in runs if run.features is None),
    ]


def report_figures(parts: RunParts) -> dict[str, go.Figure]:
    """Return every figure that the parts of a run allow, by name."""
    figures: dict[str, go.Figure] = {}
    floor, features = parts.floor, parts.features
    if features is not None:
        figures["floors"], figures["costs"] = floor_figure(features), costs_figure(features)
        figures["capacities"], figures["growth"] = capacities_figure(features), growth_figure(features)
    elif floor is not None:
        figures["floors"] = prediction_figure(floor)
    if parts.students:
        figures["learning-curves"] = learning_figure(parts.students)
    if floor is not None and floor.calibration is not None:
        figures["predicted-and-reached"] = calibration_figure(floor.calibration)
    if parts.probes is not None:
        figures["retention"] = retention_figure(parts.probes)
        if len(parts.probes.features) > 1:
            figures["decodability"] = decodability_figure(parts.probes.features)
    if parts.sparse_probes is not None:
        figures["sparse-probes"] = sparse_probes_figure(parts.sparse_probes)
    return figures


def comparison_figures(runs: Sequence[RunParts]) -> dict[str, go.Figure]:
    """Return the figures that compare several runs, by name."""
    floors = [run.features for run in runs if run.features is not None]
    labels = [run.name for run in runs if run.features is not None]
    return {"compared": compared_floors_figure(floors, labels), "widths": critical_widths_figure(floors, labels)}


def report_summary(parts: RunParts) -> str:
    """Return the main result of a run in a few sentences, for the middle one of its widths."""
    floor = parts.features
    if floor is None:
        return _summary_without_features(parts)
    stats, middle = floor.stats, len(floor.widths) // 2
    width = int(floor.widths[middle])
    low, high = floor.sampling_interval[middle]
    interval = f" (sampling, 95 %: {low:.3g} to {high:.3g})" if not math.isnan(high) else ""
    expected = f"loses about {floor.feature_floor[middle]:.3g}{interval} {LONG_UNIT[floor.unit]} by its features"
    if floor.expected is not None:
        loss = floor.expected_at(width, SHOWN_LEVEL)
        expected = f"is expected to lose {loss.value:.3g} (80 %: {loss.low:.3g} to {loss.high:.3g}) {LONG_UNIT['nats']}"
    sentences = [
        f"A student of {stats.model_name} that is {width:,} of {floor.d_model:,} dimensions wide {expected}, and"
        f" {len(floor.lost(width)):,} of {floor.n_features:,} features.",
        f"The critical width, which by Theorem 1 represents every feature, is {floor.critical_width:,.1f} dimensions.",
    ]
    calibration = floor.calibration
    if calibration is None:
        sentences.append("The prediction was not compared with trained students.")
    else:
        sentences.append(
            f"Compared with {len(calibration.widths)} trained students, {calibration.predictor} has a"
            f" leave-one-width-out error of {calibration.loo_error:.0%} (C = {calibration.slope:.3g}, R² ="
            f" {calibration.r2:.3f})."
        )
        if floor.expected is None:  # else the expected loss has been narrowed by the students
            calibrated = floor.calibrated_at(width).value
            sentences.append(f"The calibrated prediction for width {width:,} is {calibrated:.3g} nats per token.")
    return " ".join(sentences)


def _summary_without_features(parts: RunParts) -> str:
    """Return the main result of a run whose teacher was measured without an SAE, or that has no prediction."""
    floor = parts.floor
    if floor is None:
        return "This run has no prediction; its other parts follow."
    width = int(floor.widths[len(floor.widths) // 2])
    loss = floor.expected_at(width, SHOWN_LEVEL)
    return (
        f"A student of {floor.model_name} that is {width:,} of {floor.d_model:,} dimensions wide loses at least about"
        f" {floor.head_floor.floor_at(width):.3g} {LONG_UNIT['nats']}, and a trained one is expected to lose"
        f" {loss.value:.3g} (80 %: {loss.low:.3g} to {loss.high:.3g}). Which features it loses is not known, since the"
        " teacher was measured without an SAE."
    )


def _floors_section(parts: RunParts) -> Section:
    notes = [f"! Not read: {reason}" for reason in parts.unreadable]
    if parts.floor is None:
        return Section("floors", "Loss floors", page_views(*notes, NO_PREDICTION))
    if parts.features is None:
        return Section("floors", "Least and expected loss", page_views(*notes, prediction_table(parts.floor)))
    views = page_views(*notes, widths_table(parts.features), warning_lines(parts.features.warnings))
    return Section("floors", "Loss floors", views)


def _students_section(parts: RunParts) -> Section:
    if not parts.students:
        return Section("students", "Students", page_views(NO_STUDENTS))
    calibration = None if parts.floor is None else parts.floor.calibration
    fit = NOT_FITTED if calibration is None else calibration_table(calibration)
    return Section("students", "Students", page_views(students_table(parts.students), fit))


def _probes_section(parts: RunParts) -> Section:
    views = [] if parts.probes is None else [probes_table(parts.probes)]
    if parts.sparse_probes is not None:
        views.append(sparse_probes_table(parts.sparse_probes))
    return Section("probes", "Probes", page_views(*(views or [NO_PROBES])))


def _lost_section(parts: RunParts) -> Section:
    if parts.lost is None:
        return Section("lost", "Lost features", page_views(NEEDS_FEATURES))
    features = tuple(_page_feature(feature, parts.lost.unit) for feature in parts.lost.shown)
    note = promoted_note(parts.lost.shown)
    views = page_views(lost_summary(parts.lost), *([] if note is None else [note]))
    return Section("lost", "Lost features", views, features=features)


def _method_section(parts: RunParts) -> Section:
    heading = "How it was measured"
    if parts.features is None:
        return Section("method", heading, page_views(NEEDS_FEATURES))
    settings = ", ".join(f"{name} {value}" for name, value in parts.features.stats.settings.items())
    return Section("method", heading, page_views(measured_table(parts.features), f"Settings: {settings}."))


def _citation_section() -> Section:
    source = "The theorem is from Sarkar and Deka (2026), arXiv:2604.04037. This page was made with tl-distill-floor."
    return Section("cite", "How to cite", (*page_views(source), Markup("<pre>{}</pre>").format(CITATION)))


def _run_section(number: int, label: str, floor: FeatureFloorPrediction) -> Section:
    heading = f"{escape_control(label)}: {escape_control(floor.stats.model_name)}"
    views = page_views(measured_table(floor), widths_table(floor), warning_lines(floor.warnings))
    figures = page_figures({"floors": floor_figure(floor), "costs": costs_figure(floor)}, f"{number}-")
    return Section(f"run{number}", heading, views, figures)


def _page_feature(at: FeatureAtWidth, unit: CostUnit) -> PageFeature:
    numbers = (
        f"rank {at.rank:,} by cost ({at.cost:.3g} {LONG_UNIT[unit]}), fires on {format_share(at.firing_rate)} of the"
        f" tokens, {at.lost_share:.0%} of its cost lost"
    )
    contexts = tuple(
        (escape_control(context.before), escape_control(context.peak), escape_control(context.after))
        for context in at.contexts
    )
    return PageFeature(at.feature, at.neuronpedia, numbers, contexts, join_tokens(at.promoted or ()))


def _teacher_name(parts: RunParts) -> str:
    if parts.floor is not None:
        return parts.floor.model_name
    if parts.students:
        return parts.students[0].teacher
    probes = parts.probes or parts.sparse_probes
    return parts.name if probes is None else probes.teacher
