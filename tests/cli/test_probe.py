"""Test `tl-floor probe` in this process, on a tiny random teacher and its students."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.cli import refused, run
from tests.helpers.probes import labelled_rows
from tl_distill_floor import Probes, SparseProbes
from tl_distill_floor.display.probe_views import probes_table

FAST = ("--splits", 2, "--steps", 20, "--feature-tokens", 1280)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of labelled text."""
    file = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled_rows()))
    return file


@pytest.fixture
def run_copy(distilled: Path, tmp_path: Path) -> Path:
    """Return a copy of a run with students."""
    shutil.copytree(distilled, tmp_path / "run")
    return tmp_path / "run"


def test_probes_the_teacher_the_predictions_and_the_students(
    run_copy: Path, labelled: Path, sae_dir: Path, prose_file: Path
) -> None:
    options = ("--labelled", labelled, "--label", "length", "--label", "half", "--sae", sae_dir, "--text", prose_file)
    result = run("probe", run_copy, *options, *FAST)
    assert result.exit_code == 0, result.output
    for word in ("Linear probes at blocks.1.hook_resid_post", "length", "half", "student", "features kept",
                 "bottleneck", "points", "AUROC", "width16"):  # fmt: skip
        assert word in result.stdout
    assert f"Next: tl-floor report {run_copy}" in " ".join(result.stdout.split())
    probes = Probes.load(run_copy)
    assert probes.tasks == ("length", "half")
    for task in probes.tasks:
        assert [len(probes.of(task, kind)) for kind in ("teacher", "student", "kept", "bottleneck")] == [1, 3, 3, 3]
    assert [each.subject for each in probes.features[1:]] == ["width8", "width16", "width24"]
    again = json.loads(run("probe", run_copy, *options, *FAST, "--json").stdout)
    assert again["results"] == json.loads((run_copy / "probes.json").read_bytes())["results"]
    assert Probes.load(run_copy) == probes


def test_a_run_without_students_gets_forecasts(
    measured: tuple[Path, Path, Path], labelled: Path, sae_dir: Path, tmp_path: Path
) -> None:
    for file in measured[0].glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = ("--labelled", labelled, "--label", "length", "--sae", sae_dir, "--feature-tokens", 0, "--steps", 0)
    result = run("probe", tmp_path, *options, "--splits", 1)
    assert result.exit_code == 0, result.output
    assert "No student was probed, so these are forecasts" in " ".join(result.stdout.split())
    assert "bottleneck" not in result.stdout.split("features kept:")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "nonsense"), "has no 'nonsense'; choose one of its labels with --label: length, half"),
        (("--labelled", "missing.jsonl"), "no labelled text at missing.jsonl"),
        (("--sae", "missing"), "missing"),
        (("--widths", "eight"), "widths must be positive integers"),
        (("--steps", "1"), "the steps of the bottleneck students must be 0 or at least 2"),
        (("--students", "nowhere"), "nowhere holds no students; distil some with tl-floor distill --out nowhere"),
        (("--feature-tokens", "40"), "set --feature-tokens higher"),
        (("--text", "missing.txt"), "no text file at missing.txt"),
    ],
)
def test_rejects_bad_input(
    run_copy: Path, labelled: Path, sae_dir: Path, prose_file: Path, options: tuple[Any, ...], message: str
) -> None:
    good = ("--labelled", labelled, "--label", "half", "--sae", sae_dir, "--text", prose_file)
    assert message in refused(run("probe", run_copy, *good, *FAST, *options))
    assert not (run_copy / "probes.json").exists()


def test_leaves_out_a_student_that_diverged(run_copy: Path, labelled: Path, sae_dir: Path, prose_file: Path) -> None:
    file = run_copy / "students" / "width8" / "student.json"
    stored = json.loads(file.read_bytes())
    file.write_text(json.dumps(stored | {"status": "diverged"}))
    (file.parent / "config.json").unlink()
    options = ("--labelled", labelled, "--label", "half", "--label", "half", "--sae", sae_dir, "--text", prose_file)
    result = run("probe", run_copy, *options, *FAST)
    assert result.exit_code == 0, result.output
    assert "diverged, and not probed: width8" in " ".join(result.stdout.split())
    assert [r.width for r in Probes.load(run_copy).of("half", "student")] == [16, 24]


