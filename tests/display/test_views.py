"""What a person or a program is shown: the table, the notebook, the figure, the JSON."""

import json

import numpy as np
import pytest

from tests.helpers.records import stats_of
from tl_distill_floor import floor_from_stats
from tl_distill_floor.display.as_json import floor_json
from tl_distill_floor.display.figures import capacity_figure, predicted_against_reached_figure, toy_floor_figure

COST = np.array([5.0, 1.0, 9.0, 4.0, 2.0, 8.0, 7.0, 6.0])


def test_a_notebook_shows_the_table() -> None:
    html = floor_from_stats(stats_of(COST, rate=0.05), [1, 2])._repr_html_()
    for shown in ("<table>", "<meter", "8 alive features", "0.95000", "6.68 features per dimension", "independent"):
        assert shown in html
    assert "<script" not in html


def test_the_figure_shows_floor_interval_and_critical_width() -> None:
    floor = floor_from_stats(stats_of(COST, rate=0.05), [1, 2])
    figure = floor.plot()
    assert [trace.name for trace in figure.data] == ["95 % interval", "theorem", "independent (expected)"]
    assert list(figure.data[1].y) == floor.theorem.tolist()
    assert "d* = 1" in figure.layout.annotations[0].text
    assert figure.layout.yaxis.title.text.startswith("squared error per token")


def test_json_holds_only_json() -> None:
    one_block = (np.array([1000]), np.full((1, 8), 50), COST[None] * 1000)
    text = json.dumps(floor_json(floor_from_stats(stats_of(None, blocks=one_block))), allow_nan=False)
    found = json.loads(text)
    assert found["intervals"]["critical_width"] == [None, None]
    assert found["growth"] == {"tokens": [1000], "n_features": [8]}
    assert found["simulated"] is None
    assert found["expected"] == found["independent"]


def test_figures_of_toy_models_show_what_was_reached_beside_every_prediction() -> None:
    result = {
        "n_features": 4, "alpha": 0.9, "widths": [1, 2], "reached": [0.4, 0.1], "standard_error": [0.01, 0.02],
        "predicted": {"theorem": [0.3, 0.0], "independent": [0.41, 0.11]}, "teacher_width": 3,
    }  # fmt: skip
    against_width = toy_floor_figure(result)
    assert [trace.name for trace in against_width.data] == ["theorem", "independent", "reached"]
    assert "distilled from width 3" in against_width.layout.title.text
    assert against_width.data[-1].error_y.array == pytest.approx([0.0196, 0.0392])
    scatter = predicted_against_reached_figure([result, result])
    assert list(scatter.data[0].y) == [0.3, 0.3]  # a logarithm has no place for the zeros
    assert list(scatter.data[1].x) == [0.4, 0.1, 0.4, 0.1]


def test_the_capacity_figure_has_two_axes() -> None:
    figure = capacity_figure([0.9, 0.99], [4.34, 21.7], [9.2, 1.84], 40)
    assert [trace.yaxis for trace in figure.data] == [None, "y2"]
    assert list(figure.data[1].y) == [9.2, 1.84]
