"""What is written takes its place whole, several files together, and one command at a time works in a directory."""

import os
from pathlib import Path

import pytest

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.atomic import atomic_directory, commit_together, write_atomically
from tl_distill_floor.storage.locks import LOCK_FILE, lock_directory


def test_files_take_their_places_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_atomically(tmp_path / name, b"old")
    (tmp_path / "file").write_text("")

    def write(last: Path) -> None:
        with commit_together():
            write_atomically(tmp_path / "a", b"new")
            write_atomically(tmp_path / "b", b"new")
            assert (tmp_path / "a").read_bytes() == b"old"
            write_atomically(last, b"new")

    with pytest.raises(InputError, match=r"cannot write .*file/c: .*; free some space or name another place"):
        write(tmp_path / "file" / "c")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old", "file": b""}
    write(tmp_path / "c")
    assert [(tmp_path / name).read_bytes() for name in ("a", "b", "c")] == [b"new"] * 3
    assert len(list(tmp_path.iterdir())) == 4


def test_a_directory_takes_its_place_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, hidden = tmp_path / "made", tmp_path / ".made.tl-floor"
    (hidden / "half").mkdir(parents=True)  # of one that was killed
    (hidden / "file").write_text("half")
    with atomic_directory(place) as partial:
        assert [path.name for path in partial.iterdir()] == [LOCK_FILE]
        (partial / "file").write_text("whole")
        assert not place.exists()
        with pytest.raises(InputError, match=r"another command is at work in .*/made; wait"), atomic_directory(place):
            pass
    assert [path.name for path in place.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [place]

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(InputError, match=r"cannot write .*other: No space left"),
        atomic_directory(tmp_path / "other") as partial,
    ):
        (partial / "file").write_text("whole")
    assert list(tmp_path.iterdir()) == [place]


def test_where_one_stands_is_a_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("file").write_text("")
    with pytest.raises(InputError, match=r"cannot write \."), atomic_directory(Path(".")):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "file"]


def test_what_killed_writes_left_goes_and_directories_of_others_stay(tmp_path: Path) -> None:
    left, others, foreign = (
        tmp_path / name for name in (".stats.safetensors.x1.tl-floor", ".b.tl-floor", ".c.partial")
    )
    left.write_text("half")
    foreign.write_text("")
    with atomic_directory(tmp_path / "b"), lock_directory(tmp_path):
        assert sorted(tmp_path.iterdir()) == [others, foreign, tmp_path / LOCK_FILE]


def test_directories_that_stay_empty_go(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with lock_directory(tmp_path / "old" / "a" / "b"):
        write_atomically(tmp_path / "old" / "a" / "c", b"")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "a", "c"]


def test_an_error_that_is_not_the_disks_is_not_called_so(tmp_path: Path) -> None:
    from tl_distill_floor.storage.io_errors import report_io_errors

    with pytest.raises(KeyError), report_io_errors(tmp_path):
        raise KeyError("a mistake")
    with (
        pytest.raises(InputError, match=r"cannot write .*: No space left on device \(os error 28\)"),
        report_io_errors(tmp_path),
    ):
        raise RuntimeError("No space left on device (os error 28)")  # as tokenizers has it
