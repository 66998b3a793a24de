"""Head floors as tables, figures and JSON values."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.display.figure_style import COLOURS, add_loss_axis_switch, apply_style, error_bars, escape_markup
from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import LONG_UNIT, STUDENT_LOSS
from tl_distill_floor.results.head_floor import HeadFloor

BOUND = (
    "A student loses at least what the best logits of its rank lose, whatever its depth, data or training. The head"
    " floor estimates that loss from above: more steps would lower it."
)


def head_table(head: HeadFloor) -> RenderableType:
    """Return the bound of each width with its standard error, and what it depends on."""
    measured = key_value_table(
        [
            ("teacher", f"{head.model_name} ({head.d_model:,} dimensions, {head.vocab_size:,} tokens of vocabulary)"),
            (
                "text",
                f"{head.text_name}, {head.n_train_tokens:,} training and {head.n_heldout_tokens:,} held-out tokens",
            ),
            ("training", f"{head.steps:,} steps"),
        ]
    )
    table = plain_table(f"Least loss of a student (nats/token): {STUDENT_LOSS}")
    for heading in ("width", "head floor", "standard error", "after half of the steps"):
        table.add_column(heading, justify="right")
    for width, floor, error, half in zip(head.widths, head.floor, head.standard_error, head.half_steps, strict=True):
        table.add_row(f"{width:,}", f"{floor:.4g}", f"{error:.2g}", f"{half:.4g}")
    return Group(measured, Text(), table, Text(BOUND), warning_lines(head.warnings))


def head_figure(head: HeadFloor) -> go.Figure:
    """Return the bound against the student width, with its 95 % interval; widths without loss are left out."""
    shown = np.flatnonzero(np.array(head.floor) > 0)
    floor, error = np.array(head.floor)[shown], 1.96 * np.array(head.standard_error)[shown]
    figure = go.Figure()
    figure.add_scatter(
        x=np.array(head.widths)[shown].tolist(),
        y=floor.tolist(),
        error_y=error_bars(floor, floor - error, floor + error),
        mode="lines+markers",
        line={"color": COLOURS["head"]},
        name="head floor",
    )
    figure.add_vline(head.d_model, line_dash="dot", annotation_text="teacher", annotation_position="top left")
    title = f"Estimated least loss of students of {escape_markup(head.model_name)}"
    apply_style(figure, title, "student width (dimensions)", LONG_UNIT["nats"])
    return add_loss_axis_switch(figure, 0.5 * float(floor.min()), float(floor.max())) if len(floor) else figure


def head_json(head: HeadFloor) -> dict[str, Any]:
    """Return a head floor as one JSON object; losses are in nats per token."""
    return {
        "model": head.model_name,
        "text": head.text_name,
        "teacher_width": head.d_model,
        "unit": "nats",
        "widths": list(head.widths),
        "head": list(head.floor),
        "standard_error": list(head.standard_error),
        "half_steps": list(head.half_steps),
        "encoded": list(head.encoded),
        "n_tokens": head.n_train_tokens + head.n_heldout_tokens,
        "n_heldout_tokens": head.n_heldout_tokens,
        "warnings": list(head.warnings),
    }
