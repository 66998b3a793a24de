"""Diagnoses of learning curves as tables, figures and JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.display.figure_style import BAND, COLOURS, CYCLE, add_band, add_curve, apply_style, escape_markup
from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import SHORT_UNIT, STUDENT_LOSS, loss_with_unit
from tl_distill_floor.results.diagnosis import Diagnosis

NOT_KNOWN = "not known"
FURTHEST = 30.0
"""Multiple of the tokens so far up to which a figure continues the learning curve."""
SMALLEST_SHOWN = 1e-5
"""Smallest loss of the logarithmic axis, nats per token."""


def diagnosis_table(diagnosis: Diagnosis) -> RenderableType:
    """Return the losses of a student and the verdict on its training."""
    unit = SHORT_UNIT["nats"]
    low, high = diagnosis.expected_interval
    rows = [
        ("student", f"width {diagnosis.width:,}, of {diagnosis.teacher}"),
        ("reached", f"{diagnosis.reached:.4g} {unit} after {diagnosis.tokens[-1]:,.0f} tokens"),
        ("bound", f"{diagnosis.bound:.4g}, the least loss of any student of this width (estimated from above)"),
        ("expected", f"{diagnosis.expected:.3g} of a trained student of this width (95 %: {low:.3g} to {high:.3g})"),
        ("end", _end(diagnosis)),
        ("verdict", diagnosis.sentence),
    ]
    title = f"{diagnosis.curve}: {STUDENT_LOSS}, {SHORT_UNIT['nats']}"
    return Group(key_value_table(rows, title), warning_lines(diagnosis.warnings))


def diagnoses_table(diagnoses: Sequence[Diagnosis]) -> RenderableType:
    """Return the losses of several students of one teacher, and the verdict on the training of each."""
    table = plain_table(f"Students of {diagnoses[0].teacher}: {STUDENT_LOSS}, {SHORT_UNIT['nats']}")
    for heading in ("student", "width", "reached", "bound", "expected", "95 %", "end", "95 %"):
        table.add_column(heading, justify="left" if heading == "student" else "right")
    for diagnosis in diagnoses:
        (low, high), (end_low, end_high) = diagnosis.expected_interval, diagnosis.end_interval
        table.add_row(
            Text(diagnosis.curve),
            f"{diagnosis.width:,}",
            f"{diagnosis.reached:.4g}",
            f"{diagnosis.bound:.3g}",
            f"{diagnosis.expected:.3g}",
            f"{low:.2g}–{high:.2g}",
            NOT_KNOWN if diagnosis.end is None else f"{diagnosis.end:.3g}",
            "" if diagnosis.end is None else f"{end_low:.3g}–{end_high:.3g}",
        )
    verdicts = key_value_table([(diagnosis.curve, diagnosis.sentence) for diagnosis in diagnoses])
    note = Text(
        "bound: least loss of any student of this width; expected: of a trained student; end: where the curve ends."
    )
    warnings = dict.fromkeys(warning for diagnosis in diagnoses for warning in diagnosis.warnings)
    return Group(table, note, Text(), verdicts, warning_lines(warnings))


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as one JSON object: its fields, the unit, what is left and the tokens for half of it."""
    left = {"left": diagnosis.left, "tokens_for_half": diagnosis.tokens_for_half}
    return dataclasses.asdict(diagnosis) | {"unit": "nats"} | left


def diagnosis_figure(diagnosis: Diagnosis) -> go.Figure:
    """Return the learning curve and its continuation, with the bound and the expected loss, on logarithmic axes."""
    figure = go.Figure()
    first, last = diagnosis.tokens[0], diagnosis.tokens[-1]
    furthest = last
    if diagnosis.half_factor is not None and diagnosis.end is not None:
        furthest = last * min(max(diagnosis.half_factor**2, 2.0), FURTHEST)
        later = np.geomspace(last, furthest, 50).tolist()
        losses = [diagnosis.loss_at(tokens) for tokens in later]
        add_curve(figure, later, losses, f"continued, to {diagnosis.end:.3g}", CYCLE[0], dash="dash", markers=False)
    low, high = (max(loss, SMALLEST_SHOWN) for loss in diagnosis.expected_interval)
    add_band(figure, [first, furthest], [low, low], [high, high], BAND, "expected, 95 %")
    for name, loss, dash in (("expected", diagnosis.expected, "solid"), ("head", diagnosis.bound, "dot")):
        if loss > 0:
            label = "expected" if name == "expected" else "bound (head floor)"
            add_curve(figure, [first, furthest], [loss, loss], label, COLOURS[name], dash=dash, markers=False)
    figure.add_scatter(
        x=list(diagnosis.tokens),
        y=[max(loss, SMALLEST_SHOWN) for loss in diagnosis.losses],
        mode="lines+markers",
        line={"color": CYCLE[0]},
        marker={"size": 5},
        name="learning curve",
    )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", dtick="D2")
    title = f"{escape_markup(diagnosis.curve)}, width {diagnosis.width:,}: {diagnosis.verdict}"
    return apply_style(figure, title, "tokens", loss_with_unit("nats"))


def _end(diagnosis: Diagnosis) -> str:
    """Return where a learning curve ends, and what is left."""
    if diagnosis.end is None or diagnosis.left is None:
        return NOT_KNOWN
    low, high = diagnosis.end_interval
    return f"{diagnosis.end:.3g} with more tokens (95 %: {low:.3g} to {high:.3g}): {diagnosis.left:.0%} is left to gain"
