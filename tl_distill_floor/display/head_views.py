"""Head floors, and predictions without features, as tables and figures."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.text import Text

from tl_distill_floor.display.figure_style import (
    BAND,
    COLOURS,
    add_band,
    add_curve,
    add_loss_axis_switch,
    apply_style,
    error_bars,
    escape_markup,
)
from tl_distill_floor.display.tables import key_value_table, plain_table, warning_lines
from tl_distill_floor.display.units import STUDENT_LOSS, loss_with_unit
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.expected_loss import LossPredictor, expected_loss_fit
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.theory.bootstrap import Z_95
from tl_distill_floor.theory.regression import PredictedLoss

SHOWN_LEVEL = 0.8
"""Probability of the intervals of expected losses in tables and figures; its upper end is a one-sided bound of 90 %."""
BOUND = (
    "A student loses at least what the best logits of its rank lose, whatever its depth, data or training. The head"
    " floor estimates that loss from above: more steps would lower it."
)
"""Explanation below a table of head floors."""


def prediction_table(floor: FloorPrediction) -> RenderableType:
    """Return the bound and the expected loss of each width, of a teacher that was measured without an SAE."""
    head = floor.head_floor
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
    table = plain_table(f"Least and expected loss of a student (nats/token): {STUDENT_LOSS}")
    for heading in ("width", "head floor", "standard error", "after half of the steps", "expected", "80 % interval"):
        table.add_column(heading, justify="right")
    for width, bound, error, half in zip(head.widths, head.floor, head.standard_error, head.half_steps, strict=True):
        expected = floor.expected_at(width, SHOWN_LEVEL)
        interval = f"{expected.low:.3g} to {expected.high:.3g}"
        table.add_row(f"{width:,}", f"{bound:.4g}", f"{error:.2g}", f"{half:.4g}", f"{expected.value:.3g}", interval)
    expected_text = Text(" ".join([expected_sentence("encoded", head), *calibration_sentences(floor)]))
    return Group(measured, Text(), table, Text(BOUND), expected_text, warning_lines(floor.warnings))


def expected_sentence(predictor: LossPredictor, head: HeadFloor) -> str:
    """Return sentences that name the students behind the expected loss, and say where this teacher is unlike theirs.

    Args:
        predictor: what the expected loss is computed from.
        head: the head floor.
    """
    losses = expected_loss_fit(predictor, head.known_share)
    is_one = head.model_name in losses.teachers
    sentences = [
        f"Expected is what a trained student loses, from {losses.n_students} students of {len(losses.teachers)}"
        f" teachers{', of which this is one' if is_one else ''}; the interval is that for a new teacher."
    ]
    if head.steps != losses.head_steps:
        sentences.append(
            f"The fit is to head floors of {losses.head_steps} steps, and this one has {head.steps}: expected is too"
            f" {'high' if head.steps < losses.head_steps else 'low'}."
        )
    if head.known_share is None:
        sentences.append("This run is from an older version; measure it again for a narrower interval.")
    if respects := losses.extrapolations(head.d_model, head.vocab_size, head.known_share):
        sentences.append(
            f"For this teacher it is an extrapolation, and the interval may be too narrow: {', '.join(respects)}."
        )
    return " ".join(sentences)


def calibration_sentences(floor: FloorPrediction) -> list[str]:
    """Return how students of the teacher itself enter the expected loss; nothing if there are none."""
    if floor.calibration is None:
        return []
    used, n_students = floor.student_losses, len(floor.calibration.widths)
    n_used = sum(width in used for width in floor.calibration.widths)
    if n_used == n_students:
        return [f"The {n_students} students of the calibration narrow it."]
    return [f"{n_used} of the {n_students} students of the calibration narrow it."]


def prediction_figure(floor: FloorPrediction) -> go.Figure:
    """Return the bound and the expected loss against the student width, with their intervals.

    The interval of the bound is 95 %, that of the expected loss 80 %. Widths without loss are left out. Trained
    students are shown if there is a calibration.
    """
    head = floor.head_floor
    shown = np.flatnonzero(np.array(head.floor) > 0)
    bound, error = np.array(head.floor)[shown], Z_95 * np.array(head.standard_error)[shown]
    figure, widths = go.Figure(), np.array(head.widths)[shown].tolist()
    expected = [floor.expected_at(width, SHOWN_LEVEL) for width in widths]
    add_expected(figure, widths, expected)
    bars = error_bars(bound, bound - error, bound + error)
    add_curve(figure, widths, bound, "head floor (95 %)", COLOURS["head"], error_y=bars)
    if floor.calibration is not None:
        add_students(figure, floor.calibration)
    figure.add_vline(head.d_model, line_dash="dot", annotation_text="teacher", annotation_position="top left")
    title = f"Least and expected loss of students of {escape_markup(head.model_name)}"
    apply_style(figure, title, "student width (dimensions)", loss_with_unit("nats"))
    if not widths:
        return figure
    return add_loss_axis_switch(figure, 0.5 * float(bound.min()))


def add_expected(figure: go.Figure, widths: Sequence[int], expected: Sequence[PredictedLoss]) -> None:
    """Draw the expected loss of trained students, with its interval as a band.

    Args:
        figure: the figure, which is changed.
        widths: student widths, dimensions.
        expected: expected loss and 80 % interval at each width.
    """
    low, high = [loss.low for loss in expected], [loss.high for loss in expected]
    add_band(figure, widths, low, high, BAND, "expected, 80 %")
    values = [loss.value for loss in expected]
    add_curve(figure, widths, values, "expected of a trained student", COLOURS["expected"], width=3.0)


def add_students(figure: go.Figure, calibration: Calibration) -> None:
    """Draw the losses of the trained students of a calibration."""
    figure.add_scatter(
        x=list(calibration.widths),
        y=list(calibration.losses),
        mode="markers",
        marker={"color": "black", "size": 9},
        name="students",
    )
