"""Commands that are killed, whose disk fills, or that may not write: no result is lost and no partial file is left.

    KILLS=50 WRITES=1000 pytest -m slow -n 1 tests/end_to_end/test_faults.py

is the long version: it kills every command 50 times, and fills the disk at each of the first 1,000 writes.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.child_process import (
    DISK_IS_FULL,
    NEARLY_FULL,
    drop_privileges,
    fill_disk,
    kill_this_process,
    on_write,
    run_in_fork,
)
from tests.helpers.probes import labelled_rows
from tests.helpers.records import QUICK
from tl_distill_floor import FloorPrediction
from tl_distill_floor.results.student import load_students

Commands = dict[str, tuple[Any, ...]]
N_KILLS, N_WRITES, SEED = (
    int(os.environ.get(name, default)) for name, default in (("KILLS", 1), ("WRITES", 0), ("SEED", 0))
)
RESUMABLE = ("measure", "distill", "train-sae")
NAMES = (*RESUMABLE, "calibrate", "probe", "report")
QUICK_WRITES = {
    "measure": (0, [6, 10]), "distill": (NEARLY_FULL, [10, 13]), "calibrate": (0, [2]), "probe": (0, [2]),
    "report": (0, [2]), "train-sae": (NEARLY_FULL, [2, 6]),
}  # fmt: skip
"""For each command: the bytes that a file can have on the full disk, and the writes at which the disk fills."""
CASES = (
    [(name, max_bytes, range(1, 1 + N_WRITES)) for name, max_bytes in product(NAMES, (0, NEARLY_FULL))]
    if N_WRITES
    else [(name, *writes) for name, writes in QUICK_WRITES.items()]
)
MAX_FILES_LEFT_BY_KILLS = 5
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of Linux")]


@pytest.fixture(scope="module")
def commands(teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Return the arguments of each command. They all use the run directory `run`."""
    labelled = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in labelled_rows()))
    text, sae = ("--text", prose_file), ("--sae", sae_dir)
    probes = ("--labelled", labelled, "--label", "half", "--splits", 2, "--steps", 0, "--feature-tokens", 1280)
    sae_training = ("--layer", 1, "--features", 32, "--k", 4, "--tokens", 8192, "--context-size", 32)
    return {
        "measure": ("measure", teacher_dir, *sae, *text, "--tokens", 640, "--batch-size", 4, "--steps", 4,
                    "--widths", "8,16,24", "--out", "run"),
        "distill": ("distill", teacher_dir, *text, "--widths", "8,16,24", "--out", "run", *QUICK, "--tokens", 1024,
                    "--heldout-tokens", 128, "--evaluations", 3),
        "calibrate": ("calibrate", "run"),
        "probe": ("probe", "run", *sae, *text, *probes),
        "report": ("report", "run"),
        "train-sae": ("train-sae", teacher_dir, *text, *sae_training, "--out", "run/made"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def complete_run(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every command; return the directory in which `run` is."""
    directory, previous = tmp_path_factory.mktemp("complete"), Path.cwd()
    os.chdir(directory)
    for command in commands.values():
        completed = run_in_fork(command)
        assert completed.status == 0, completed.output
    os.chdir(previous)
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory, by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def copy_run(complete_run: Path, name: str) -> dict[str, bytes]:
    """Copy the run into the working directory without what a command refuses to overwrite; return its files."""
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(complete_run / "run", "run")
    for directory in {"distill": ["students"], "train-sae": ["made"]}.get(name, []):
        shutil.rmtree(Path("run") / directory)
    return files_of(Path("run"))


def shorten(then: Callable[[], Any] = bool, seconds_between_checkpoints: float = 0.0) -> None:
    """Write checkpoints at other intervals, and shuffle fewer activations together while an SAE is trained.

    Args:
        then: called at the end.
        seconds_between_checkpoints: 0 writes a checkpoint after every step.
    """
    from tl_distill_floor.distilling.training import distill
    from tl_distill_floor.measuring import measurement
    from tl_distill_floor.sae_training import activations, train_sae

    seconds = seconds_between_checkpoints
    measurement.SECONDS_BETWEEN_SAVES, activations.TOKENS_PER_BLOCK = seconds, 2**13
    distill.distill_students = partial(distill.distill_students, checkpoint_seconds=seconds)  # type: ignore[assignment]
    train_sae.train_sae = partial(train_sae.train_sae, checkpoint_seconds=seconds)  # type: ignore[assignment]
    then()


@pytest.mark.parametrize("name", ["measure", "train-sae", "distill"])
def test_killed_command_resumes_to_the_same_files(
    commands: Commands, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the kills are at a random moment, and half at a random write."""
    monkeypatch.chdir(tmp_path)
    resume = (*commands[name], *(["--resume"] if name in RESUMABLE else []))
    first = run_in_fork(commands[name], shorten)
    assert first.status == 0, first.output
    expected = files_of(Path("run"))
    shutil.rmtree("run")
    seconds = run_in_fork(commands[name], shorten).seconds  # the first run was slower: it filled the caches
    assert files_of(Path("run")) == expected
    chance, n_kills, n_runs, max_write = random.Random(SEED), 0, 0, 40
    while n_kills < N_KILLS or Path("run").exists():
        if not n_runs or not Path("run").exists():
            shutil.rmtree("run", ignore_errors=True)
            n_runs += 1
        write, moment = chance.randint(1, max_write), chance.uniform(0, 1.1 * seconds)
        if n_kills >= N_KILLS:
            completed = run_in_fork(resume, shorten)
        elif not n_kills:
            kill_at_write = partial(on_write, "run", QUICK_WRITES[name][1][-1], kill_this_process)
            completed = run_in_fork(resume, partial(shorten, kill_at_write, 1e9))
        elif chance.random() < 0.5:
            completed = run_in_fork(resume, partial(shorten, partial(on_write, "run", write, kill_this_process)))
            if completed.status != -9:  # the command made fewer writes
                max_write = max(4, write - 1)
        else:
            completed = run_in_fork(resume, shorten, moment)
        if completed.status == -9:
            n_kills += 1
            assert len(list(tmp_path.rglob(".*"))) <= MAX_FILES_LEFT_BY_KILLS, "the files that kills leave pile up"
            continue
        # A command that was killed after its last file was in place refuses to overwrite its result.
        assert completed.status == 0 or "already; name another" in completed.error_message, completed.output
        assert files_of(Path("run")) == expected
        assert not list(tmp_path.rglob(".*"))
        shutil.rmtree("run")
    with capsys.disabled():
        print(f" {name}: {n_kills} kills in {n_runs} runs of {seconds:.1f} s", end="")


@pytest.mark.parametrize(("name", "max_bytes", "writes"), CASES)
def test_full_disk_at_any_write_loses_no_result(
    commands: Commands, complete_run: Path, name: str, max_bytes: int, writes: Iterable[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = (*commands[name], *(["--tokens", 512] if name == "measure" else []))  # not the measurement in the run
    only_last_checkpoint, n_failed = partial(shorten, seconds_between_checkpoints=1e9), 0
    for write in writes:
        before = copy_run(complete_run, name)
        fill_at_write = partial(on_write, "run", write, fill_disk(max_bytes))
        completed = run_in_fork(command, partial(only_last_checkpoint, fill_at_write))
        if DISK_IS_FULL not in completed.output:  # the command made fewer writes
            assert completed.status == 0, completed.output
            break
        if not completed.status:  # what was left to write fitted on the disk
            continue
        n_failed += 1
        assert "cannot write" in completed.error_message
        assert "directory" in completed.error_message
        after = files_of(Path("run"))
        assert {path: after.get(path) for path in before} == before
        assert not list(Path("run").rglob(".*"))
        FloorPrediction.load("run")
        load_students("run")
        completed = run_in_fork((*command, *(["--resume"] if name in RESUMABLE else [])), only_last_checkpoint)
        assert completed.status == 0, completed.output
        assert not list(Path("run").rglob("partial.safetensors"))
    # A calibration is small enough for a nearly full disk.
    assert n_failed or (N_WRITES and max_bytes), "the command wrote nothing"
    with capsys.disabled():
        print(f" {name}: {n_failed} writes failed on a full disk", end="")


@pytest.mark.parametrize("name", NAMES)
def test_unwritable_directory_is_a_one_line_error(
    commands: Commands, complete_run: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory has no write permission, is one of the system, or is a file."""
    monkeypatch.chdir(tmp_path)
    before = copy_run(complete_run, name)
    for directory in (Path("run"), Path("run/students")):
        if directory.exists():
            directory.chmod(0o555)
    message = run_in_fork(commands[name], drop_privileges).error_message
    assert message.startswith("tl-floor: cannot write run")
    assert message.endswith("directory and name that" if name in ("calibrate", "probe") else "directory with --out")
    assert files_of(Path("run")) == before
    if name in ("calibrate", "probe"):
        return
    Path("file").write_text("")
    for unwritable in ("/proc/nowhere/run", "file/run"):
        message = run_in_fork((*commands[name], "--out", f"{unwritable}/made")).error_message
        assert f"cannot write {unwritable}" in message
        assert message.endswith("name another directory with --out")
    if name == "report":
        completed = run_in_fork((*commands[name], "--out", "elsewhere/page.html"), drop_privileges)
        assert completed.status == 0, completed.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "elsewhere") == ["file", "run"]
