"""Tables, notebook output and JSON of every record."""

import dataclasses
import io
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tests.helpers.learning_curves import diagnosis
from tests.helpers.probes import sparse_probes
from tests.helpers.records import made_head_floor, stats_of
from tl_distill_floor import (
    Calibration,
    FeatureStats,
    FloorPrediction,
    HeadFloor,
    Plan,
    Probes,
    StudentResult,
    floor_from_stats,
    toy,
)
from tl_distill_floor.display.as_json import comparison_json, floor_json
from tl_distill_floor.display.comparison import comparison_table, run_comparison_table
from tl_distill_floor.display.html import to_html
from tl_distill_floor.display.student_views import students_table
from tl_distill_floor.display.views import FIGURES, TABLES, figure_of, table_of
from tl_distill_floor.predicting.lost_features import lost_features, one_feature
from tl_distill_floor.results.record_files import Displayable
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.theory.regression import fit_line

COST = np.array([5.0, 1.0, 9.0, 4.0, 2.0, 8.0, 7.0, 6.0])


@pytest.fixture(scope="module")
def floor() -> FloorPrediction:
    """Return a prediction for eight features."""
    return floor_from_stats(stats_of(COST, rate=0.05), [1, 2])


def student() -> StudentResult:
    """Return a student with a learning curve."""
    curve = ((1000, 2000), (0.5, 0.3))
    return StudentResult("width8", "made", 8, 2, 100, *curve, 0.1, (0.05, 0.2), "under-trained", 10)


def simulation() -> Simulation:
    """Return the simulated floors of two widths with two seeds."""
    floors = np.array([[3.0, 3.2], [1.0, 1.1]])
    return Simulation(
        widths=np.array([1, 2]),
        floor=floors,
        reached=floors * 1.1,
        standard_error=np.array([0.1, 0.05]),
        lost_cost=np.full((2, 8), 0.3),
        on_training_text=floors * 0.9,
        held_out_sequences=9.5,
        steps=20,
    )


def tail_loss() -> TailLoss:
    """Return the tail loss at two ranks, on two sequences."""
    losses = np.array([[30.0, 50.0], [10.0, 20.0]])
    return TailLoss(np.array([0, 4]), np.array([0.5, 0.2]), losses, np.array([40, 60]), np.array([0, 1]))


def head() -> HeadFloor:
    """Return a head floor of three widths, the last of which is the teacher's."""
    return made_head_floor(
        d_model=16,
        widths=(4, 8, 16),
        floor=(1.0, 0.4, 0.0),
        standard_error=(0.1, 0.04, 0.0),
        half_steps=(1.1, 0.41, 0.0),
        encoded=(1.5, 0.6, 0.0),
        steps=20,
    )


def calibration() -> Calibration:
    """Return a calibration with one predictor."""
    losses = (1.0, 0.7, 0.4, 0.25)
    fit = fit_line(np.array([3.0, 2.0, 1.0, 0.5]), np.array(losses))
    return Calibration(
        "made", "", "nats", (1, 2, 4, 8), losses, ("given",) * 4, "simulated", {"simulated": fit}, {"1/width": 0.1}, 0.1
    )


def plan() -> Plan:
    """Return a plan without a calibration."""
    return Plan("made", 8, 2, 2, "nats", 0.3, None, False, 100, 400, 2.5, 8, 6, ("measured",), ("guessed",))


def test_every_record_has_a_table_and_a_figure(floor: FloorPrediction, probes: Probes) -> None:
    records = [
        (floor, "Feature floor"),
        (floor.stats, "8 of them fired"),
        (simulation(), "Bottleneck students"),
        (tail_loss(), "Tail loss"),
        (head(), "A student loses at least what the best logits of its rank lose"),
        (FloorPrediction.from_head(head()), "Least and expected loss of a student"),
        (calibration(), "calibrated"),
        (student(), "under-trained"),
        (diagnosis(), "checked: KL"),
        (plan(), "Train a student of width 8"),
        (probes, "Share of the teacher"),
        (probes.results[0], "AUROC"),
        (probes.features[0], "Decoding 2 features"),
        (sparse_probes(), "k-sparse probes of sae"),
        (lost_features(floor, 1, 3), "alive features"),
        (one_feature(floor, 2, None), "8 alive features by cost"),
        (toy.train(4, 0.9, [1, 2], n_seeds=2, steps=20, n_fresh=100), "floors (weighted MSE)"),
    ]
    assert {type(record).__name__ for record, _ in records} == set(TABLES) == set(FIGURES)
    for record, expected in records:
        assert isinstance(record, Displayable)
        html = record._repr_html_()
        assert expected in html, record
        assert "<table>" in html
        assert "<script" not in html
        figure = record.plot()
        assert isinstance(figure, go.Figure)
        assert len(figure.data) > 0
        assert figure.layout.title.text
        console = Console(width=100, file=io.StringIO())
        console.print(table_of(record))
        assert console.file.getvalue()


def test_rejects_objects_that_are_not_records() -> None:
    with pytest.raises(TypeError, match="a record of type int has no table"):
        table_of(3)
    with pytest.raises(TypeError, match="a record of type int has no figure"):
        figure_of(3)


def test_notebook_shows_the_prediction_as_a_table(floor: FloorPrediction) -> None:
    html = floor._repr_html_()
    assert html.startswith('<div class="scroll"')
    for expected in ("<table>", "<meter", "8 alive features", "0.95000", "6.68 features per dimension", "independent"):
        assert expected in html