def test_sparse_probes_link_concepts_to_features(
    measured: tuple[Path, Path, Path], labelled: Path, sae_dir: Path, tmp_path: Path
) -> None:
    for file in measured[0].glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = ("--labelled", labelled, "--label", "length", "--sae", sae_dir, "--steps", 0, "--splits", 1)
    result = run("probe", tmp_path, *options, "--sparse", 2, "--controls", 1, "--selection", "correlation")
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for words in ("k-sparse probes of", "length: short (", "rests on feature", "A student of width",
                  "No student was probed, so these are forecasts"):  # fmt: skip
        assert words in printed
    probes = SparseProbes.load(tmp_path)
    assert probes.settings["selection"] == "correlation"
    again = run("probe", tmp_path, *options, "--sparse", 2, "--controls", 1, "--selection", "correlation", "--json")
    assert (
        json.loads(again.stdout)["concepts"] == json.loads((tmp_path / "sparse_probes.json").read_bytes())["concepts"]
    )
    message = "a probe cannot read 500 features, since only 96 are alive; set --sparse 96 or less"
    assert message in refused(run("probe", tmp_path, *options, "--sparse", 500))
    assert SparseProbes.load(tmp_path) == probes


def test_names_are_not_read_as_markup(probes: Probes) -> None:
    console = Console(width=100, file=io.StringIO())
    renamed = [dataclasses.replace(result, task="pos[/b]") for result in probes.results]
    console.print(probes_table(dataclasses.replace(probes, results=tuple(renamed), labelled="rows[train].jsonl")))
    assert "pos[/b]" in console.file.getvalue()
    assert "rows[train].jsonl" in console.file.getvalue()
    without = dataclasses.replace(
        probes, results=tuple(r for r in probes.results if r.width != 8 or r.kind == "student")
    )
    console.print(probes_table(without))
    assert "No student was probed at a width that was forecast" in " ".join(console.file.getvalue().split())


def test_a_teacher_that_was_replaced_in_its_directory_is_refused(
    teacher_dir: Path, sae_dir: Path, labelled: Path, prose_file: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    teacher, directory = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher_dir, teacher)
    options = ("--text", prose_file, "--steps", 0, "--cost", "energy", "--widths", "8", "--out", directory)
    assert run("measure", teacher, "--sae", sae_dir, *options).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data.mul_(1.1)
    model.save_pretrained(teacher)
    message = f"made with other weights of the teacher {teacher} than those of {teacher} now"
    probe = ("probe", directory, "--labelled", labelled, "--label", "half", "--sae", sae_dir, *FAST)
    assert message in refused(run(*probe))
    assert message in refused(run(*probe[:-2], "--sparse", 2))
    lost = run("lost", directory, "--promoted", "--sae", sae_dir, "--top", 96)
    assert lost.exit_code == 0
    assert message in " ".join(lost.stderr.split())
    options = ("--text", prose_file, "--widths", 8, "--match", "kept", "--sae", sae_dir, "--out", directory)
    assert message in refused(run("distill", teacher, *options))


def test_rejects_another_sae(run_copy: Path, labelled: Path, sae: Any, tmp_path: Path) -> None:
    import torch

    other = type(sae)(sae.cfg)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec + 0.1)
    other.save_model(tmp_path / "other")
    options = ("--labelled", labelled, "--label", "half", "--sae", tmp_path / "other")
    assert "this SAE is another; name that with --sae" in refused(run("probe", run_copy, *options, *FAST))
    assert "there is no run at" in refused(run("probe", tmp_path / "nowhere"))
