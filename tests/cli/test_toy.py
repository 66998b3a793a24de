"""`tl-floor toy`, in process."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tl_distill_floor.cli import toy
from tl_distill_floor.cli.app import app

QUICK = ["--features", "6", "--widths", "1,2", "--seeds", "2", "--steps", "200"]


def test_prints_predicted_against_reached() -> None:
    result = CliRunner().invoke(app, ["toy", *QUICK])
    assert result.exit_code == 0, result.output
    for word in ("6 features", "reached", "theorem", "packing law", "independent"):
        assert word in result.stdout


def test_json_is_one_array() -> None:
    (found,) = json.loads(CliRunner().invoke(app, ["toy", *QUICK, "--teacher-width", "3", "--json"]).stdout)
    assert found["widths"] == [1, 2]
    assert len(found["to_teacher"]) == 2
    assert set(found["predicted"]) == {"one per dimension", "theorem", "packing law", "independent"}
    # Importances 1, 1/2, ..., 1/6 of rate 0.1 cost 2.45 · 0.1/3 = 0.08167; without the first, 1.45/30 = 0.04833.
    assert found["predicted"]["one per dimension"][0] == pytest.approx(0.04833, rel=1e-3)


@pytest.mark.parametrize(("option", "value"), [("--alpha", "1.5"), ("--widths", "0"), ("--widths", "x")])
def test_refuses(option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["toy", *QUICK, option, value])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_the_papers_configurations_are_48() -> None:
    configurations = toy.paper_configurations(0)
    assert len(set(configurations)) == 48
    assert {c.n_seeds for c in configurations} == {20}
    assert all(max(c.widths) < c.teacher_width for c in configurations)


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    small = [toy.Configuration(4, 0.9, (1, 2, 3), n_seeds=2, steps=50, seed=s) for s in (0, 1)]
    file = tmp_path / "results.json"
    first = toy.run_all(small, file, None)
    before = file.stat().st_mtime_ns
    assert toy.run_all(small, file, None) == first
    assert file.stat().st_mtime_ns == before
    file.write_text("{")
    with pytest.raises(ValueError, match="holds no toy results"):
        toy.run_all(small, file, None)


def test_scores_are_shown_for_every_range_that_has_widths(capsys: pytest.CaptureFixture[str]) -> None:
    # d* of 40 features at α = 0.9 is 9.2: three widths below 0.8 d* (one of them twice), three near it, three above.
    one = {"n_features": 40, "alpha": 0.9, "widths": [2, 4, 8, 9, 10, 16, 20], "reached": [9, 7, 5, 4, 3, 2, 1.0]}
    two = one | {"widths": [2, 16], "reached": [9, 7]}
    predicted = {"right": one["reached"], "nothing": [0.0] * 7}
    results = [one | {"predicted": predicted}, two | {"predicted": {k: v[:2] for k, v in predicted.items()}}]
    Console(width=120).print(toy.score_view(results))
    shown = capsys.readouterr().out
    for word in ("right", "nothing", "below 0.8 d*", "near d*", "above 1.2 d*", "1.000", "100.0%", "nan"):
        assert word in shown


def test_scores_by_hand() -> None:
    # Residuals 0, 0, 1 around a spread of 1, 0, 1 about the mean of 2: R² = 1 − 1/2.
    assert toy.r2(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(0.5)
