"""Several processes that read one text: the result of one, whatever their number, and what one that dies leaves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring import processes as module
from tl_distill_floor.measuring.batch_sums import batch_sums
from tl_distill_floor.measuring.costs import COST_METHODS
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_subject
from tl_distill_floor.measuring.processes import SINGLE_PROCESS, ProcessGroup
from tl_distill_floor.measuring.token_stream import CachedActivationStream
from tl_distill_floor.results.feature_sums import packed, unpacked
from tl_distill_floor.storage.locks import LOCK_FILE

OPTIONS = ("--tokens", "1600", "--batch-size", "2", "--widths", "4,8", "--steps", "20")


def launched(n: int, command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """A module or a script, in n processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", n] if n > 1 else []
    return subprocess.run(
        [sys.executable, *map(str, [*launcher, *command])],
        capture_output=True, text=True, timeout=300, env=os.environ | environment, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_any_number_of_processes_gives_the_same_files(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, cost: str
) -> None:
    for n in (1, 2, 3):
        command = ["-m", "tl_distill_floor", "measure", teacher_dir, "--sae", sae_dir, "--text", prose_file]
        out = launched(n, [*command, *OPTIONS, "--cost", cost, "--out", tmp_path / str(n)])
        assert out.returncode == 0, out.stderr
        assert out.stdout.count("Loss floor") == 1
    names = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert "stats.safetensors" in names
    for n in (2, 3):
        assert sorted(file.name for file in (tmp_path / str(n)).iterdir()) == names
        for name in names:
            assert (tmp_path / str(n) / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name


DYING = """
import os, sys, torch
torch.set_num_threads(1)
from tl_distill_floor.measuring import measurement as features
if os.environ.get("RANK") == "1":
    sums, left = features.batch_sums, [3]
    def dies(*given):
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return sums(*given)
    features.batch_sums = dies
from tl_distill_floor.cli.app import main
sys.argv = ["tl-floor", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_one_process_that_dies_ends_the_run_and_loses_nothing(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    command = ["measure", teacher_dir, "--sae", sae_dir, "--text", prose_file, *OPTIONS]
    died = launched(2, [script, *command, "--out", tmp_path / "two"])
    assert died.returncode != 0
    assert "process 1 of this run ended, so this one ends too" in died.stderr
    left = [file.name for file in (tmp_path / "two").iterdir() if file.name != LOCK_FILE]
    assert left == ["partial.safetensors"]
    again = launched(3, ["-m", "tl_distill_floor", *command, "--out", tmp_path / "two", "--resume"])
    assert again.returncode == 0, again.stderr
    assert launched(1, ["-m", "tl_distill_floor", *command, "--out", tmp_path / "one"]).returncode == 0
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_what_is_sent_is_what_is_received(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    job = prepare_job(bridge, [sae, sae], ids, batch_size=4)
    with COST_METHODS["energy"].run(job, 0) as step:
        first, rows = next(iter(job.token_stream.batches(0, 128)))
        parts = [
            batch_sums(job.saes[0], batch, "energy", share)
            for batch, share in zip(step(first, rows), (1.0, 0.0), strict=True)
        ]
    again = unpacked(packed(parts))
    assert [part.codes is None for part in again] == [False, True]
    for part, same in zip(parts, again, strict=True):
        assert part.sums.keys() == same.sums.keys()
        for name, value in part.sums.items():
            assert type(same.sums[name]) is type(value), name
            np.testing.assert_array_equal(same.sums[name], value)
    for kind in ("codes", "contexts"):
        one, other = (getattr(found[0], kind) for found in (parts, again))
        for name, value in vars(one).items():
            np.testing.assert_array_equal(getattr(other, name), value)


def test_tasks_are_shared_out_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes after one another, whose messages wait in a list: seven tasks, the last round not full."""
    sent: dict[int, list[dict[str, np.ndarray]]] = {1: [], 2: []}
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def run(rank: int) -> list[int]:
        monkeypatch.setattr(module, "_send", lambda arrays: sent[rank].append(arrays))
        monkeypatch.setattr(module, "_received", lambda other: sent[other].pop(0))
        tasks = (lambda i=i: done[rank].append(i) or i * i for i in range(7))
        return list(ProcessGroup(rank, 3).in_turn(tasks, lambda i: {"i": np.array([i])}, lambda a: int(a["i"][0])))

    assert run(1) == run(2) == []
    assert run(0) == [i * i for i in range(7)]
    assert done == {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}
    assert list(SINGLE_PROCESS.in_turn(iter([lambda: 5]), lambda i: {}, lambda a: 0)) == [5]


def test_cached_activations_take_one_process(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    import dataclasses

    job = prepare_job(bridge, [sae], ids)
    cached = CachedActivationStream(job.stream.text, job.saes[0].hook_name, job.stream.batch_size)
    job = dataclasses.replace(job, stream=cached)
    with pytest.raises(InputError, match="cached activations are read by one process"):
        measure_subject(job, everyone=ProcessGroup(0, 2))


def test_a_process_that_is_gone_is_named() -> None:
    with pytest.raises(InputError, match="process 1 of this run ended"), module._together(1):
        raise RuntimeError("Connection closed by peer")
    assert module.current_process_group() == SINGLE_PROCESS
