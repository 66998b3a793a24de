"""Figures of predictions, students and probes: what each draws, and that it can be written."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.records import stats_of
from tl_distill_floor import Calibration, FloorPrediction, Probes, StudentResult, floor_from_stats
from tl_distill_floor.display.figures import (
    capacities_figure,
    compared_floors_figure,
    costs_figure,
    critical_widths_figure,
    growth_figure,
    save_figure,
    spaced,
)
from tl_distill_floor.display.student_figures import (
    calibration_figure,
    decodability_figure,
    learning_figure,
    survival_figure,
)
from tl_distill_floor.errors import InputError
from tl_distill_floor.theory.regression import fit_line

COST = np.arange(1, 41.0) ** -1.5


@pytest.fixture(scope="module")
def floor() -> FloorPrediction:
    return floor_from_stats(stats_of(COST, rate=0.02), [1, 2, 4])


def student(width: int, losses: tuple[float, ...]) -> StudentResult:
    tokens = tuple(1000 * (i + 1) for i in range(len(losses)))
    status = "under-trained" if losses else "diverged"
    return StudentResult(f"width{width}", "made", width, 2, 100, tokens, losses, 0.1, (0.05, 0.2), status, 10)


def test_costs_are_drawn_with_their_law(floor: FloorPrediction) -> None:
    figure = costs_figure(floor)
    measured, law = figure.data
    assert list(measured.y) == pytest.approx(sorted(COST, reverse=True))
    assert list(measured.x) == list(range(1, 41))
    assert law.name == "rank^-1.5"
    # A law that holds exactly lies on what was measured.
    np.testing.assert_allclose(law.y, measured.y, rtol=1e-6)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_a_cliff_is_marked() -> None:
    bent = np.concatenate([np.arange(1, 61.0) ** -1.0, 1 / 60 * (np.arange(61, 101.0) / 60) ** -20])
    figure = costs_figure(floor_from_stats(stats_of(bent, rate=0.02), [1, 2]))
    assert [trace.name for trace in figure.data[1:]] == ["rank^-1", "rank^-20.3"]
    assert "cliff at 6" in figure.layout.annotations[0].text
    assert figure.layout.annotations[0].x == pytest.approx(np.log10(60), abs=0.05)


def test_capacities_add_up_to_the_width(floor: FloorPrediction) -> None:
    figure = capacities_figure(floor, [2, 4])
    assert [trace.name for trace in figure.data] == ["width 2", "width 4"]
    for trace, width in zip(figure.data, (2, 4), strict=True):
        # Bins of one feature each, up to rank 40: their sum is the width.
        assert len(trace.x) <= 60
        starts = spaced(40, 60) - 1
        counts = np.diff(np.append(starts, 40))
        assert float(np.array(trace.y) @ counts) == pytest.approx(width, rel=1e-3)


def test_growth_layers_and_comparisons(floor: FloorPrediction) -> None:
    tokens, alive = floor.stats.growth()
    (grown,) = growth_figure(floor).data
    assert (list(grown.x), list(grown.y)) == (tokens.tolist(), alive.tolist())
    other = floor_from_stats(stats_of(COST[:20], rate=0.02), [2, 8])
    (widths,) = critical_widths_figure([floor, other], ["a", "b"]).data
    assert (list(widths.x), list(widths.y)) == (["a", "b"], [floor.critical_width, other.critical_width])
    traces = compared_floors_figure([floor, other], ["a", "b"]).data
    assert [list(trace.x) for trace in traces] == [[1, 2, 4], [2, 8]]
    assert list(traces[1].y) == other.expected.tolist()


def test_students_and_the_line_through_them() -> None:
    figure = learning_figure([student(8, (0.5, 0.3)), student(4, ())])
    curve, end = figure.data  # one that diverged at once has no curve
    assert (list(curve.x), list(curve.y), list(end.y)) == ([1000, 2000], [0.5, 0.3], [0.1, 0.1])
    x, loss = np.array([3.0, 2.0, 1.0, 0.5]), np.array([1.0, 0.7, 0.4, 0.25])
    fit = fit_line(x, loss)
    made = Calibration(
        "made", "", "nats", (1, 2, 4, 8), tuple(loss), ("given",) * 4, "simulated", {"simulated": fit},
        {"1/width": 0.1}, 0.1,
    )  # fmt: skip
    points, line = calibration_figure(made).data
    assert points.name == "simulated (best)"
    assert (list(points.x), list(points.y)) == (x.tolist(), loss.tolist())
    # 0.3 · x + 0.1 goes through all four.
    assert list(line.y) == pytest.approx([0.25, 0.4, 0.7, 1.0])
    assert "C = 0.3, B = 0.1, R² = 1.0000" in line.name


def test_what_survives_is_drawn_by_width(probes: Probes) -> None:
    figure = survival_figure(probes)
    students, kept = figure.data
    assert (list(students.x), list(students.y)) == ([8], [50.0])  # (0.7 - 0.5) / (0.9 - 0.5)
    assert (list(kept.x), list(kept.y)) == ([4, 8], [25.0, 65.0])
    assert "solid: students, dot: features kept" in figure.layout.title.text
    boxes = decodability_figure(probes).data
    assert [(box.name, list(box.x), list(box.median)) for box in boxes] == [
        ("kept", ["width8"], [0.9]),
        ("lost", ["width8"], [0.6]),
    ]


def test_figures_are_written_or_say_what_is_missing(
    floor: FloorPrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = growth_figure(floor)
    assert "plotly" in save_figure(figure, tmp_path / "new" / "growth.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"written as \.svg, \.png, \.pdf, \.html, got growth\.gif"):
        save_figure(figure, tmp_path / "growth.gif")

    def without_kaleido(*_given: Any, **_options: Any) -> None:
        raise ValueError("Image export needs kaleido\nand more")

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", without_kaleido)
    with pytest.raises(InputError, match=r"cannot draw growth\.svg \(Image export needs kaleido\); pip install"):
        save_figure(figure, tmp_path / "growth.svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_figure(figure, tmp_path / "file" / "growth.html")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", lambda *_given, **_options: b"<svg/>")
    (tmp_path / "growth.svg").write_text("before")
    with pytest.raises(InputError, match=r"cannot write .*growth\.svg: No space left on device"):
        save_figure(figure, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text() == "before"


def test_notebooks_show_records(floor: FloorPrediction, probes: Probes) -> None:
    for record, says in (
        (student(8, (0.5, 0.3)), "under-trained"),
        (probes, "Left of the teacher"),
        (probes.results[0], "AUROC"),
        (floor, "Loss floor"),
    ):
        html = record._repr_html_()
        assert html.startswith('<div class="scroll"')
        assert says in html
