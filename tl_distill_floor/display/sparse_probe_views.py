"""k-sparse probes as rich tables, a figure, and a sentence for each concept."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tl_distill_floor.display.figure_style import CYCLE, apply_style, escape_markup
from tl_distill_floor.display.tables import format_number, plain_table, warning_lines
from tl_distill_floor.results.sparse_probes import Concept, ConceptAtWidth, ConceptFeature, ConceptScores, SparseProbes

MAX_NAMED = 8
"""Number of features that a sentence names at most."""

DENSE = "dense"
"""Place of the dense probe next to the numbers of features."""


def sparse_probes_table(probes: SparseProbes) -> RenderableType:
    """Return the scores of each concept over K, its features, and what each width loses of them."""
    sentences = [Text(concept_sentence(concept)) for concept in probes.concepts]
    return Group(
        _scores(probes),
        Text(
            "On test documents; ± is half of the 95 % interval over splits. shuffled: with labels that are shuffled"
            " between documents; random: with K random features; both as the 5th to 95th percentile of the AUROC."
            " dense: AUROC of a probe of the teacher's activation."
        ),
        Text(),
        *sentences,
        Text(),
        _widths(probes),
        Text(_forecast_errors(probes)),
        warning_lines(probes.warnings),
    )


def sparse_probes_figure(probes: SparseProbes) -> go.Figure:
    """Return the AUROC of each concept over the number of features, with its controls and its dense probe."""
    figure = go.Figure()
    for number, concept in enumerate(probes.concepts):
        name, colour = escape_markup(concept.name), CYCLE[number % len(CYCLE)]
        ks = [str(at.k) for at in concept.at]
        curves = {
            "solid": [*(at.selected.mean_auroc for at in concept.at), concept.dense.mean_auroc],
            "dash": [at.random.mean_auroc for at in concept.at],
            "dot": [at.shuffled.mean_auroc for at in concept.at],
        }
        for dash, auroc in curves.items():
            is_selected = dash == "solid"
            figure.add_scatter(
                x=[*ks, DENSE] if is_selected else ks,
                y=[round(value, 4) for value in auroc],
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2 if is_selected else 1.2},
                marker={"size": 7 if is_selected else 4},
                legendgroup=name,
                showlegend=is_selected,
                name=name,
            )
    figure.add_hline(0.5, line_dash="dot", line_color="grey")
    figure.update_xaxes(type="category")
    title = "k-sparse probes (solid: selected features, dash: random features, dot: shuffled labels)"
    return apply_style(figure, title, "number of features K", "AUROC")


def concept_sentence(concept: Concept) -> str:
    """Return the features that a concept rests on, the width that loses some of them, and what its probes score.

    Args:
        concept: the probes of the concept.

    Returns:
        Two to four sentences.

    Example:
        >>> concept_sentence(probes.of("sentiment: good"))  # doctest: +SKIP
        'sentiment: good rests on features 12, 871, 40: ...'
    """
    auroc, dense = concept.best.selected.mean_auroc, concept.dense.mean_auroc
    items = f"{concept.n_items:,} {concept.level}s of {concept.n_documents:,} documents, {concept.share:.0%} with it"
    rests = f"{concept.name} ({items}) rests on {_named(concept.core)}: AUROC {auroc:.2f}, dense {dense:.2f}."
    rests += _caution(concept)
    at = concept.first_loss
    if at is None:
        at = concept.widths[0]
        fate = f"A student of width {at.width:,} is expected to keep {'it' if concept.enough == 1 else 'them all'}"
        return f"{rests} {fate}; {_student_scores(concept, at)}."
    lost = [feature for feature in concept.core if feature.feature in at.lost]
    which = f" ({', '.join(str(feature.feature) for feature in lost)})" if len(lost) < concept.enough else ""
    fate = (
        f"A student of width {at.width:,} is expected to lose {len(lost)} of {concept.enough}{which}, which leaves the"
        f" sparse probe an AUROC of {at.remaining.mean_auroc:.2f}"
    )
    return f"{rests} {fate}; {_student_scores(concept, at)}."


def _student_scores(concept: Concept, at: ConceptAtWidth) -> str:
    """Return what the dense probes of a width score: of its students, or of the forecasts if there are none."""
    teacher = f"(teacher {concept.dense.mean_auroc:.2f})"
    if at.students:
        mean = float(np.mean([student.scores.mean_auroc for student in at.students]))
        whose = "the probe of its student scores" if len(at.students) == 1 else "the probes of its students score"
        return f"{whose} {mean:.2f} {teacher}"
    if at.bottleneck is not None:
        return f"the forecast for its probe is {at.bottleneck.mean_auroc:.2f} by the bottleneck {teacher}"
    return f"the forecast for its probe is {at.kept.mean_auroc:.2f} by the features kept {teacher}"


def _named(features: Sequence[ConceptFeature]) -> str:
    """Return the indices of features, each with the token on which it fires most strongly."""
    names = [
        f"{each.feature}" + ("" if each.peak is None else f" ({'' if each.rises else 'without '}{each.peak.strip()!r})")
        for each in features[:MAX_NAMED]
    ]
    more = f" and {len(features) - MAX_NAMED} more" if len(features) > MAX_NAMED else ""
    return f"{'feature' if len(features) == 1 else 'features'} {', '.join(names)}{more}"


def _caution(concept: Concept) -> str:
    """Return what a control says against the features, or an empty string."""
    auroc, shuffled, random = concept.best.selected.mean_auroc, concept.best.shuffled, concept.best.random
    if auroc <= shuffled.auroc_range[1]:
        return f" This may be chance: shuffled labels reach {shuffled.auroc_range[1]:.2f}; more documents would tell."
    if auroc <= random.auroc_range[1]:
        return f" Random features do as well, up to {random.auroc_range[1]:.2f}."
    return ""


def _scores(probes: SparseProbes) -> Table:
    table = plain_table(
        f"k-sparse probes of {probes.sae_name} at {probes.hook_name} of {probes.teacher}, on {probes.labelled}"
    )
    for heading in ("concept", "K", "AUROC", "F1", "prec.", "recall", "shuffled", "random", "dense"):
        table.add_column(heading, justify="left" if heading == "concept" else "right")
    for concept in probes.concepts:
        name, dense = Text(concept.name), f"{concept.dense.mean_auroc:.2f}"
        for at in concept.at:
            selected = at.selected
            table.add_row(
                name,
                f"{at.k:,}",
                _with_interval(selected),
                f"{selected.mean_f1:.2f}",
                f"{selected.mean_precision:.2f}",
                f"{selected.mean_recall:.2f}",
                _range(at.shuffled),
                _range(at.random),
                dense,
            )
            name, dense = Text(), ""
    return table


def _with_interval(scores: ConceptScores) -> str:
    low, high = scores.auroc_interval
    return f"{scores.mean_auroc:.2f}" + ("" if math.isnan(low) else f" ± {(high - low) / 2:.2f}")


def _range(scores: ConceptScores) -> str:
    low, high = scores.auroc_range
    return f"{low:.2f}–{high:.2f}"


def _widths(probes: SparseProbes) -> Table:
    table = plain_table("What each width is expected to lose of the features, and AUROC of probes")
    for heading in ("concept", "width", "lost", "remaining", "kept", "bottleneck", "student"):
        table.add_column(heading, justify="left" if heading == "concept" else "right")
    for concept in probes.concepts:
        name = Text(concept.name)
        for at in concept.widths:
            students = [student.scores.mean_auroc for student in at.students]
            table.add_row(
                name,
                f"{at.width:,}",
                f"{len(at.lost)} of {concept.enough}",
                f"{at.remaining.mean_auroc:.2f}",
                f"{at.kept.mean_auroc:.2f}",
                "" if at.bottleneck is None else f"{at.bottleneck.mean_auroc:.2f}",
                format_number(float(np.mean(students)) if students else math.nan, ".2f"),
            )
            name = Text()
    return table


def _forecast_errors(probes: SparseProbes) -> str:
    """Return what the columns are, and how far the forecasts are from the students."""
    explanation = (
        "lost: of the features that the concept rests on; remaining: the sparse probe without these; kept and"
        " bottleneck: forecasts of the student's dense probe, from the teacher's activation reconstructed from the"
        " features that a width keeps, and from the hidden state of the bottleneck student; student: dense probe of the"
        " trained student."
    )
    errors = {name: error for name, error in probes.forecast_error().items() if not math.isnan(error)}
    if not errors:
        return f"{explanation} No student was probed, so these are forecasts."
    known = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    return f"{explanation} Mean absolute difference from the students' AUROC: {known}."
