"""Tests that files and directories are written completely or not at all, and that a lock keeps other commands out."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.atomic import atomic_directory, commit_together, remove_file, write_atomically
from tl_distill_floor.storage.io_errors import report_io_errors
from tl_distill_floor.storage.locks import LOCK_FILE, lock_directory
from tl_distill_floor.storage.versioned import save_arrays


def fail_as_a_full_disk(_fd: int) -> None:
    """Raise the error that the operating system raises if the disk is full."""
    raise OSError(28, "No space left on device")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_atomically(tmp_path / "a.json", b"old")
    monkeypatch.setattr(os, "fsync", fail_as_a_full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_function_can_write_the_content(tmp_path: Path) -> None:
    target = write_atomically(tmp_path / "a.bin", lambda partial: partial.write_bytes(b"new"))
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == write_atomically(tmp_path / "b", b"").stat().st_mode & 0o777

    def fail_halfway(partial: Path) -> None:
        partial.write_bytes(b"ha")
        fail_as_a_full_disk(0)

    with pytest.raises(InputError, match="No space left"):
        write_atomically(target, fail_halfway)
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b"]


def test_files_written_together_are_renamed_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_atomically(tmp_path / name, b"old")
    (tmp_path / "file").write_text("")

    def write(last: Path) -> None:
        with commit_together():
            write_atomically(tmp_path / "a", b"new")
            write_atomically(tmp_path / "b", b"new")
            assert (tmp_path / "a").read_bytes() == b"old"
            write_atomically(last, b"new")

    with pytest.raises(InputError, match=r"cannot write .*file/c: .*; free some space or name another directory"):
        write(tmp_path / "file" / "c")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old", "file": b""}
    write(tmp_path / "c")
    assert [(tmp_path / name).read_bytes() for name in ("a", "b", "c")] == [b"new"] * 3
    assert len(list(tmp_path.iterdir())) == 4


def test_a_directory_is_created_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, hidden = tmp_path / "made", tmp_path / ".made.tl-floor"
    (hidden / "half").mkdir(parents=True)  # left by a killed command
    (hidden / "file").write_text("half")
    with atomic_directory(target) as partial:
        assert [path.name for path in partial.iterdir()] == [LOCK_FILE]
        (partial / "file").write_text("complete")
        assert not target.exists()
        with pytest.raises(InputError, match=r"another command is at work in .*/made; wait"), atomic_directory(target):
            pass
    assert [path.name for path in target.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [target]

    monkeypatch.setattr(os, "fsync", fail_as_a_full_disk)
    with (
        pytest.raises(InputError, match=r"cannot write .*other: No space left"),
        atomic_directory(tmp_path / "other") as partial,
    ):
        (partial / "file").write_text("complete")
    assert list(tmp_path.iterdir()) == [target]


def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("file").write_text("")
    with pytest.raises(InputError, match=r"cannot write \."), atomic_directory(Path(".")):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "file"]


def test_a_lock_removes_unfinished_files_but_no_locked_directories(tmp_path: Path) -> None:
    unfinished, locked, foreign = (
        tmp_path / name for name in (".stats.safetensors.x1.tl-floor", ".b.tl-floor", ".c.partial")
    )
    unfinished.write_text("half")
    foreign.write_text("")
    with atomic_directory(tmp_path / "b"), lock_directory(tmp_path):
        assert sorted(tmp_path.iterdir()) == [locked, foreign, tmp_path / LOCK_FILE]


def test_directories_created_by_a_lock_are_removed_if_empty(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with lock_directory(tmp_path / "old" / "a" / "b"):
        write_atomically(tmp_path / "old" / "a" / "c", b"")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "a", "c"]


def test_removing_a_file_removes_its_unfinished_writes(tmp_path: Path) -> None:
    for name in ("partial.safetensors", ".partial.safetensors.ab12", "other.safetensors", ".other.safetensors.cd34"):
        (tmp_path / name).write_bytes(b"")
    remove_file(tmp_path / "partial.safetensors")
    remove_file(tmp_path / "partial.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.safetensors.cd34", "other.safetensors"]


def test_only_errors_of_the_operating_system_are_reported_as_failed_writes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), report_io_errors(tmp_path):
        raise KeyError("a mistake")
    with (
        pytest.raises(InputError, match=r"cannot write .*: No space left on device \(os error 28\)"),
        report_io_errors(tmp_path),
    ):
        raise RuntimeError("No space left on device (os error 28)")  # as the tokenizers library raises it


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        file = save_arrays(tmp_path / "a.safetensors", "kind", {"x": np.zeros(3)}, {})
        with atomic_directory(tmp_path / "directory") as partial:
            save_file({"x": np.zeros(3)}, partial / "model.safetensors")
    finally:
        os.umask(before)
    for path in (file, tmp_path / "directory" / "model.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    file = tmp_path / "floor.json"
    file.touch()
    with (
        pytest.raises(InputError, match=f"{file} is a file; name a directory, such as {tmp_path}$"),
        lock_directory(file),
    ):
        pass


def test_advice_on_a_new_directory_is_that_of_its_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for advice in ("name another directory with out=", "name another directory"):
        with pytest.raises(InputError, match=f"{advice}$"), atomic_directory(tmp_path / "file" / "new", advice):
            pass
