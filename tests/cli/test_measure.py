"""The command line, in process on a tiny random model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import refused, run

Given = list[str]


@pytest.fixture
def given(teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.chdir(tmp_path)
    quick = ("--batch-size", 4, "--steps", 20)
    return [str(a) for a in ("measure", teacher_dir, "--sae", sae_dir, "--text", prose_file, *quick)]


def test_measure_prints_a_table_and_saves(given: Given, tmp_path: Path) -> None:
    result = run(*given, "--layer", 1)
    assert result.exit_code == 0, result.output
    for word in ("teacher", "sparsity α", "d*", "theorem", "independent", "simulated", "gain", "Expected is", "nats"):
        assert word in result.stdout
    saved = (path.name for path in (tmp_path / "runs" / "tiny-neox-layer1").iterdir())
    assert sorted(name for name in saved if not name.startswith(".")) == [
        "floor.json",
        "simulated.safetensors",
        "stats.safetensors",
        "tail.safetensors",
    ]


def test_json_is_one_object_and_nothing_else(given: Given) -> None:
    result = run(*given, "--json", "--widths", "8,2,4")
    found = json.loads(result.stdout)
    assert result.stderr == ""
    assert set(found) >= {
        *("model", "hook", "sae", "n_tokens", "n_features", "alpha", "capacity", "critical_width", "l0", "fvu", "unit"),
        *("widths", "theorem", "independent", "simulated", "expected", "intervals", "warnings"),
    }
    assert found["widths"] == [2, 4, 8]
    assert found["simulated"] == found["expected"] != found["independent"]
    assert len(found["structure_gain"]) == 3
    assert found["critical_width"] == pytest.approx(found["n_features"] / found["capacity"])


def test_without_steps_nothing_is_simulated(given: Given, tmp_path: Path) -> None:
    found = json.loads(run(*given, "--json", "--steps", 0, "--out", "bare").stdout)
    assert found["simulated"] is None
    assert found["expected"] == found["independent"]
    assert not (tmp_path / "bare" / "simulated.safetensors").exists()


def test_one_seed_one_result(given: Given) -> None:
    first, second = (json.loads(run(*given, "--json", "--out", out).stdout) for out in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layer", 9], "reads blocks.1.hook_resid_post, not layer 9"),
        (["--device", "cuda:99"], "torch cannot use device 'cuda:99'"),
        (["--sae", "missing-sae"], "missing-sae"),
        (["--text", "missing.txt"], "no text file at missing.txt"),
        (["--widths", "a,b"], "whole numbers"),
        (["--widths", "0"], "whole numbers"),
        (["--context-size", 1000], "sequences of 2 to 64 tokens"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(
    given: Given, options: list[Any], says: str, tmp_path: Path
) -> None:
    assert says in refused(run(*given, *options))
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_outlives_a_prediction_that_fails(given: Given) -> None:
    assert "fired 1000000 times" in refused(run(*given, "--min-count", 10**6))
    assert run(*given, "--resume").exit_code == 0


def test_an_unknown_model_is_one_sentence(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given[1] = "nobody/no-such-model"
    assert "nobody/no-such-model" in refused(run(*given))


def test_a_short_text_is_one_sentence(given: Given, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    assert "too short" in refused(run(*given, "--text", tmp_path / "short.txt"))
    (tmp_path / "one.txt").write_text("a")
    assert "too short" in refused(run(*given, "--text", tmp_path / "one.txt"))
    (tmp_path / "empty.txt").write_text("")
    assert "too short" in refused(run(*given, "--text", tmp_path / "empty.txt"))


def test_debug_shows_where(given: Given) -> None:
    result = run(*given, "--layer", 9, "--debug")
    assert "Traceback" in result.stderr
    assert result.exit_code == 2


def test_a_directory_that_is_a_file_is_one_sentence(given: Given, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "cannot write" in refused(run(*given, "--out", tmp_path / "taken" / "run"))
    assert "cannot write" in refused(run(*given, "--out", "/proc/nowhere/run"))


def test_a_full_disk_loses_nothing(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*given, "--out", "run").exit_code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(run(*given, "--out", "run"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_a_killed_run_resumes_to_the_same_bytes(given: Given, tmp_path: Path) -> None:
    assert run(*given, "--out", "whole").exit_code == 0
    code = (
        "import os, tl_distill_floor.results.feature_stats as r\n"
        "import tl_distill_floor.measuring.measurement as f\n"
        "f.SECONDS_BETWEEN_SAVES = 0\n"
        "real, saved = r.FeatureStats.save, []\n"
        "def save(self, path):\n"
        "    out = real(self, path)\n"
        "    saved.append(out)\n"
        "    if len(saved) == 3: os.kill(os.getpid(), 9)\n"
        "    return out\n"
        "r.FeatureStats.save = save\n"
        "from tl_distill_floor.cli.app import main\n"
        "main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *given, "--out", "killed"], capture_output=True, check=False)
    assert killed.returncode == -9
    assert "add --resume to go on" in refused(run(*given, "--out", "killed"))
    assert run(*given, "--out", "killed", "--resume").exit_code == 0
    for name in ("stats.safetensors", "floor.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / "partial.safetensors").exists()


def test_interrupting_says_how_to_go_on(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_distill_floor.measuring.measurement.block_stats", interrupted)
    result = run(*given)
    assert result.exit_code == 130
    assert "--resume" in result.stderr


def test_saes_lists_what_is_known() -> None:
    result = run("saes", "gpt2-small", "--layer", 8, "--json")
    assert "gpt2-small-res-jb:blocks.8.hook_resid_pre" in [entry["spec"] for entry in json.loads(result.stdout)]
    assert "blocks.8.hook_resid_pre" in run("saes", "gpt2-small", "--layer", 8).stdout
    assert "train-sae" in refused(run("saes", "nobody/no-such-model"))


def test_an_sae_is_trained_and_measured(given: Given, teacher_dir: Path, prose_file: Path, tmp_path: Path) -> None:
    """The second road: train where none exists, then measure with what was trained."""
    made = run(
        *("train-sae", teacher_dir, "--layer", 1, "--text", prose_file, "--out", "made", "--features", 64, "--k", 8),
        *("--tokens", 12_288, "--context-size", 32),
    )
    assert made.exit_code == 0, made.output
    assert "tl-floor measure" in made.stdout
    metadata = json.loads((tmp_path / "made" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert (metadata["context_size"], metadata["prepend_bos"]) == (32, True)
    found = json.loads(
        run("measure", teacher_dir, "--sae", "made", "--text", prose_file, "--json", "--steps", 0).stdout
    )
    assert found["hook"] == "blocks.1.hook_resid_post"
    assert "exists already" in refused(run("train-sae", teacher_dir, "--layer", 1, "--out", "made"))
