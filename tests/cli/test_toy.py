"""Tests of `tl-floor toy` in this process, and of the toy experiments."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tl_distill_floor.cli.app import app
from tl_distill_floor.display.toy_views import r2, score_table
from tl_distill_floor.predicting.toy_experiments import (
    ToyConfiguration,
    paper_configurations,
    train_configurations,
)

QUICK = ["--features", "6", "--widths", "1,2", "--seeds", "2", "--steps", "200"]


def test_prints_predicted_and_reached_floors() -> None:
    result = CliRunner().invoke(app, ["toy", *QUICK])
    assert result.exit_code == 0, result.output
    for word in ("6 features", "reached", "standard error", "theorem", "packing law", "independent"):
        assert word in result.stdout


def test_json_is_one_array() -> None:
    (printed,) = json.loads(CliRunner().invoke(app, ["toy", *QUICK, "--teacher-width", "3", "--json"]).stdout)
    assert printed["unit"] == "importance-weighted squared error"
    assert printed["widths"] == [1, 2]
    assert len(printed["to_teacher"]) == 2
    assert set(printed["predicted"]) == {"one per dimension", "theorem", "packing law", "independent"}
    # Importances 1, 1/2, ..., 1/6 of rate 0.1 cost 2.45 · 0.1/3 = 0.08167; without the first, 1.45/30 = 0.04833.
    assert printed["predicted"]["one per dimension"][0] == pytest.approx(0.04833, rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value"), [("--alpha", "1.5"), ("--widths", "0"), ("--widths", "x"), ("--out", "toy.json")]
)
def test_rejects_invalid_options(option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["toy", *QUICK, option, value])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--debug" not in result.stderr  # an error of the user's input needs no traceback


def test_the_papers_configurations_are_48() -> None:
    configurations = paper_configurations(0)
    assert len(set(configurations)) == 48
    assert {c.n_seeds for c in configurations} == {20}
    assert all(max(c.widths) < c.teacher_width for c in configurations)


@pytest.mark.slow
def test_does_not_train_saved_configurations_again(tmp_path: Path) -> None:
    configurations = [ToyConfiguration(4, 0.9, (1, 2, 3), n_seeds=2, steps=50, seed=s) for s in (0, 1)]
    file = tmp_path / "results.json"
    first = train_configurations(configurations, file, None)
    modified = file.stat().st_mtime_ns
    assert train_configurations(configurations, file, None) == first
    assert file.stat().st_mtime_ns == modified
    file.write_text("{")
    with pytest.raises(ValueError, match="is not a file of toy results"):
        train_configurations(configurations, file, None)


def test_scores_cover_every_range_with_widths(capsys: pytest.CaptureFixture[str]) -> None:
    # d* of 40 features at α = 0.9 is 9.2: three widths below 0.8 d* (one of them twice), three near it, three above.
    one = {"n_features": 40, "alpha": 0.9, "widths": [2, 4, 8, 9, 10, 16, 20], "reached": [9, 7, 5, 4, 3, 2, 1.0]}
    two = one | {"widths": [2, 16], "reached": [9, 7]}
    predicted = {"right": one["reached"], "nothing": [0.0] * 7}
    results = [one | {"predicted": predicted}, two | {"predicted": {k: v[:2] for k, v in predicted.items()}}]
    Console(width=120).print(score_table(results))
    shown = capsys.readouterr().out
    for word in ("right", "nothing", "below 0.8 d*", "near d*", "above 1.2 d*", "1.000", "100.0%", "nan"):
        assert word in shown


def test_r2_by_hand() -> None:
    # Squared residuals 0, 0, 1 and squared deviations from the mean 1, 0, 1: R² = 1 − 1/2.
    assert r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(0.5)
