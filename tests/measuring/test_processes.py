"""Several processes that read one text: results identical to those of one process, and failures."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl_distill_floor.annotations import CostMethod
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring import batch_loop, processes
from tl_distill_floor.measuring.batch_sums import batch_sums
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.costs import COST_METHODS
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.measuring.processes import SINGLE_PROCESS, ProcessGroup
from tl_distill_floor.measuring.token_stream import CachedActivationStream
from tl_distill_floor.results.feature_sums import SUMS, pack_sums, unpack_sums
from tl_distill_floor.storage.locks import LOCK_FILE

OPTIONS = ("--tokens", "1600", "--batch-size", "2", "--widths", "4,8", "--steps", "20")


def launch(n: int, command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module or a script in n processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", n] if n > 1 else []
    return subprocess.run(
        [sys.executable, *map(str, [*launcher, *command])],
        capture_output=True, text=True, timeout=300, env=os.environ | environment, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "n_processes"), [("energy", 3), ("fisher", 2)])
def test_files_do_not_depend_on_the_number_of_processes(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, cost: str, n_processes: int
) -> None:
    for n in (1, n_processes):
        command = ["-m", "tl_distill_floor", "measure", teacher_dir, "--sae", sae_dir, "--text", prose_file]
        out = launch(n, [*command, *OPTIONS, "--cost", cost, "--out", tmp_path / str(n)])
        assert out.returncode == 0, out.stderr
        assert out.stdout.count("Feature floor (") == 1
    names = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert "stats.safetensors" in names
    assert sorted(file.name for file in (tmp_path / str(n_processes)).iterdir()) == names
    for name in names:
        assert (tmp_path / str(n_processes) / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name


SCRIPT_THAT_DIES = """
import os, sys, torch
torch.set_num_threads(1)
from tl_distill_floor.measuring import batch_loop
if os.environ.get("RANK") == "1":
    batch_sums, n_calls_left = batch_loop.batch_sums, [3]
    def batch_sums_until_death(*args):
        n_calls_left[0] -= 1
        if not n_calls_left[0]:
            os._exit(9)
        return batch_sums(*args)
    batch_loop.batch_sums = batch_sums_until_death
from tl_distill_floor.cli.app import main
sys.argv = ["tl-floor", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_run_ends_if_a_process_dies_and_can_be_resumed(
    teacher_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(SCRIPT_THAT_DIES)
    command = ["measure", teacher_dir, "--sae", sae_dir, "--text", prose_file, *OPTIONS]
    dead = launch(2, [script, *command, "--out", tmp_path / "two"])
    assert dead.returncode != 0
    # On a busy machine the launcher may end the first process before it has said so.
    assert "process 1 of this run ended, so this one ends too" in dead.stderr or "closing signal" in dead.stderr
    remaining = [file.name for file in (tmp_path / "two").iterdir() if file.name != LOCK_FILE]
    assert remaining == ["partial.safetensors"]
    resumed = launch(3, ["-m", "tl_distill_floor", *command, "--out", tmp_path / "two", "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert launch(1, ["-m", "tl_distill_floor", *command, "--out", tmp_path / "one"]).returncode == 0
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_received_sums_are_identical_to_the_sent_ones(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    job = prepare_job(bridge, [sae, sae], ids, LoadConfig(batch_size=4))
    with COST_METHODS["energy"].open_reader(job, 0) as read_batch:
        first, rows = next(iter(job.token_stream.batches(0, 128)))
        sent = [
            batch_sums(job.saes[0], batch, "energy", share)
            for batch, share in zip(read_batch(first, rows), (1.0, 0.0), strict=True)
        ]
    received = unpack_sums(pack_sums(sent))
    assert [len(sums.codes) for sums in received] == [1, 0]
    for one, other in zip(sent, received, strict=True):
        for name in SUMS:
            assert type(getattr(other, name)) is type(getattr(one, name)), name
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    for record, expected in (
        (received[0].codes[0], sent[0].codes[0]),
        (received[0].contexts, sent[0].finished_contexts()),
    ):
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(record, name), value)


def test_tasks_are_distributed_and_results_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes run one after the other and keep their messages in lists; the last of the rounds is not full."""
    sent: dict[int, list[dict[str, np.ndarray]]] = {1: [], 2: []}
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def run(rank: int) -> list[int]:
        monkeypatch.setattr(processes, "_send", lambda arrays: sent[rank].append(arrays))
        monkeypatch.setattr(processes, "_receive", lambda other: sent[other].pop(0))
        group = ProcessGroup(rank, 3)
        squares = partial(square_all, done[rank])
        return list(
            group.run_in_order(
                iter(range(7)), squares, lambda i: {"i": np.array([i])}, lambda arrays: int(arrays["i"][0])
            )
        )

    assert run(1) == run(2) == []
    assert run(0) == [i * i for i in range(7)]
    assert done == {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}
    assert list(SINGLE_PROCESS.run_in_order(iter([5]), partial(square_all, []), lambda i: {}, lambda arrays: 0)) == [25]


@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_results_are_the_same_if_the_next_batch_is_read_first(
    cost: CostMethod, bridge: Any, sae: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the forward pass of the next batch is started before the codes of a batch are summed."""
    job = prepare_job(bridge, [sae, sae], ids, LoadConfig(batch_size=4))
    config = MeasureConfig(cost=cost, n_tokens=ids.numel(), n_cost_tokens=ids.numel() // 4)
    expected = measure_job(job, config)
    order: list[str] = []
    monkeypatch.setattr(batch_loop, "is_gpu", lambda _device: True)
    for name in ("encode_batch", "batch_sums"):
        monkeypatch.setattr(batch_loop, name, recorded(order, getattr(batch_loop, name)))
    for one, other in zip(measure_job(job, config), expected, strict=True):
        np.testing.assert_array_equal(one.firing_count, other.firing_count)
        np.testing.assert_array_equal(one.sums.sum_cost, other.sums.sum_cost)
        np.testing.assert_array_equal(one.codes.feature, other.codes.feature)
        np.testing.assert_array_equal(one.contexts.window, other.contexts.window)
    n_batches = len(ids) // 4
    assert order == n_batches * ["encode_batch", "batch_sums", "batch_sums"]


def recorded(order: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes its name before it runs."""

    def run(*arguments: Any) -> Any:
        order.append(function.__name__)
        return function(*arguments)

    return run


def square_all(done: list[int], numbers: Iterator[int]) -> Iterator[int]:
    """Yield squares, each after the next number was read."""
    waiting: list[int] = []
    for number in numbers:
        done.append(number)
        if waiting:
            yield waiting.pop() ** 2
        waiting.append(number)
    for number in waiting:
        yield number**2


def test_rejects_cached_activations_in_several_processes(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    import dataclasses

    job = prepare_job(bridge, [sae], ids)
    cached = CachedActivationStream(job.stream.text, job.saes[0].hook_name, job.stream.batch_size)
    job = dataclasses.replace(job, stream=cached)
    with pytest.raises(InputError, match="cached activations are read by one process"):
        measure_job(job, MeasureConfig(), process_group=ProcessGroup(0, 2))


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_without_a_launcher(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster may set WORLD_SIZE for its own purposes."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.current_process_group.__wrapped__() == SINGLE_PROCESS


def test_error_names_the_process_that_ended() -> None:
    with pytest.raises(InputError, match="process 1 of this run ended"), processes._report_lost_process(1):
        raise RuntimeError("Connection closed by peer")
    assert processes.current_process_group() == SINGLE_PROCESS
