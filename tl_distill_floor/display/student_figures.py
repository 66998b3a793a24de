"""Figures of students and of probes: a record in, a plotly figure out."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from tl_distill_floor.display.figures import COLOURS, CYCLE, as_words, laid_out
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.probes import Probes
from tl_distill_floor.results.student import StudentResult

LOSS = "KL(teacher ‖ student), nats per token"
DASHES = {"student": "solid", "kept": "dot", "bottleneck": "dash"}
IN_WORDS = {"student": "students", "kept": "features kept", "bottleneck": "bottleneck"}


def learning_figure(students: Sequence[StudentResult]) -> go.Figure:
    """Held-out loss of each student against the tokens it was trained on, and where its curve ends."""
    figure = go.Figure()
    for number, student in enumerate(student for student in students if student.tokens):
        colour = CYCLE[number % len(CYCLE)]
        figure.add_scatter(
            x=list(student.tokens),
            y=list(student.losses),
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 5},
            name=as_words(f"{student.name} ({student.status})"),
        )
        figure.add_scatter(
            x=[student.tokens[0], student.tokens[-1]],
            y=[student.floor, student.floor],
            mode="lines",
            line={"color": colour, "dash": "dot", "width": 1},
            name=as_words(f"{student.name}, floor {student.floor:.3g}"),
            showlegend=False,
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return laid_out(figure, "Learning curves; dotted: where each ends", "tokens", LOSS)


def calibration_figure(calibration: Calibration) -> go.Figure:
    """Predicted against reached: every student under every predictor, and the lines through them."""
    figure = go.Figure()
    for name, fit in calibration.predictors.items():
        x, order = np.array(fit.x), np.argsort(fit.x)
        line = fit.slope * x + fit.baseline
        widths = [f"width {width:,}" for width in calibration.widths]
        marker = {"color": COLOURS[name], "size": 9}
        best = " (best)" if name == calibration.predictor else ""
        figure.add_scatter(
            x=x.tolist(), y=list(calibration.losses), mode="markers", marker=marker, text=widths, name=name + best
        )
        figure.add_scatter(
            x=x[order].tolist(),
            y=line[order].tolist(),
            mode="lines",
            line={"color": COLOURS[name], "dash": "dash", "width": 1.5},
            name=f"{name}: C = {fit.slope:.3g}, B = {fit.baseline:.2g}, R² = {fit.r2:.4f}",
            showlegend=False,
        )
    unit = "nats per token" if calibration.unit == "nats" else "squared error per token"
    return laid_out(figure, "Predicted and reached", f"predicted floor ({unit})", f"student's floor ({LOSS})")


def survival_figure(probes: Probes) -> go.Figure:
    """What is left of each label's gain, accuracy above that of the commonest class, in students and in forecasts."""
    figure = go.Figure()
    kinds = [kind for kind in DASHES if any(result.kind == kind for result in probes.results)]
    for number, task in enumerate(probes.tasks):
        (teacher,) = probes.of(task, "teacher")
        coarse = teacher.level == "text"
        for kind in kinds:
            found, dash = probes.of(task, kind), DASHES[kind]
            figure.add_scatter(
                x=[result.width for result in found],
                y=[round(100 * result.retained(teacher), 2) for result in found],
                mode="lines+markers",
                line={"color": CYCLE[number % len(CYCLE)], "dash": dash, "width": 2 if kind == "student" else 1.2},
                marker={"symbol": "square" if coarse else "circle", "size": 7},
                legendgroup=as_words(task),
                showlegend=kind == kinds[0],
                name=as_words(f"{task} ({'coarse' if coarse else 'fine'})"),
            )
    figure.add_hline(100, line_dash="dot", line_color="grey")
    lines = ", ".join(f"{DASHES[kind]}: {IN_WORDS[kind]}" for kind in kinds)
    return laid_out(figure, f"What a line still reads off ({lines})", "width (dimensions)", "% of the teacher's gain")


def decodability_figure(probes: Probes) -> go.Figure:
    """How well kept and lost features are read off each student: quartiles, and the 5th and 95th percentile."""
    figure = go.Figure()
    for number, (name, colour) in enumerate((("kept", COLOURS["simulated"]), ("lost", COLOURS["theorem"]))):
        subjects, marks = [], []
        for each in probes.features:
            chosen = np.array(each.auroc)[np.array(each.kept) == (number == 0)]
            if len(chosen):
                subjects.append(as_words(each.subject))
                marks.append(np.quantile(chosen, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist())
        if subjects:
            names = ("lowerfence", "q1", "median", "q3", "upperfence")
            places = {mark: list(values) for mark, values in zip(names, zip(*marks, strict=True), strict=True)}
            figure.add_box(x=subjects, **places, name=name, marker={"color": colour})
    figure.update_layout(boxmode="group")
    return laid_out(figure, "Features read off each model", "", "AUROC of whether the feature fires")
