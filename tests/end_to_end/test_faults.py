"""Kills at any moment, disks that fill at any write, places that cannot be written: nothing is lost, nothing is left.

    KILLS=50 WRITES=1000 pytest -m slow -n 1 tests/end_to_end/test_faults.py

is the long version: so many kills of every command, and a disk that fills at every of so many writes.
"""

import json
import os
import random
import shutil
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.child_process import FULL, LARGEST, at_write, disk_fills, in_child, kill, without_privileges
from tests.helpers.probes import rows
from tests.helpers.records import QUICK
from tl_distill_floor import FloorPrediction
from tl_distill_floor.results.student import load_students

Commands = dict[str, tuple[Any, ...]]
KILLS, WRITES, SEED = (int(os.environ.get(name, n)) for name, n in (("KILLS", 1), ("WRITES", 0), ("SEED", 0)))
RESUMED = ("measure", "distill", "train-sae")
NAMES = (*RESUMED, "calibrate", "probe", "report")
FILLED = {"measure": (0, [12]), "distill": (LARGEST, [10, 13]), "calibrate": (0, [2]), "probe": (0, [2]),
          "report": (0, [2]), "train-sae": (LARGEST, [2, 6])}  # fmt: skip
"""What a file may hold at the most, from which write on."""
CASES = [(*case, range(1, 1 + WRITES)) for case in product(NAMES, (0, LARGEST))] if WRITES else [
    (name, *filled) for name, filled in FILLED.items()
]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits of Linux")]


