"""Figures of predictions, students and probes: what they contain, and that they can be saved."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.helpers.records import made_head_floor, stats_of
from tl_distill_floor import Calibration, FloorPrediction, Probes, StudentResult, floor_from_stats, save_figure
from tl_distill_floor.display.figure_style import error_bars, log_spaced_ranks
from tl_distill_floor.display.figures import (
    capacities_figure,
    compared_floors_figure,
    costs_figure,
    critical_widths_figure,
    growth_figure,
)
from tl_distill_floor.display.probe_views import decodability_figure, retention_figure
from tl_distill_floor.display.student_views import calibration_figure, learning_figure
from tl_distill_floor.display.toy_views import toy_floor_figure
from tl_distill_floor.errors import InputError
from tl_distill_floor.theory.regression import fit_line

COST = np.arange(1, 41.0) ** -1.5


@pytest.fixture(scope="module")
def floor() -> FloorPrediction:
    """Return a prediction for 40 features whose costs follow a power law."""
    return floor_from_stats(stats_of(COST, rate=0.02), [1, 2, 4])


def student(width: int, losses: tuple[float, ...]) -> StudentResult:
    """Return a student with a learning curve, or one that diverged at once if there are no losses."""
    tokens = tuple(1000 * (i + 1) for i in range(len(losses)))
    status = "under-trained" if losses else "diverged"
    return StudentResult(f"width{width}", "made", width, 2, 100, tokens, losses, 0.1, (0.05, 0.2), status, 10)


def test_floor_figure_shows_interval_and_critical_width(floor: FloorPrediction) -> None:
    figure = floor.plot()
    assert [trace.name for trace in figure.data] == ["sampling (95 %)", "theorem", "independent (feature floor)"]
    assert list(figure.data[1].y) == floor.theorem.tolist()
    assert f"d* = {floor.critical_width:.0f}" in figure.layout.annotations[0].text
    assert figure.layout.yaxis.title.text.startswith("squared error per token")


def test_the_logarithmic_axis_shows_students_that_lose_more_than_predicted() -> None:
    floor = floor_from_stats(stats_of(COST / 10, rate=0.02, cost_unit="nats"), [1, 2, 4])
    losses = (1.0, 0.7, 0.4)
    fit = fit_line(floor.independent, np.array(losses))
    calibration = Calibration(
        "made",
        "",
        "nats",
        (1, 2, 4),
        losses,
        ("given",) * 3,
        "independent",
        {"independent": fit},
        {"1/width": 0.1},
        0.1,
    )
    figure = dataclasses.replace(floor, calibration=calibration).plot()
    assert floor.independent.max() < 0.3
    assert 10 ** figure.layout.yaxis.range[1] > max(losses)


def test_error_bars_end_at_the_value_if_the_interval_does_not_hold_it() -> None:
    bars = error_bars(np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.5, np.nan]), np.array([4.0, 3.0, 1.5]))
    assert bars == {"array": [2.0, 1.0, 0.0], "arrayminus": [1.0, 0.0, 0.0]}


def test_costs_figure_shows_the_power_law(floor: FloorPrediction) -> None:
    figure = costs_figure(floor)
    measured, law = figure.data
    assert list(measured.y) == pytest.approx(sorted(COST, reverse=True))
    assert list(measured.x) == list(range(1, 41))
    assert law.name == "rank^-1.5"
    # These costs follow the law exactly.
    np.testing.assert_allclose(law.y, measured.y, rtol=1e-6)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_costs_figure_marks_the_cliff() -> None:
    bent = np.concatenate([np.arange(1, 61.0) ** -1.0, 1 / 60 * (np.arange(61, 101.0) / 60) ** -20])
    figure = costs_figure(floor_from_stats(stats_of(bent, rate=0.02), [1, 2]))
    assert [trace.name for trace in figure.data[1:]] == ["rank^-1", "rank^-20.3"]
    assert "cliff at 6" in figure.layout.annotations[0].text
    assert figure.layout.annotations[0].x == pytest.approx(np.log10(60), abs=0.05)


def test_capacities_sum_to_the_width(floor: FloorPrediction) -> None:
    figure = capacities_figure(floor)
    assert [trace.name for trace in figure.data] == ["width 1", "width 2", "width 4"]
    for trace, width in zip(figure.data, (1, 2, 4), strict=True):
        # Each point is a mean over a bin of ranks; the sum of mean times count is the width.
        assert len(trace.x) <= 60
        starts = log_spaced_ranks(40, 60) - 1
        counts = np.diff(np.append(starts, 40))
        assert float(np.array(trace.y) @ counts) == pytest.approx(width, rel=1e-3)


def test_growth_critical_widths_and_comparison(floor: FloorPrediction) -> None:
    tokens, alive = floor.stats.growth()
    (growth,) = growth_figure(floor).data
    assert (list(growth.x), list(growth.y)) == (tokens.tolist(), alive.tolist())
    other = floor_from_stats(stats_of(COST[:20], rate=0.02), [2, 8])
    (widths,) = critical_widths_figure([floor, other], ["a", "b"]).data
    assert (list(widths.x), list(widths.y)) == (["a", "b"], [floor.critical_width, other.critical_width])
    compared = compared_floors_figure([floor, other], ["a", "b"])
    assert compared.layout.title.text == "Feature floors (bars: sampling, 95 %)"
    traces = compared.data
    assert [list(trace.x) for trace in traces] == [[1, 2, 4], [2, 8]]
    assert list(traces[1].y) == other.feature_floor.tolist()
    low, high = floor.sampling_interval.T
    np.testing.assert_allclose(traces[0].error_y.array, high - floor.feature_floor)
    np.testing.assert_allclose(traces[0].error_y.arrayminus, floor.feature_floor - low)


def test_a_floor_that_is_not_known_is_not_drawn() -> None:
    not_known = dataclasses.replace(student(8, (0.5, 0.3)), floor=0.3, interval=(0.0, 0.3))
    (curve,) = learning_figure([not_known]).data
    assert list(curve.y) == [0.5, 0.3]


def test_a_bound_of_0_is_not_on_the_logarithmic_axis() -> None:
    floor = floor_from_stats(stats_of(COST / 10, rate=0.02, d_model=8, cost_unit="nats"), [2, 4, 8])
    losses = dict.fromkeys(("floor", "standard_error", "half_steps", "encoded"), (0.8, 0.4, 0.0))
    floor = dataclasses.replace(floor, head=made_head_floor(d_model=8, widths=(2, 4, 8), **losses))
    curve = next(trace for trace in floor.plot().data if trace.name == "bound (head floor)")
    assert (list(curve.x), list(curve.y)) == ([2, 4], [0.8, 0.4])


def test_student_figures_show_curves_and_linear_fits() -> None:
    figure = learning_figure([student(8, (0.5, 0.3)), student(4, ())])
    curve, limit = figure.data  # the student that diverged at once has no curve
    assert (list(curve.x), list(curve.y), list(limit.y)) == ([1000, 2000], [0.5, 0.3], [0.1, 0.1])
    x, loss = np.array([3.0, 2.0, 1.0, 0.5]), np.array([1.0, 0.7, 0.4, 0.25])
    fit = fit_line(x, loss)
    calibration = Calibration(
        "made", "", "nats", (1, 2, 4, 8), tuple(loss), ("given",) * 4, "simulated", {"simulated": fit},
        {"1/width": 0.1}, 0.1,
    )  # fmt: skip
    points, line = calibration_figure(calibration).data
    assert points.name == "simulated (best)"
    assert (list(points.x), list(points.y)) == (x.tolist(), loss.tolist())
    # 0.3 · x + 0.1 fits all four exactly.
    assert list(line.y) == pytest.approx([0.25, 0.4, 0.7, 1.0])
    assert "C = 0.3, B = 0.1, R² = 1.0000" in line.name


def test_probe_figures_show_retention_and_decodability(probes: Probes) -> None:
    figure = retention_figure(probes)
    students, kept = figure.data
    assert (list(students.x), list(students.y)) == ([8], [50.0])  # (0.7 - 0.5) / (0.9 - 0.5)
    assert (list(kept.x), list(kept.y)) == ([4, 8], [25.0, 65.0])
    assert "solid: student, dot: features kept" in figure.layout.title.text
    boxes = decodability_figure(probes.features).data
    assert [(box.name, list(box.x), list(box.median)) for box in boxes] == [
        ("kept", ["width8"], [0.9]),
        ("lost", ["width8"], [0.6]),
    ]


def test_toy_figure_shows_reached_and_predicted_floors() -> None:
    result = {
        "n_features": 4, "alpha": 0.9, "widths": [1, 2], "reached": [0.4, 0.1], "standard_error": [0.01, 0.02],
        "predicted": {"theorem": [0.3, 0.0], "independent": [0.41, 0.11]}, "teacher_width": 3,
    }  # fmt: skip
    against_width = toy_floor_figure(result)
    assert [trace.name for trace in against_width.data] == ["theorem", "independent", "reached"]
    assert "distilled from width 3" in against_width.layout.title.text
    assert list(against_width.data[-1].error_y.array) == [0.01, 0.02]


def test_save_figure_writes_the_file_or_names_what_is_missing(
    floor: FloorPrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = growth_figure(floor)
    assert "plotly" in save_figure(figure, tmp_path / "new" / "growth.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"saved as \.svg, \.png, \.pdf, \.html, got growth\.gif"):
        save_figure(figure, tmp_path / "growth.gif")

    def fail_without_kaleido(*_args: Any, **_options: Any) -> None:
        raise ValueError("Image export needs kaleido,\nand more")

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", fail_without_kaleido)
    with pytest.raises(InputError, match=r"cannot draw growth\.svg \(Image export needs kaleido\); pip install"):
        save_figure(figure, tmp_path / "growth.svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_figure(figure, tmp_path / "file" / "growth.html")


def test_saved_images_have_no_buttons(floor: FloorPrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(figure: go.Figure, *_args: Any, **_options: Any) -> bytes:
        return str(len(figure.layout.updatemenus)).encode()

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", draw)
    figure = floor.plot()
    assert save_figure(figure, tmp_path / "floor.svg").read_text() == "0"
    assert len(figure.layout.updatemenus) == 1


def test_save_figure_keeps_the_old_file_if_the_disk_is_full(
    floor: FloorPrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_with_full_disk(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", lambda *_args, **_options: b"<svg/>")
    (tmp_path / "growth.svg").write_text("before")
    with pytest.raises(InputError, match=r"cannot write .*growth\.svg: No space left on device"):
        save_figure(growth_figure(floor), tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text() == "before"