def test_one_feature_figure_shows_capacity_and_loss(floor: FloorPrediction) -> None:
    feature = one_feature(floor, 2, None)
    capacity, lost = feature.plot().data
    assert (list(capacity.x), list(capacity.y)) == ([1, 2], [at.capacity for at in feature.at])
    assert list(lost.y) == [at.lost_share for at in feature.at]


def test_tail_loss_figure_shows_measured_losses() -> None:
    measured, summed = tail_loss().plot().data
    assert measured.name == "measured (± standard error)"
    assert (list(measured.x), list(measured.y)) == ([0, 4], [0.8, 0.3])  # 80 / 100 and 30 / 100 nats per token
    assert list(summed.y) == [0.5, 0.2]


def test_floor_json_is_valid_json() -> None:
    one_block = (np.array([1000]), np.full((1, 8), 50), COST[None] * 1000)
    floor = floor_from_stats(stats_of(None, blocks=one_block))
    text = json.dumps(floor_json(floor), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["intervals"]["critical_width"] == [None, None]
    assert loaded["growth"] == {"tokens": [1000], "n_features": [8]}
    assert loaded["simulated"] is None
    assert loaded["feature_floor"] == loaded["independent"]


def test_comparison_json_names_the_largest_floor(floor: FloorPrediction) -> None:
    larger = floor_from_stats(stats_of(2 * COST, rate=0.05), [1, 2])
    loaded = json.loads(json.dumps(comparison_json([floor, larger]), allow_nan=False))
    assert loaded["largest"] == [1, 1]
    curves = [each["feature_floor"] for each in loaded["predictions"]]
    assert curves == [floor.feature_floor.tolist(), larger.feature_floor.tolist()]


def conclusion(costs: list[np.ndarray], hooks: list[str], unit: str = "nats") -> str:
    """Return the sentences below the comparison of predictions for one width."""
    floors = [
        floor_from_stats(stats_of(cost, rate=0.05, cost_unit=unit, hook_name=hook), [1])
        for cost, hook in zip(costs, hooks, strict=True)
    ]
    console = Console(width=1000, file=io.StringIO())
    console.print(comparison_table(floors))
    return console.file.getvalue()


def test_comparison_says_what_the_differences_are_due_to() -> None:
    costs = [COST, 2 * COST, 3 * COST]
    assert "floors differ by a factor of up to 3. The order of the SAEs by floor is the same" in conclusion(
        costs, ["blocks.1.hook_out"] * 3
    )
    names_of_one_point = ["blocks.1.hook_out", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    assert "These differences are due to the SAEs" in conclusion(costs, names_of_one_point)
    layers = ["blocks.0.hook_out", "blocks.1.hook_out", "blocks.2.hook_out"]
    assert "A student loses at least the largest floor of the layers" in conclusion(costs, layers)
    assert "Squared errors at different layers cannot be compared" in conclusion(costs, layers, "mse")
    mixed = conclusion(costs, [layers[0], layers[0], layers[1]])
    assert "due to the SAEs and to their hook points; compare one SAE of each" in mixed
    assert "is the same at every width" not in mixed


def test_comparison_of_runs_marks_widths_that_a_run_did_not_predict(floor: FloorPrediction) -> None:
    other = floor_from_stats(stats_of(COST, rate=0.05), [2, 4])
    *_, table, note = run_comparison_table([floor, other], ["a", "b"]).renderables
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["1", "2", "4"]
    assert [cell.startswith("~") for cell in cells[1]] == [False, False, True]
    assert [cell.startswith("~") for cell in cells[2]] == [True, False, False]
    assert cells[2][0] == f"~{other.floor_at(1):.4g}"
    assert "extrapolated" in str(note)
    assert len(run_comparison_table([floor, floor], ["a", "b"]).renderables) == 2


def test_tables_and_text_become_html() -> None:
    table = Table(title="<i>")
    table.add_column("a & b")
    table.add_column("", justify="right")
    table.add_row("<b>", Text("\x1b[0m"))
    html = to_html(Group(table, Text("! be <careful>"), Text(), "plain"))
    assert "<caption>&lt;i&gt;</caption>" in html
    assert '<th scope="col">a &amp; b</th><td class="number"></td>' in html
    assert '<th scope="row">&lt;b&gt;</th><td class="number">�[0m</td>' in html
    assert '<p class="warning">! be &lt;careful&gt;</p>' in html
    assert html.endswith("<p>plain</p>")
    with pytest.raises(TypeError, match="Panel cannot be converted to HTML"):
        to_html(Panel("a"))


def test_names_are_not_read_as_markup(floor: FloorPrediction) -> None:
    stats: FeatureStats = dataclasses.replace(floor.stats, model_name="a[/b]", sae_name="c[bold]")
    console = Console(width=100, file=io.StringIO())
    for record in (stats, floor_from_stats(stats, [1, 2]), dataclasses.replace(plan(), teacher="a[/b]")):
        console.print(table_of(record))
    printed = console.file.getvalue()
    assert printed.count("a[/b]") == 4  # the plan names its teacher twice
    assert printed.count("c[bold]") == 2


def test_students_of_several_teachers_are_told_apart() -> None:
    table = students_table([student(), dataclasses.replace(student(), teacher="another", heldout_tokens=30)])
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("Students of made, another: KL(teacher ‖ student), nats/token, on 10 or 30 held-out")
    assert [line.split()[:2] for line in lines if line.startswith("width8")] == [
        ["width8", "made"],
        ["width8", "another"],
    ]