@pytest.fixture(scope="module")
def commands(teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    labelled = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    text, sae = ("--text", prose_file), ("--sae", sae_dir)
    probes = ("--labelled", labelled, "--label", "half", "--splits", 2, "--steps", 0, "--feature-tokens", 1280)
    trained = ("--layer", 1, "--features", 32, "--k", 4, "--tokens", 8192, "--context-size", 32)
    return {
        "measure": ("measure", teacher_dir, *sae, *text, "--tokens", 640, "--batch-size", 4, "--steps", 4,
                    "--widths", "8,16,24", "--out", "run"),
        "distill": ("distill", teacher_dir, *text, "--widths", "8,16,24", "--out", "run", *QUICK, "--tokens", 1024,
                    "--heldout-tokens", 128, "--evaluations", 3),
        "calibrate": ("calibrate", "run"),
        "probe": ("probe", "run", *sae, *text, *probes),
        "report": ("report", "run"),
        "train-sae": ("train-sae", teacher_dir, *text, *trained, "--out", "run/made"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose `run` holds what every command wrote."""
    directory, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    os.chdir(directory)
    for command in commands.values():
        ended = in_child(command)
        assert ended.status == 0, ended.said
    os.chdir(before)
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def begun(whole: Path, name: str) -> dict[str, bytes]:
    """A copy of the run in the working directory, in which a command can write; its files."""
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(whole / "run", "run")
    for made in {"distill": ["students"], "train-sae": ["made"]}.get(name, []):
        shutil.rmtree(Path("run") / made)
    return files(Path("run"))


def hastened(then: Any = bool, between_saves: float = 0.0) -> None:
    """A checkpoint after every step, say, and fewer activations shuffled together before an SAE is trained."""
    from tl_distill_floor.distilling import distill
    from tl_distill_floor.measuring import measurement as features
    from tl_distill_floor.sae_training import activations as shuffled
    from tl_distill_floor.sae_training import train_sae

    features.SECONDS_BETWEEN_SAVES, shuffled.MIXED_TOKENS = between_saves, 2**13
    distill.distill_students = partial(distill.distill_students, checkpoint_seconds=between_saves)  # type: ignore[assignment]
    train_sae.train_sae = partial(train_sae.train_sae, checkpoint_seconds=between_saves)  # type: ignore[assignment]
    then()


@pytest.mark.parametrize("name", ["measure", "train-sae", "distill"])
def test_killed_at_any_moment_and_resumed(
    commands: Commands, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the kills at a random moment, half at a random write; what is there in the end is the same."""
    monkeypatch.chdir(tmp_path)
    again = (*commands[name], *(["--resume"] if name in RESUMED else []))
    in_child(commands[name], hastened)
    expected = files(Path("run"))
    shutil.rmtree("run")
    seconds = in_child(commands[name], hastened).seconds  # without what only the first run waits for
    assert files(Path("run")) == expected
    chance, kills, runs, writes = random.Random(SEED), 0, 0, 40
    while kills < KILLS or Path("run").exists():
        if not runs or not Path("run").exists():
            shutil.rmtree("run", ignore_errors=True)
            runs += 1
        at, moment = chance.randint(1, writes), chance.uniform(0, 1.1 * seconds)
        if kills >= KILLS:
            ended = in_child(again, hastened)
        elif not kills:
            ended = in_child(again, partial(hastened, partial(at_write, "run", FILLED[name][1][-1], kill), 1e9))
        elif chance.random() < 0.5:
            ended = in_child(again, partial(hastened, partial(at_write, "run", at, kill)))
            writes = writes if ended.status == -9 else max(4, at - 1)  # it made fewer
        else:
            ended = in_child(again, hastened, moment)
        if ended.status == -9:
            kills += 1
            assert len(list(tmp_path.rglob(".*"))) <= 5, "what kills leave piles up"  # four files wait for the fifth
            continue
        # Killed after its last file was in place, it says so.
        assert ended.status == 0 or "already; name another" in ended.sentence, ended.said
        assert files(Path("run")) == expected
        assert not list(tmp_path.rglob(".*"))
        shutil.rmtree("run")
    with capsys.disabled():
        print(f" {name}: {kills} kills in {runs} runs of {seconds:.1f} s", end="")


@pytest.mark.parametrize(("name", "largest", "numbers"), CASES)
def test_a_disk_that_fills_at_any_write_loses_nothing(
    commands: Commands, whole: Path, name: str, largest: int, numbers: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = (*commands[name], *(["--tokens", 512] if name == "measure" else []))  # another measurement
    once, filled = partial(hastened, between_saves=1e9), 0  # one checkpoint, at the end
    for number in numbers:
        before = begun(whole, name)
        ended = in_child(command, partial(once, partial(at_write, "run", number, disk_fills(largest))))
        if FULL not in ended.said:
            assert ended.status == 0, ended.said
            break
        if not ended.status:  # nothing was left to be written, or little
            continue
        filled += 1
        assert "cannot write" in ended.sentence
        assert "place" in ended.sentence
        left = files(Path("run"))
        assert {path: left.get(path) for path in before} == before
        assert not list(Path("run").rglob(".*"))
        FloorPrediction.load("run")
        load_students("run")
        ended = in_child((*command, *(["--resume"] if name in RESUMED else [])), once)
        assert ended.status == 0, ended.said
        assert not list(Path("run").rglob("partial.safetensors"))
    assert filled or (WRITES and largest), "it wrote nothing"  # a calibration fits into what is left
    with capsys.disabled():
        print(f" {name}: full at {filled} writes", end="")


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_written_is_one_sentence(
    commands: Commands, whole: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory without the permission, one of the system's, a file in the way."""
    monkeypatch.chdir(tmp_path)
    before = begun(whole, name)
    for directory in (Path("run"), Path("run/students")):
        if directory.exists():
            directory.chmod(0o555)
    sentence = in_child(commands[name], without_privileges).sentence
    assert sentence.startswith("tl-floor: cannot write run")
    assert sentence.endswith("place and name that" if name in ("calibrate", "probe") else "place with --out")
    assert files(Path("run")) == before
    if name in ("calibrate", "probe"):
        return
    Path("file").write_text("")
    for place in ("/proc/nowhere/run", "file/run"):
        out = ["--out", f"{place}/made"]
        assert f"cannot write {place}" in (said := in_child((*commands[name], *out)).sentence)
        assert said.endswith("name another place with --out")
    if name == "report":
        ended = in_child((*commands[name], "--out", "elsewhere/page.html"), without_privileges)
        assert ended.status == 0, ended.said
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "elsewhere") == ["file", "run"]
