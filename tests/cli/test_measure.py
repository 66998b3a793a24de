"""Test `tl-floor measure`, `saes` and `train-sae` in this process, on a tiny random teacher."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.child_process import run_in_fork
from tests.helpers.cli import refused, run
from tests.helpers.measurements import save_cache
from tl_distill_floor import FeatureStats, FloorPrediction, HeadFloor, InputError
from tl_distill_floor.cli.measure import DEFAULT_TOKENS, SECONDS, _stages
from tl_distill_floor.display.as_json import floor_json
from tl_distill_floor.display.floor_tables import widths_table
from tl_distill_floor.distilling.planning.plan import expected_loss
from tl_distill_floor.measuring import measurement
from tl_distill_floor.measuring.config import MeasureConfig
from tl_distill_floor.predicting.config import PredictConfig

Command = list[str]


@pytest.fixture
def command(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Return a `measure` command that takes seconds; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    quick = ("--batch-size", 8, "--tokens", 2048, "--steps", 20)
    return [str(arg) for arg in ("measure", teacher_dir, "--sae", sae_dir, "--text", prose_file, *quick)]


def test_measure_prints_a_table_and_saves_the_run(command: Command, tmp_path: Path) -> None:
    result = run(*command, "--layer", 1)
    assert result.exit_code == 0, result.output
    words = (
        "teacher",
        "sparsity α",
        "d*",
        "theorem",
        "independent",
        "simulated",
        "gain",
        "The feature floor is",
        "nats",
    )
    for word in words:
        assert word in result.stdout
    assert "Saved in runs/tiny-neox-layer1. Next: tl-floor lost runs/tiny-neox-layer1" in result.stdout
    names = (path.name for path in (tmp_path / "runs" / "tiny-neox-layer1").iterdir())
    assert sorted(name for name in names if not name.startswith(".")) == [
        "floor.json",
        "head.json",
        "promoted.json",
        "simulated.safetensors",
        "stats.safetensors",
        "tail.safetensors",
    ]


def test_measures_without_an_sae(teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    command = ("measure", teacher_dir, "--no-sae", "--text", prose_file, "--tokens", 2048, "--steps", 100)
    result = run(*command, "--widths", "8,16,24", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "A student loses at least what the best logits of its rank lose" in " ".join(result.stdout.split())
    head = HeadFloor.load(tmp_path)
    assert head.widths == (8, 16, 24)
    assert head.floor[0] > head.floor[1] > head.floor[2] == 0.0
    printed = json.loads(run(*command, "--widths", "8,16,24", "--out", tmp_path / "again", "--json").stdout)
    assert printed["head"] == list(head.floor)
    assert run("report", tmp_path).exit_code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"loses at least about {head.floor[1]:.3g} nats per token" in page
    assert "A student loses at least what the best logits of its rank lose" in page
    planned = run("plan", tmp_path, "--max-width", 16)
    assert "Train a student of width 16" in planned.stdout, planned.output
    assert "measured without an SAE" in refused(run("lost", tmp_path, "--width", 8))
    assert "measured without an SAE" in refused(run("probe", tmp_path))
    assert "needs at least 8; raise the steps, got 0" in refused(run(*command[:-1], 0))


def test_the_time_of_each_stage_follows_from_the_options() -> None:
    default = _stages(MeasureConfig(), PredictConfig())
    assert list(default) == list(SECONDS)  # in the order in which they run
    short = _stages(MeasureConfig(n_tokens=DEFAULT_TOKENS // 4), PredictConfig(steps=100))
    assert short["measuring"] == SECONDS["measuring"] / 4
    assert short["head floor"] == pytest.approx(SECONDS["head floor"] / 10)
    assert list(_stages(MeasureConfig(), PredictConfig(steps=0))) == ["measuring", "removing features"]
    assert list(_stages(MeasureConfig(cost="energy"), PredictConfig())) == ["measuring", "simulating"]


def test_a_prediction_carries_the_bound(measured: tuple[Path, Path, Path]) -> None:
    floor = FloorPrediction.load(measured[0])
    assert floor.head is not None
    assert floor.bound is not None
    assert floor.bound.tolist() == pytest.approx(floor.head.floor)
    assert floor.bound[-1] == 0.0
    assert "bound" in [column.header for column in widths_table(floor).renderables[0].columns]  # type: ignore[attr-defined]
    assert floor_json(floor)["intervals"]["head"][0][0] < floor.bound[0]
    assert "bound (head floor)" in [trace.name for trace in floor.plot().data]
    # A planned student never loses less than its bound.
    low_expectation = dataclasses.replace(floor, simulation=None, independent=np.zeros(len(floor.widths)))
    assert expected_loss(low_expectation, int(floor.widths[0])).value >= floor.bound[0]
    for predictor, error in (("head", "no head floor"), ("simulated", "no simulated floors")):
        without = dataclasses.replace(floor, head=None, simulation=None)
        with pytest.raises(InputError, match=error):
            without.predicted(predictor, 8)


def test_json_prints_one_object_that_depends_only_on_the_seed(command: Command) -> None:
    result = run(*command, "--json", "--widths", "8,2,4", "--out", "first")
    printed = json.loads(result.stdout)
    assert json.loads(run(*command, "--json", "--widths", "8,2,4", "--out", "second").stdout) == printed
    assert result.stderr == ""
    assert set(printed) >= {
        *("model", "hook", "sae", "n_tokens", "n_features", "alpha", "capacity", "critical_width", "l0", "fvu", "unit"),
        *("widths", "theorem", "independent", "simulated", "head", "feature_floor", "intervals", "warnings"),
    }
    assert printed["widths"] == [2, 4, 8]
    assert printed["simulated"] == printed["feature_floor"] != printed["independent"]
    assert len(printed["structure_gain"]) == 3
    assert printed["critical_width"] == pytest.approx(printed["n_features"] / printed["capacity"])


def test_zero_steps_skip_the_simulation(command: Command, tmp_path: Path) -> None:
    printed = json.loads(run(*command, "--json", "--steps", 0, "--out", "bare").stdout)
    assert printed["simulated"] is None
    assert printed["feature_floor"] == printed["independent"]
    assert not (tmp_path / "bare" / "simulated.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", 9], "reads blocks.1.hook_resid_post, not layer 9"),
        (["--device", "cuda:99"], "torch cannot use device 'cuda:99'"),
        (["--sae", "missing-sae"], "missing-sae"),
        (["--text", "missing.txt"], "no text file at missing.txt"),
        (["--widths", "a,b"], "positive integers"),
        (["--widths", "0"], "positive integers"),
        (["--context-size", 1000], "sequences of 2 to 64 tokens"),
    ],
)
def test_rejects_bad_options_and_leaves_no_file(
    command: Command, options: list[Any], message: str, tmp_path: Path
) -> None:
    assert message in refused(run(*command, *options))
    assert list(tmp_path.iterdir()) == []


def test_the_measurement_is_kept_if_the_prediction_fails(command: Command) -> None:
    quick = ("--steps", 0)
    assert "fired 1,000,000 times" in refused(run(*command, *quick, "--min-count", 10**6))
    assert run(*command, *quick, "--resume").exit_code == 0


def test_rejects_an_unknown_model(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command[1] = "no-such-owner/no-such-model"
    assert "no-such-owner/no-such-model" in refused(run(*command))


def test_rejects_a_short_text(command: Command, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    assert "too short" in refused(run(*command, "--text", tmp_path / "short.txt"))
    (tmp_path / "one.txt").write_text("a")
    assert "too short" in refused(run(*command, "--text", tmp_path / "one.txt"))
    (tmp_path / "empty.txt").write_text("")
    assert "too short" in refused(run(*command, "--text", tmp_path / "empty.txt"))


def test_rejects_a_run_directory_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "cannot write" in refused(run(*command, "--out", tmp_path / "taken" / "run"))
    assert "cannot write" in refused(run(*command, "--out", "/proc/nowhere/run"))


def test_a_full_disk_keeps_the_earlier_run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command += ["--steps", "0", "--out", "run"]
    assert run(*command).exit_code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(run(*command))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def kill_after_third_checkpoint() -> None:
    """Make this process save a checkpoint after every block, and kill it after the third."""
    save, saved = FeatureStats.save, []

    def save_and_kill(stats: FeatureStats, path: Path) -> Path:
        saved.append(save(stats, path))
        if len(saved) == 3:
            os.kill(os.getpid(), 9)
        return saved[-1]

    measurement.SECONDS_BETWEEN_SAVES = 0
    FeatureStats.save = save_and_kill  # type: ignore[method-assign]


def test_a_run_holds_what_is_known_at_each_stage(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tl_distill_floor.predicting.predict.head_floor_of_stream", _interrupt)
        result = run(*command, "--out", out)
    assert result.exit_code == 130
    assert "Summed cost of the features that Theorem 1 drops" in " ".join(result.stdout.split())
    unfinished = FloorPrediction.load(out)
    assert "not finished" in unfinished.warnings[0]
    assert unfinished.theorem is not None
    assert unfinished.head is unfinished.simulated is None
    with monkeypatch.context() as patch:
        patch.setattr("tl_distill_floor.predicting.predict.predict_measured", _interrupt)
        result = run(*command, "--out", out, "--resume")
    assert result.exit_code == 130
    assert "Expected follows from the head floor (bound) alone so far" in " ".join(result.stdout.split())
    with_head = FloorPrediction.load(out)
    assert with_head.expected is not None
    assert with_head.simulated is None
    assert run(*command, "--out", out, "--resume").exit_code == 0
    finished = FloorPrediction.load(out)
    assert finished.n_features == unfinished.n_features
    assert finished.expected is not None
    assert not any("not finished" in warning for warning in finished.warnings)
    with monkeypatch.context() as patch:  # a finished prediction stays until the new one is finished
        patch.setattr("tl_distill_floor.predicting.predict.head_floor_of_stream", _interrupt)
        assert run(*command, "--out", out, "--seed", 1).exit_code == 130
    assert FloorPrediction.load(out).head == finished.head


def _interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_run_resumes_to_identical_files(command: Command, tmp_path: Path) -> None:
    command += ["--steps", "0"]
    assert run(*command, "--out", "uninterrupted").exit_code == 0
    killed = run_in_fork((*command, "--out", "killed"), before=kill_after_third_checkpoint)
    assert killed.status == -9, killed.output
    assert "add --resume to continue it" in refused(run(*command, "--out", "killed"))
    assert run(*command, "--out", "killed", "--resume").exit_code == 0
    for name in ("stats.safetensors", "floor.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()
    assert not (tmp_path / "killed" / "partial.safetensors").exists()


def test_cached_activations_have_a_run_of_their_own_and_need_no_teacher(
    sae_dir: Path, bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a model, the run is not that of the default model."""
    monkeypatch.chdir(tmp_path)
    save_cache(Path("cache"), bridge, ids)
    command = ("measure", "--sae", sae_dir, "--text", "cache", "--steps", 0, "--force")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert FeatureStats.load("runs/cache").text_name == "cache"
    assert [path.name for path in Path("runs").iterdir()] == ["cache"]
    message = refused(run(*command, "--dtype", "bf16", "--context-size", 8, "--cost-tokens", 9, "--samples", 2))
    assert message == (
        "tl-floor: --dtype, --context-size, --cost-tokens and --samples have no effect with cached activations, which"
        " are measured without a teacher; leave them out"
    )


