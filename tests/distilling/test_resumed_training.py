"""Trainings of students that are interrupted and resumed: they end as without the interruption."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.quick_training import QUICK, diverge_first_student, quick_config, saved_weights
from tl_distill_floor.distilling.training import student_results
from tl_distill_floor.distilling.training.config import StudentSpec
from tl_distill_floor.distilling.training.distill import distill, distill_students
from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.storage.locks import LOCK_FILE


class KilledError(Exception):
    """Interrupts a training."""


def kill(*_progress: Any) -> None:
    """Interrupt the training at the first call."""
    raise KilledError


SPECS = [StudentSpec(8), StudentSpec(16, match=Match("blocks.1.hook_resid_post", 1), start="teacher-slice")]


@pytest.fixture(scope="module")
def uninterrupted(bridge: Any, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the students of `SPECS` without an interruption, and return the run directory."""
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    distill_students(bridge, SPECS, ids, out=directory, config=QUICK)
    return directory


@pytest.mark.parametrize("killed_after", [1, 5])
def test_resumed_training_ends_with_the_same_weights(
    bridge: Any, ids: torch.Tensor, uninterrupted: Path, tmp_path: Path, killed_after: int
) -> None:

    def kill_after(n_tokens: int, _total: int, _message: str) -> None:
        if n_tokens == killed_after * 8 * 32:
            raise KilledError

    options: dict[str, Any] = {"out": tmp_path / "killed", "config": QUICK, "checkpoint_seconds": 0.0}
    with pytest.raises(KilledError):
        distill_students(bridge, SPECS, ids, progress=kill_after, **options)
    with pytest.raises(InputError, match="is of an interrupted training; add resume=True"):
        distill_students(bridge, SPECS, ids, **options)
    resumed = distill_students(bridge, SPECS, ids, resume=True, **options)

    for spec in SPECS:
        runs = (uninterrupted, tmp_path / "killed")
        first, second = (saved_weights(run / "students" / spec.directory) for run in runs)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert [s.losses for s in resumed] == [s.losses for s in load_students(uninterrupted)]
    assert not (tmp_path / "killed" / "students" / SWEEP_CHECKPOINT_FILE).exists()


def test_rejects_checkpoints_that_are_damaged_or_of_another_training(
    bridge: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, checkpoint_seconds=0.0, progress=kill)
    with pytest.raises(InputError, match="of a training with another students, seed; use the options"):
        distill(bridge, 16, ids, out=tmp_path, config=quick_config(seed=1), resume=True)
    file = tmp_path / "students" / SWEEP_CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"not a complete checkpoint .* delete it to start again"):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, resume=True)


def test_resuming_needs_the_same_texts_contexts_and_targets(
    bridge: Any, ids: torch.Tensor, sae: Any, tmp_path: Path
) -> None:
    """Only the learning rate may change."""
    kept = np.ones(sae.W_dec.shape[0], dtype=bool)
    target = KeptReconstruction(sae, kept, np.ones(len(kept)))
    spec = StudentSpec(8, match=Match("blocks.1.hook_resid_post", 1))

    options: dict[str, Any] = {"heldout": ids[:4], "out": tmp_path, "config": QUICK}
    with pytest.raises(KilledError):
        distill_students(bridge, [spec], ids, checkpoint_seconds=0.0, progress=kill, **options)
    for changed in ({"heldout": ids[4:8]}, {"heldout": ids[:3]}, {"heldout": None}):
        with pytest.raises(InputError, match="another text"):
            distill_students(bridge, [spec], ids, resume=True, **(options | changed))
    with pytest.raises(InputError, match="another text"):
        distill_students(bridge, [spec], ids[:, :16], resume=True, **(options | {"heldout": ids[:4, :16]}))
    with pytest.raises(InputError, match="another students"):
        distill_students(bridge, [dataclasses.replace(spec, target=target)], ids, resume=True, **options)
    slower = dataclasses.replace(QUICK, lr=1e-3)
    distill_students(bridge, [spec], ids, resume=True, **(options | {"config": slower}))


