"""Sharded trainings: the students of several processes equal those of one, and each resumes what another left."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.helpers.forked_processes import run_in_processes
from tests.helpers.models import save_family
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill, distill_students
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.distilling.training.sharding import ShardedMuon, launched_with_fsdp
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.results.student import StudentResult

BATCH, LENGTH = 12, 32
CONFIG = DistillConfig(
    n_tokens=LENGTH * BATCH * 50,
    batch_size=BATCH,
    n_evaluations=4,
    # 33 sequences: of two processes, one needs two forward passes for them, and the other one.
    n_heldout_tokens=LENGTH * 33,
    early_stop=False,
)
"""50 steps."""
SHORT = dataclasses.replace(CONFIG, n_tokens=LENGTH * BATCH * 8, accumulate=2)
"""8 steps."""
SPECS = [StudentSpec(16), StudentSpec(8, start="random", match=Match("blocks.1.hook_resid_post", 1))]
FAMILIES = {
    "gpt2-tied": ("GPT2", "LMHeadModel", True, CONFIG),
    "gpt2-untied": ("GPT2", "LMHeadModel", False, SHORT),
    "llama-tied": ("Llama", "ForCausalLM", True, dataclasses.replace(SHORT, optimizer="adamw")),
    "llama-untied": ("Llama", "ForCausalLM", False, SHORT),
}
"""For each teacher: its family, the rest of the class name, whether its embeddings are tied, and the training."""


class KilledError(Exception):
    """Interrupts a training."""


@pytest.fixture(scope="module")
def root(teacher_dir: Path, tokenizer: Any, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the teachers and the token ids, and return their directory."""
    directory = tmp_path_factory.mktemp("sharded")
    (directory / "neox").symlink_to(teacher_dir)
    for name, (family, head, is_tied, _config) in FAMILIES.items():
        save_family(directory / name, tokenizer, family, head=head, tie_word_embeddings=is_tied)
    torch.save(torch.cat([ids] * 9), directory / "ids.pt")
    return directory


def train(root: Path, name: str, config: DistillConfig | None = None, **options: Any) -> list[list[float]]:
    """Train students of a teacher, two of neox and one of the others, and return their learning curves."""
    specs, config_of_teacher = (SPECS, CONFIG) if name == "neox" else (SPECS[:1], FAMILIES[name][3])
    ids = torch.load(root / "ids.pt", weights_only=True)
    students = distill_students(str(root / name), specs, ids, config=config or config_of_teacher, **options)
    return [list(student.losses) for student in students]


def interrupt(root: Path, out: Path, **options: Any) -> None:
    """Begin a training, and leave a checkpoint of its first 5 steps."""

    def kill(n_tokens: int, _total: int, _message: str) -> None:
        if n_tokens == 5 * BATCH * LENGTH:
            raise KilledError

    with pytest.raises(KilledError):
        train(root, "gpt2-tied", SHORT, out=out, progress=kill, checkpoint_seconds=0.0, **options)


@pytest.mark.slow
def test_sharded_students_have_the_losses_of_one_process(root: Path) -> None:
    expected = {name: train(root, name) for name in ("neox", *FAMILIES)}
    of_processes = {
        2: run_in_processes(
            2, lambda _rank: {name: train(root, name, shard=True) for name in expected if name != "gpt2-tied"}
        ),
        3: run_in_processes(3, lambda _rank: {"gpt2-tied": train(root, "gpt2-tied", shard=True)}),
    }
    for n, (first, *others) in of_processes.items():
        assert all(other == first for other in others)
        for name, curves in first.items():
            for curve, of_one in zip(curves, expected[name], strict=True):
                assert len(curve) == len(of_one) >= 3
                assert curve == pytest.approx(of_one, rel=1e-4), (n, name)


@pytest.mark.slow
def test_resumes_with_another_number_of_processes(root: Path) -> None:
    """One process is resumed by two, two by three, and two by one. The students are saved, and equal in all runs."""
    expected = train(root, "gpt2-tied", SHORT)
    interrupt(root, root / "one-two")
    resume = partial(train, root, "gpt2-tied", SHORT, resume=True)

    def resume_and_interrupt(_rank: int) -> list[list[float]]:
        interrupt(root, root / "two-three", shard=True)
        interrupt(root, root / "two-one", shard=True)
        return resume(out=root / "one-two", shard=True)

    curves = {"one-two": run_in_processes(2, resume_and_interrupt)[0]}
    curves["two-three"] = run_in_processes(3, lambda _rank: resume(out=root / "two-three", shard=True))[0]
    curves["two-one"] = resume(out=root / "two-one")
    for run, (curve,) in curves.items():
        assert curve == pytest.approx(expected[0], rel=1e-4), run
        assert list(StudentResult.load(root / run / "students" / "width16").losses) == curve


def test_muon_of_sharded_matrices_equals_that_of_full_ones() -> None:
    """The rows of the matrix are in two processes, of which one has a row more; three steps are compared."""
    random = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 5, 3, generator=random)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5, "adjust_lr_fn": "match_rms_adamw"}

    def matrix_after(optimizer: type[torch.optim.Muon], place: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        matrix = torch.nn.Parameter(place(start.clone()))
        muon = optimizer([matrix], **options)
        for gradient in gradients:
            matrix.grad = place(gradient)
            muon.step()
        return matrix.detach()

    def sharded(_rank: int) -> list[list[float]]:
        mesh = init_device_mesh("cpu", (Accelerator(cpu=True).num_processes,))
        matrix = matrix_after(ShardedMuon, lambda full: distribute_tensor(full, mesh, [Shard(0)]))
        assert isinstance(matrix, DTensor)
        return matrix.full_tensor().tolist()

    expected = matrix_after(torch.optim.Muon, lambda full: full)
    for result in run_in_processes(2, sharded):
        torch.testing.assert_close(torch.tensor(result), expected, rtol=1e-6, atol=1e-6)


def test_skipping_the_unembedding_changes_nothing(bridge: Any, ids: torch.Tensor) -> None:
    hook = "blocks.1.hook_resid_post"
    with teacher_backbone(bridge, hook) as stopping:
        stopped = stopping(ids[:3])
    with teacher_backbone(bridge, hook, runs_to_end=True) as running:
        ran = running(ids[:3])
        logits = running.logits(ran.last_hidden.flatten(0, 1)).compute(slice(0, 5))
    assert torch.equal(stopped.last_hidden, ran.last_hidden)
    assert torch.equal(stopped.matched, ran.matched)
    torch.testing.assert_close(logits, bridge(ids[:3]).flatten(0, 1)[:5])


def test_refuses_what_cannot_be_sharded(bridge: Any, teacher_dir: Path, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="there is one process, so nothing is sharded; start several with torchrun"):
        distill(teacher_dir, 8, ids, shard=True)

    def in_memory(_rank: int) -> str:
        return distill(bridge, 8, ids, shard=True).name

    assert all(message.startswith("a teacher in memory is not sharded") for message in run_in_processes(2, in_memory))


def test_fsdp_of_accelerate_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched_with_fsdp()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="not trained under FSDP version 1; start accelerate with --fsdp_version 2"):
        launched_with_fsdp()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launched_with_fsdp()
