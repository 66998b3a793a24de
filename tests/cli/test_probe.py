"""`tl-floor probe` in process, on a tiny random teacher and its students."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.cli import refused, run
from tests.helpers.probes import rows
from tl_distill_floor import Probes
from tl_distill_floor.display.probe_tables import probes_view

FAST = ("--splits", 2, "--steps", 20, "--feature-tokens", 1280)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return file


@pytest.fixture
def copied(distilled: Path, tmp_path: Path) -> Path:
    shutil.copytree(distilled, tmp_path / "run")
    return tmp_path / "run"


def test_teacher_forecasts_and_students_are_probed(
    copied: Path, labelled: Path, sae_dir: Path, prose_file: Path
) -> None:
    options = ("--labelled", labelled, "--label", "length", "--label", "half", "--sae", sae_dir, "--text", prose_file)
    result = run("probe", copied, *options, *FAST)
    assert result.exit_code == 0, result.output
    for word in ("Linear probes at blocks.1.hook_resid_post", "length", "half", "student", "features kept",
                 "bottleneck", "points", "AUROC", "width16"):  # fmt: skip
        assert word in result.stdout
    assert f"Next: tl-floor report {copied}" in " ".join(result.stdout.split())
    found = Probes.load(copied)
    assert found.tasks == ("length", "half")
    for task in found.tasks:
        assert [len(found.of(task, kind)) for kind in ("teacher", "student", "kept", "bottleneck")] == [1, 3, 3, 3]
    assert [each.subject for each in found.features[1:]] == ["width8", "width16", "width24"]
    again = json.loads(run("probe", copied, *options, *FAST, "--json").stdout)
    assert again["results"] == json.loads((copied / "probes.json").read_bytes())["results"]
    assert Probes.load(copied) == found


def test_without_students_it_is_a_forecast(
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
    ("options", "says"),
    [
        (("--label", "nonsense"), "has no 'nonsense'; name one of its labels with --label: length, half"),
        (("--labelled", "missing.jsonl"), "no labelled text at missing.jsonl"),
        (("--sae", "missing"), "missing"),
        (("--widths", "eight"), "widths must be whole numbers"),
        (("--steps", "1"), "the steps must be 0 or at least 2"),
        (("--feature-tokens", "40"), "set --feature-tokens higher"),
        (("--text", "missing.txt"), "no text file at missing.txt"),
    ],
)
def test_bad_input(
    copied: Path, labelled: Path, sae_dir: Path, prose_file: Path, options: tuple[Any, ...], says: str
) -> None:
    good = ("--labelled", labelled, "--label", "half", "--sae", sae_dir, "--text", prose_file)
    assert says in refused(run("probe", copied, *good, *FAST, *options))
    assert not (copied / "probes.json").exists()


def test_a_student_that_diverged_is_left_out(copied: Path, labelled: Path, sae_dir: Path, prose_file: Path) -> None:
    file = copied / "students" / "width8" / "student.json"
    stored = json.loads(file.read_bytes())
    file.write_text(json.dumps(stored | {"status": "diverged"}))
    (file.parent / "config.json").unlink()
    options = ("--labelled", labelled, "--label", "half", "--label", "half", "--sae", sae_dir, "--text", prose_file)
    result = run("probe", copied, *options, *FAST)
    assert result.exit_code == 0, result.output
    assert "diverged, and not probed: width8" in " ".join(result.stdout.split())
    assert [r.width for r in Probes.load(copied).of("half", "student")] == [16, 24]


def test_names_from_elsewhere_are_no_markup(probes: Probes) -> None:
    console = Console(width=100, file=io.StringIO())
    renamed = [dataclasses.replace(result, task="pos[/b]") for result in probes.results]
    console.print(probes_view(dataclasses.replace(probes, results=tuple(renamed), labelled="rows[train].jsonl")))
    assert "pos[/b]" in console.file.getvalue()
    assert "rows[train].jsonl" in console.file.getvalue()
    without = dataclasses.replace(
        probes, results=tuple(r for r in probes.results if r.width != 8 or r.kind == "student")
    )
    console.print(probes_view(without))
    assert "No student was probed at a width that was forecast" in " ".join(console.file.getvalue().split())


def test_another_sae_is_refused(copied: Path, labelled: Path, sae: Any, tmp_path: Path) -> None:
    import torch

    other = type(sae)(sae.cfg)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec + 0.1)
    other.save_model(tmp_path / "other")
    options = ("--labelled", labelled, "--label", "half", "--sae", tmp_path / "other")
    assert "this SAE is another; name that with --sae" in refused(run("probe", copied, *options, *FAST))
    assert "there is no run at" in refused(run("probe", tmp_path / "nowhere"))
