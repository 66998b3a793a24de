"""Test `tl-floor plan` in this process: budgets, exports and pilots, on a tiny random teacher."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.cli import refused, run
from tests.helpers.models import WIDTH
from tests.helpers.records import narrow_head_floor, stats_of
from tl_distill_floor import FloorPrediction, floor_from_stats
from tl_distill_floor.results.head_floor import HeadFloor


@pytest.fixture(scope="module")
def head(teacher_dir: Path) -> HeadFloor:
    """Return a head floor of the random teacher."""
    return narrow_head_floor(model_name=str(teacher_dir), d_model=WIDTH)


@pytest.fixture
def planned_run(head: HeadFloor, tmp_path: Path) -> Path:
    """Save a prediction in nats with a head floor, from synthetic features."""
    stats = stats_of(
        1.0 / np.arange(1, 65), d_model=WIDTH, model_name=head.model_name, sampled_sum=np.zeros(WIDTH), cost_unit="nats"
    )
    dataclasses.replace(floor_from_stats(stats, widths=[2, 4, 8, 16]), head=head).save(tmp_path / "run")
    return tmp_path / "run"


def test_limits_are_combined_and_shown(planned_run: Path) -> None:
    memory = ("--max-memory", "40kB", "--memory-dtype", "fp32", "--context", 20)
    options = ("--max-params", 12_000, *memory, "--divisor", 8)
    plan = json.loads(run("plan", planned_run, *options, "--json").stdout)
    limits = {"max_params": 12_000, "max_memory": 40_000, "divisor": 8}
    assert {name: limit for name, limit in plan["limits"].items() if limit is not None} == limits
    assert (plan["rule"], plan["memory_dtype"], plan["context"]) == ("widest", "fp32", 20)
    assert [candidate["width"] % 8 for candidate in plan["candidates"]] == [0] * len(plan["candidates"])
    chosen = plan["candidates"][-1]
    assert (chosen["width"], chosen["n_parameters"]) == (plan["width"], plan["n_parameters"])
    assert chosen["weight_bytes"] == 4 * chosen["n_parameters"]
    assert chosen["cache_bytes"] == 3 * 2 * 20 * chosen["width"] * 4  # layers, keys and values, tokens, bytes
    assert chosen["weight_bytes"] + chosen["cache_bytes"] <= 40_000
    losses = [candidate["loss"] for candidate in plan["candidates"]]
    assert losses == sorted(losses, reverse=True)


def test_shows_the_plan_as_a_table_and_exports_its_configuration(planned_run: Path, tmp_path: Path) -> None:
    options = ("--max-width", 4, "--depth", 2, "--max-memory", "1MB", "--export", tmp_path / "config")
    shown = " ".join(run("plan", planned_run, *options).stdout.split())
    for text in (
        "Train a student of width 4",
        "the widest student within --max-width 4, --max-memory 1.00 MB",
        "2 layers, whose effect on the loss is not predicted",
        "A distillation loss alone does not predict task scores",
        "--widths 4 --depth 2",
        f"Saved in {tmp_path / 'config'}: the configuration",
    ):
        assert text in shown
    config = AutoConfig.from_pretrained(tmp_path / "config")
    assert (config.hidden_size, config.num_hidden_layers) == (4, 2)
    assert not (tmp_path / "config" / "model.safetensors").exists()


def test_exports_the_planned_student(planned_run: Path, tmp_path: Path) -> None:
    result = run("plan", planned_run, "--max-width", 4, "--export", tmp_path / "student", "--init", "svd", "--json")
    plan = json.loads(result.stdout)
    assert plan["export"] == str(tmp_path / "student")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert sum(weight.numel() for weight in model.parameters()) == plan["n_parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-width", 8, "--max-memory", "2"), "a memory size is a number above 0 with a unit, got '2'; try 2GB"),
        (("--max-width", 16, "--pilots", "--train"), "was measured on made, of which only the name is known; name a"),
        (("--max-width", 8, "--context", 100), "the teacher's context has 1 to 64 tokens, got 100; set --context"),
        (("--max-width", 8, "--export", "."), "exists already; name another directory"),
        (("--max-memory", "1kB"), "width 4, the narrowest with a predicted loss, takes 8.92 kB"),
        (("--max-width", 8, "--divisor", 48), "a width that is a multiple of 48; set a smaller --divisor"),
        (("--pilots",), "a plan needs a limit; set at least one of --max-loss"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    planned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(run("plan", planned_run, *options))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_pilots_whose_losses_rise_with_the_width_predict_nothing(planned_run: Path, prose_file: Path) -> None:
    """After so few tokens the students of this teacher lose more, the wider they are."""
    result = run("plan", planned_run, "--max-width", 16, "--pilots", "--train", "--tokens", 2048, "--text", prose_file)
    shown = " ".join(result.stdout.split())
    assert "so nothing is predicted from them; train the wider students longer" in shown
    assert "which narrow the interval" not in shown
    floor = FloorPrediction.load(planned_run)
    assert floor.student_losses == {}
    assert floor.expected_at(16) == dataclasses.replace(floor, calibration=None).expected_at(16)


@pytest.mark.slow
@pytest.mark.parametrize("has_features", [True, False])
def test_trains_pilots_once_and_narrows_the_interval(
    planned_run: Path, head: HeadFloor, prose_file: Path, tmp_path: Path, has_features: bool
) -> None:
    directory = planned_run
    if not has_features:
        directory = tmp_path / "head"
        head.save(directory)
    options = ("--max-width", 16, "--pilots", "--train", "--tokens", 20_000, "--text", prose_file)
    result = run("plan", directory, *options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "Pilots: trained, and the run is calibrated with them" in shown
    assert "not saturated" in shown
    assert "Train a student of width 16" in shown
    students = sorted((directory / "students").glob("width*/model.safetensors"))
    assert len(students) == 3
    written = [file.stat().st_mtime_ns for file in students]
    again = json.loads(run("plan", directory, *options, "--json").stdout)
    assert [file.stat().st_mtime_ns for file in students] == written
    assert sorted((directory / "students").glob("width*/model.safetensors")) == students
    assert (again["trained"], again["calibrated"]) == (True, True)
    assert {f"width{width}" for width in again["pilots"]["widths"]} == {file.parent.name for file in students}
    floor = FloorPrediction.load(directory)
    value, low, high = floor.expected_at(16, 0.8)
    before = again["pilots"]["before"]
    assert high / low < before[2] / before[1]
    assert again["loss"] == pytest.approx(value)