def test_an_interrupted_command_says_how_to_continue(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_distill_floor.measuring.measurement.sum_block", interrupted)
    result = run(*command)
    assert result.exit_code == 130
    expected = "tl-floor: interrupted; type the same command again with --resume, to continue from the last checkpoint"
    assert result.stderr.splitlines()[-1] == expected


def test_saes_lists_the_known_saes() -> None:
    result = run("saes", "gpt2-small", "--layer", 8, "--json")
    assert "gpt2-small-res-jb:blocks.8.hook_resid_pre" in [entry["spec"] for entry in json.loads(result.stdout)]
    assert "blocks.8.hook_resid_pre" in run("saes", "gpt2-small", "--layer", 8).stdout
    assert "train-sae" in refused(run("saes", "no-such-owner/no-such-model"))


def test_an_sae_is_trained_and_measured(command: Command, teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    """Train an SAE for a model that has none, and measure with it."""
    trained = run(
        *("train-sae", teacher_dir, "--layer", 1, "--text", prose_file, "--out", "new-sae", "--features", 64, "--k", 8),
        *("--tokens", 12_288, "--context-size", 32),
    )
    assert trained.exit_code == 0, trained.output
    assert "tl-floor measure" in trained.stdout
    metadata = json.loads((tmp_path / "new-sae" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert (metadata["context_size"], metadata["prepend_bos"]) == (32, True)
    quick = ("--text", prose_file, "--tokens", 2048, "--steps", 0)
    printed = json.loads(run("measure", teacher_dir, "--sae", "new-sae", *quick, "--json", "--force").stdout)
    assert printed["hook"] == "blocks.1.hook_resid_post"
    assert "exists already" in refused(run("train-sae", teacher_dir, "--layer", 1, "--out", "new-sae"))