def test_saves_the_other_students_if_one_cannot_be_saved_and_resumes(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_student = student_results.save_student
    errors: dict[str, Exception] = {"width16": InputError("cannot write: no space left")}

    def save_on_full_disk(
        student: Any, files: Any, result: StudentResult, directory: Path, check: Any
    ) -> StudentResult:
        if directory.name in errors:
            raise errors[directory.name]
        return save_student(student, files, result, directory, check)

    specs = [StudentSpec(8), StudentSpec(16), StudentSpec(12)]
    monkeypatch.setattr(student_results, "save_student", save_on_full_disk)
    with pytest.raises(InputError, match=r"^cannot write: no space left; width8, width12 are saved$"):
        distill_students(bridge, specs, ids, out=tmp_path, config=QUICK)
    assert [student.name for student in load_students(tmp_path)] == ["width8", "width12"]
    errors["width16"] = RuntimeError("unexpected")
    with pytest.raises(RuntimeError, match=r"^unexpected$"):
        distill_students(bridge, specs, ids, out=tmp_path, config=QUICK, resume=True)
    errors.clear()
    students = distill_students(bridge, specs, ids, out=tmp_path, config=QUICK, resume=True)
    assert [student.width for student in students] == [8, 16, 12]
    assert {student.name: student for student in students} == {s.name: s for s in load_students(tmp_path)}
    assert [student.tokens[-1] for student in students] == [32 * 8 * 6] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from /proc")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_resumes_after_the_disk_was_full_at_a_diverged_student(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory without a result is left. The resumed training would try to load its result."""
    diverge_first_student(monkeypatch, from_step=3, n_active=2)
    fsync = os.fsync

    def fsync_on_full_disk(fd: int) -> None:
        if "student.json" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        fsync(fd)

    specs = [StudentSpec(8), StudentSpec(16)]
    monkeypatch.setattr(os, "fsync", fsync_on_full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        distill_students(bridge, specs, ids, out=tmp_path, config=QUICK)
    left = [path.name for path in (tmp_path / "students").iterdir() if path.name != LOCK_FILE]
    assert left == [SWEEP_CHECKPOINT_FILE]
    monkeypatch.setattr(os, "fsync", fsync)
    students = distill_students(bridge, specs, ids, out=tmp_path, config=QUICK, resume=True)
    assert [student.status for student in students] == ["diverged", "under-trained"]
    assert [student.name for student in load_students(tmp_path)] == ["width8", "width16"]


KILLED_TRAININGS = """
import os, signal, sys, time, torch
import warnings; warnings.simplefilter("ignore")
torch.set_num_threads(1)
from pathlib import Path
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.distilling.training.config import StudentSpec, DistillConfig
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE
teacher, ids, directory = sys.argv[1], torch.load(sys.argv[2], weights_only=True), Path(sys.argv[3])
config = DistillConfig(n_tokens=32 * 8 * 60, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)

def start_training(out):
    # Imports take longer than the training, so the processes share them.
    process = os.fork()
    if process == 0:
        specs = [StudentSpec(8), StudentSpec(16)]
        distill_students(teacher, specs, ids, out=out, config=config, resume=True, checkpoint_seconds=0.0)
        os._exit(0)
    return process

checkpoint = directory / "killed" / "students" / SWEEP_CHECKPOINT_FILE
for n_killed in range(4):
    before, deadline = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0, time.monotonic() + 120
    process = start_training(directory / "killed")
    while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.011 * n_killed)
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status), "the training ended before it was killed; train longer"
for run in ("killed", "uninterrupted"):
    assert os.waitpid(start_training(directory / run), 0)[1] == 0
"""


@pytest.mark.slow
def test_resumes_after_being_killed_by_the_system(teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    """The process is killed four times, each time a little later after a checkpoint was written."""
    script = tmp_path / "train.py"
    script.write_text(KILLED_TRAININGS)
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, script, teacher_dir, tmp_path / "ids.pt", tmp_path]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    for name in ("width8", "width16"):
        first, second = (saved_weights(tmp_path / run / "students" / name) for run in ("killed", "uninterrupted"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert {path.name for path in (tmp_path / "killed" / "students").glob(".*")} <= {LOCK_FILE}
