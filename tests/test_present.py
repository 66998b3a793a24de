"""What a person or a program is shown: the table, the notebook, the figure, the JSON."""

import json

import numpy as np

from tests.making import stats_of
from tl_distill_floor import floor_from_stats
from tl_distill_floor.present.machine import floor_json

COST = np.array([5.0, 1.0, 9.0, 4.0, 2.0, 8.0, 7.0, 6.0])


def test_a_notebook_shows_the_table() -> None:
    html = floor_from_stats(stats_of(COST, rate=0.05), [1, 2])._repr_html_()
    for shown in ("<pre>", "8 alive features", "0.95000", "6.68 features per dimension", "independent"):
        assert shown in html
    assert "<script" not in html


def test_the_figure_shows_floor_interval_and_critical_width() -> None:
    floor = floor_from_stats(stats_of(COST, rate=0.05), [1, 2])
    figure = floor.plot()
    assert [trace.name for trace in figure.data] == ["95 % interval", "theorem", "independent"]
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
