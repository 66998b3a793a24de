"""Figures of probes and of decoded features."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.annotations import ProbedActivation
from tl_distill_floor.display.figure_style import COLOURS, CYCLE, apply_style, escape_markup
from tl_distill_floor.results.probes import Decodability, ProbeResult, Probes
from tl_distill_floor.results.sparse_probes import SparseProbes

DASHES: dict[ProbedActivation, str] = {"student": "solid", "kept": "dot", "bottleneck": "dash"}
"""Line of each activation that is probed at a width."""
NAMES: dict[ProbedActivation, str] = {"student": "students", "kept": "features kept", "bottleneck": "bottleneck"}
QUANTILES = {"lowerfence": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "upperfence": 0.95}
"""What a box shows, by plotly's names."""
DENSE = "dense"
"""Place of the dense probe next to the numbers of features."""


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
    legend = ", ".join(f"{DASHES[kind]}: {NAMES[kind]}" for kind in kinds)
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
