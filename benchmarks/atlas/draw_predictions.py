"""Draw the expected losses of the students of the atlas, by fits to other teachers, against the losses they reach.

    python benchmarks/atlas/draw_predictions.py benchmarks/figures/expected_and_reached.svg

The students of each teacher are predicted from those of the other teachers; students of the teachers in `new/`, from
all of these.
"""

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import typer
from judge import EXPECTED, FORM_OF_EXPECTED, LeftOut, fit_form, observations_of, predict_left_out
from students import Student, read_students

from tl_distill_floor.display.figure_style import apply_style, colour_and_symbol, error_bars
from tl_distill_floor.display.figures import save_figure

LEVEL = 0.8
"""Probability of the intervals that are drawn."""


def draw_predictions(students: list[Student], new: list[Student]) -> go.Figure:
    """Return a figure of the expected against the reached losses, on logarithmic axes.

    Args:
        students: students of the atlas.
        new: students of teachers that are not part of it.
    """
    figure = go.Figure()
    loss = [student.loss for student in students + new]
    ends = [min(loss) / 1.5, max(loss) * 1.5]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "black", "width": 1}, showlegend=False)
    add_students(figure, students, predict_left_out(FORM_OF_EXPECTED, EXPECTED, students, [LEVEL]))
    value, low, high = np.exp(
        fit_form(FORM_OF_EXPECTED, EXPECTED, students).predict(
            observations_of(FORM_OF_EXPECTED, EXPECTED, new).x, LEVEL
        )
    )
    add_students(figure, new, LeftOut(value, low[None], high[None]))
    apply_style(
        figure,
        f"Students of {len(set(teachers(students + new)))} teachers, each left out of the fit",
        "loss after long training, L∞ (nats per token)",
        f"expected, with {100 * LEVEL:.0f} % interval (nats per token)",
    )
    return figure.update_xaxes(type="log").update_yaxes(type="log")


def add_students(figure: go.Figure, students: list[Student], predicted: LeftOut) -> None:
    """Add one set of points per teacher."""
    names = np.array(teachers(students))
    for name in dict.fromkeys(names):
        own = names == name
        colour, symbol = colour_and_symbol(len(figure.data) - 1)
        figure.add_scatter(
            x=[student.loss for student in students if student.teacher == name],
            y=predicted.value[own],
            error_y=error_bars(predicted.value[own], predicted.low[0, own], predicted.high[0, own]) | {"thickness": 1},
            mode="markers",
            marker={"size": 8, "color": colour, "symbol": symbol},
            name=name,
        )


def teachers(students: list[Student]) -> list[str]:
    """Return the name of each student's teacher."""
    return [student.teacher for student in students]


def main(file: Path, directory: Path = Path(__file__).parent) -> None:
    """Save the figure."""
    students, _ = read_students(directory)
    new, _ = read_students(directory / "new")
    save_figure(draw_predictions(students, new), file)


if __name__ == "__main__":
    typer.run(main)
