"""Test `tl-floor distill`, `calibrate` and `plan` in this process, on a tiny random teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import refused, run
from tests.helpers.records import QUICK
from tl_distill_floor import FloorPrediction, load_teacher, plan
from tl_distill_floor.distilling.planning.plan import expected_loss
from tl_distill_floor.distilling.students.build import count_parameters
from tl_distill_floor.distilling.training.distill import distill
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import load_students
from tl_distill_floor.storage.locks import lock_directory


def test_calibrates_and_plans_after_distilling(distilled: Path) -> None:
    result = run("calibrate", distilled)
    assert result.exit_code == 0, result.output
    for word in (
        "simulated",
        "independent",
        "theorem",
        "R²",
        "null, 1/width",
        "not saturated",
        "KL(teacher ‖ student)",
    ):
        assert word in " ".join(result.stdout.split())  # a long path moves the line breaks
    calibrated = json.loads(run("calibrate", distilled, "--json").stdout)
    assert calibrated["widths"] == [8, 16, 24]
    assert set(calibrated["predictors"]) == {"theorem", "independent", "simulated", "head"}

    floor = FloorPrediction.load(distilled)
    max_loss = expected_loss(floor, 16).high
    chosen = json.loads(run("plan", distilled, "--max-loss", max_loss, "--json").stdout)
    assert chosen["calibrated"] is True
    assert chosen["upper_bound"] <= max_loss
    teacher = load_teacher(str(floor.stats.model_name)).model
    assert chosen["n_parameters"] == count_parameters(teacher, chosen["width"])
    assert chosen["megabytes"] == pytest.approx(chosen["n_parameters"] * 2e-6)
    planned = run("plan", distilled, "--max-width", 16)
    assert planned.exit_code == 0, planned.output
    for word in ("Train a student of width 16", "90 % confidence", "parameters", "assumed", "tl-floor distill"):
        assert word in planned.stdout


def test_json_is_one_array_and_progress_is_log_lines_if_stderr_is_a_file(
    measured: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher, text = measured
    command = ("distill", teacher, "--text", text, "--widths", "8", *QUICK, "--out")
    result = run(*command, tmp_path, "--json")
    assert result.stderr == ""
    (student,) = json.loads(result.stdout)
    assert (student["width"], student["teacher"], len(student["tokens"])) == (8, str(teacher), len(student["losses"]))
    assert (tmp_path / "students" / "width8" / "config.json").exists()
    monkeypatch.setattr("tl_distill_floor.cli.progress.SECONDS_PER_LINE", 0.0)
    first = run(*command, tmp_path / "again").stderr.splitlines()[0]
    assert first.startswith("distilling: 256 of 2,048 tokens, ")
    assert "tokens/s" in first
    assert load_students(tmp_path / "again")[0].losses == tuple(student["losses"])


@pytest.mark.parametrize("match", ["kept", "activation"])
def test_matches_hook_points(measured: tuple[Path, Path, Path], sae_dir: Path, tmp_path: Path, match: str) -> None:
    directory, teacher, text = measured
    for file in directory.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sae = ("--sae", sae_dir) if match == "kept" else ()
    options = ("--text", text, "--widths", "16", "--out", tmp_path, "--match", match, *sae, "--json")
    result = run("distill", teacher, *options, *QUICK)
    assert result.exit_code == 0, result.output
    (student,) = json.loads(result.stdout)
    assert student["settings"]["match"]["teacher_hook"] == "blocks.1.hook_resid_post"
    assert student["settings"]["match"]["layer"] == 1
    assert student["settings"]["kept_part"] is (match == "kept")


def test_matches_with_an_sae_whose_file_is_explained(
    measured: tuple[Path, Path, Path], sae_dir: Path, tmp_path: Path
) -> None:
    directory, teacher, text = measured
    for file in directory.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loose = tmp_path / "loose" / "sae.safetensors"
    loose.parent.mkdir()
    shutil.copy(sae_dir / "sae_weights.safetensors", loose)
    keys = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")} | {"activation": "relu"}
    sae_format = json.dumps(keys | {"subtract_b_dec": True})
    options = ("--text", text, "--widths", "8", "--out", tmp_path, "--match", "kept", "--sae", loose, *QUICK)
    assert "is a bare state dict" in refused(run("distill", teacher, *options))
    result = run("distill", teacher, *options, "--sae-format", sae_format, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["settings"]["kept_part"] is True
    assert "name it with --sae" in refused(run("distill", teacher, "--match", "kept", "--sae-format", sae_format))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--widths", "25"), "a student's width must be from 1 to its teacher's 24, got 25"),
        (("--widths", "7"), "no head size near the teacher's 8 fits a student of width 7; try width 8"),
        (
            ("--widths", "8", "--batch-size", "1000"),
            "a batch of 1000; set --tokens 32000 or more, or a smaller --batch-size",
        ),
        (("--widths", "8", "--match", "kept"), "make one with tl-floor measure --out"),
        (("--widths", "8", "--match", "activation", "--match-layer", "5"), "layers 0 to 2, got layer 5"),
        (("--widths", "8", "--lr", "0"), "the learning rate and clip must be above 0"),
        (("--widths", "8", "--heldout", "missing.txt"), "no text file at missing.txt"),
        (("--widths", "8", "--depth", "9"), "a student's depth must be from 1 to its teacher's 3 layers, got 9"),
        (("--widths", "8", "--temperature", "-1"), "the temperature must be above 0"),
    ],
)
def test_distill_rejects_bad_input(
    measured: tuple[Path, Path, Path], tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    _, teacher, text = measured
    assert message in refused(run("distill", teacher, "--text", text, "--out", tmp_path / "run", *QUICK, *options))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_calibrate_and_plan_reject_bad_input(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    directory, *_ = measured
    for file in directory.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "calibration.json").unlink(missing_ok=True)
    assert "holds no students; distil some with tl-floor distill --out" in refused(run("calibrate", tmp_path))
    assert "make one with tl-floor measure" in refused(run("calibrate", tmp_path / "nowhere"))
    assert "one of --max-loss, --max-width, --max-params" in refused(run("plan", tmp_path))
    assert "the loss must be above 0" in refused(run("plan", tmp_path, "--max-loss", "-1"))
    assert "stays below 1e-09 with 90 % confidence" in refused(run("plan", tmp_path, "--max-loss", "1e-9"))
    assert "as small as that" in refused(run("plan", tmp_path, "--max-params", "10"))


def test_a_plan_without_calibration_says_so(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    directory, teacher, _ = measured
    for file in directory.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "calibration.json").unlink(missing_ok=True)
    floor, model = FloorPrediction.load(tmp_path), load_teacher(str(teacher)).model
    chosen = plan(floor, model, max_params=count_parameters(model, 16), depth=2)
    assert (chosen.calibrated, chosen.depth, chosen.unit) == (False, 2, "nats")
    assert chosen.loss == pytest.approx(floor.expected_at(chosen.width).value)
    assert any("45 trained students of 9 teachers" in sentence for sentence in chosen.known)
    assert any("fewer layers" in sentence for sentence in chosen.assumed)
    # The 90 % upper bounds of all narrower students of the family are above the loss that was asked for.
    max_loss = expected_loss(floor, 12).high
    narrowest = plan(floor, model, max_loss=max_loss)
    assert narrowest.upper_bound is not None
    assert narrowest.upper_bound <= max_loss
    bounds = {w: expected_loss(floor, w).high for w in range(8, narrowest.width) if w % 4 == 0}
    assert all(bound > max_loss for width, bound in bounds.items() if width != narrowest.width)
    # A narrower student keeps no more features.
    narrow = plan(floor, model, max_width=8)
    assert narrow.kept <= chosen.kept
    with pytest.raises(InputError, match="a student's depth must be from 1 to its teacher's 3 layers"):
        plan(floor, model, max_width=8, depth=7)


def test_a_directory_is_used_by_one_command_at_a_time(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    directory, teacher, text = measured
    for file in directory.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = sorted(tmp_path.iterdir())
    message = f"another command is at work in {tmp_path}; wait until it ends, or "
    with lock_directory(tmp_path):
        assert message in refused(run("measure", teacher, "--sae", "missing", "--text", text, "--out", tmp_path))
        assert message in refused(run("distill", teacher, "--text", text, "--widths", "8", "--out", tmp_path, *QUICK))
        for command in ("probe", "calibrate", "report"):
            assert message in refused(run(command, tmp_path))
        assert message in refused(run("toy", "--paper", "--out", tmp_path / "toy.json"))
    sae, students = tmp_path / "sae", tmp_path / "students"
    with lock_directory(tmp_path / ".sae.tl-floor"):  # the lock of a training
        message = f"another command is at work in {sae}; wait until it ends"
        assert message in refused(run("train-sae", teacher, "--layer", 1, "--text", text, "--out", sae))
    with lock_directory(students), pytest.raises(InputError, match=r"another command is at work in .*students; wait"):
        distill(str(teacher), 8, out=tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    with lock_directory(tmp_path):
        pass
