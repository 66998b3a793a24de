"""Distillation: the same losses however a batch is cut, killed or spread; students that plain transformers loads."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType

from tl_distill_floor.distilling import trainer as module
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.distill import distill, distill_students
from tl_distill_floor.distilling.matching import KeptPart, Match
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.storage.locks import LOCK_FILE
from tl_distill_floor.theory.learning_curve import LearningCurveFit

QUICK = DistillConfig(n_tokens=32 * 8 * 6, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)
"""6 steps of 8 sequences."""


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def changed(**given: Any) -> DistillConfig:
    return dataclasses.replace(QUICK, **given)


def assert_like(students: list[Path], ids: torch.Tensor) -> None:
    """Two students have the same learning curve and the same logits, but for rounding.

    Weights whose gradient is 0 but for rounding, such as the biases of keys, are moved by Adam all the same.
    """
    from transformers import AutoModelForCausalLM

    one, other = (StudentResult.load(student).losses for student in students)
    assert one == pytest.approx(other, rel=1e-4)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(student)(ids[:4]).logits for student in students]
    torch.testing.assert_close(*logits, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_four_parts_of_a_batch_equal_the_whole(bridge: Any, ids: torch.Tensor, tmp_path: Path, optimizer: str) -> None:
    match = Match("blocks.1.hook_resid_post", 1)
    for parts in (1, 4):
        training = changed(accumulate=parts, optimizer=optimizer)
        distill_students(
            bridge, [StudentSpec(8), StudentSpec(16, match=match)], ids, out=tmp_path / str(parts), config=training
        )
    for name in ("width8", "width16"):
        assert_like([tmp_path / parts / "students" / name for parts in ("1", "4")], ids)


def test_students_together_are_the_students_alone(bridge: Any, ids: torch.Tensor) -> None:
    together = distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, config=QUICK)
    alone = [distill(bridge, width, ids, config=QUICK) for width in (8, 16)]
    assert [s.losses for s in together] == [pytest.approx(s.losses, rel=1e-5) for s in alone]


def test_a_saved_student_is_a_plain_transformers_model(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """Its logits there give the loss that was reported, with counted tokens as in measuring."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = distill(bridge, 8, ids[:30], heldout=ids[30:34], out=tmp_path, config=QUICK)
    assert result.path is not None
    student, held = AutoModelForCausalLM.from_pretrained(result.path), ids[30:34]
    counts = held != 0
    counts[:, 0] = False
    with torch.no_grad():
        logits = student(held).logits
        loss = forward_kl(bridge(held), logits)[counts].mean()
        of_bridge = TransformerBridge.boot_transformers(result.path, device="cpu")(held)
    assert float(loss) == pytest.approx(result.loss, rel=1e-4)
    assert result.heldout_tokens == int(counts.sum())
    torch.testing.assert_close(of_bridge, logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(result.path)("a")["input_ids"] == bridge.tokenizer("a")["input_ids"]
    card = (Path(result.path) / "README.md").read_text()
    assert "8 dimensions wide" in card
    assert f"{result.loss:.4f} nats per token" in card
    assert load_students(tmp_path) == [result]


def test_training_lowers_the_loss(bridge: Any, ids: torch.Tensor) -> None:
    result = distill(bridge, 16, ids, heldout=ids, config=changed(n_tokens=32 * 8 * 60, lr=1e-2))
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.tokens[-1] == 32 * 8 * 60


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_killed_training_goes_on_to_the_same_weights(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, killed_after: int
) -> None:
    specs = [StudentSpec(8), StudentSpec(16, match=Match("blocks.1.hook_resid_post", 1), start="teacher-slice")]
    distill_students(bridge, specs, ids, out=tmp_path / "whole", config=QUICK)

    def kill(done: int, _total: int, _words: str) -> None:
        if done == killed_after * 8 * 32:
            raise KilledError

    options: dict[str, Any] = {"out": tmp_path / "killed", "config": QUICK, "checkpoint_seconds": 0.0}
    with pytest.raises(KilledError):
        distill_students(bridge, specs, ids, progress=kill, **options)
    with pytest.raises(InputError, match="holds an interrupted training; add --resume"):
        distill_students(bridge, specs, ids, **options)
    resumed = distill_students(bridge, specs, ids, resume=True, **options)

    for spec in specs:
        one, other = (weights(tmp_path / run / "students" / spec.directory) for run in ("whole", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert [s.losses for s in resumed] == [s.losses for s in load_students(tmp_path / "whole")]
    assert not (tmp_path / "killed" / "students" / module.PARTIAL_FILE).exists()


def test_a_checkpoint_of_another_training_is_refused(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    def kill(*_: Any) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, checkpoint_seconds=0.0, progress=kill)
    with pytest.raises(InputError, match="of a training with another students, seed; use the options"):
        distill(bridge, 16, ids, out=tmp_path, config=changed(seed=1), resume=True)
    file = tmp_path / "students" / module.PARTIAL_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"not a complete checkpoint .* delete it to start again"):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, resume=True)


def test_other_texts_contexts_and_targets_are_other_trainings(
    bridge: Any, ids: torch.Tensor, sae: Any, tmp_path: Path
) -> None:
    """Each by one difference; the learning rate alone may change."""
    kept = np.ones(sae.W_dec.shape[0], dtype=bool)
    part = KeptPart(sae, kept, np.ones(len(kept)), np.ones(len(kept)))
    spec = StudentSpec(8, match=Match("blocks.1.hook_resid_post", 1))

    def kill(*_: Any) -> None:
        raise KilledError

    options: dict[str, Any] = {"heldout": ids[:4], "out": tmp_path, "config": QUICK}
    with pytest.raises(KilledError):
        distill_students(bridge, [spec], ids, checkpoint_seconds=0.0, progress=kill, **options)
    for other in ({"heldout": ids[4:8]}, {"heldout": ids[:3]}, {"heldout": None}):
        with pytest.raises(InputError, match="another text"):
            distill_students(bridge, [spec], ids, resume=True, **(options | other))
    with pytest.raises(InputError, match="another text"):
        distill_students(bridge, [spec], ids[:, :16], resume=True, **(options | {"heldout": ids[:4, :16]}))
    with pytest.raises(InputError, match="another students"):
        distill_students(bridge, [dataclasses.replace(spec, target=part)], ids, resume=True, **options)
    slower = dataclasses.replace(QUICK, lr=1e-3)
    distill_students(bridge, [spec], ids, resume=True, **(options | {"config": slower}))


def test_a_disk_that_fills_at_the_second_student_loses_neither(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.save_student

    def full(student: Any, tokenizer: Any, result: StudentResult, directory: Path) -> StudentResult:
        if directory.name == "width16":
            raise InputError("cannot write: no space left")
        return whole(student, tokenizer, result, directory)

    specs = [StudentSpec(8), StudentSpec(16)]
    monkeypatch.setattr(module, "save_student", full)
    with pytest.raises(InputError, match="no space left"):
        distill_students(bridge, specs, ids, out=tmp_path, config=QUICK)
    monkeypatch.setattr(module, "save_student", whole)
    found = distill_students(bridge, specs, ids, out=tmp_path, config=QUICK, resume=True)
    assert found == load_students(tmp_path)
    assert [student.tokens[-1] for student in found] == [32 * 8 * 6] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="files are known by /proc")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_disk_that_fills_at_a_diverged_student_is_no_end(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no directory without a result, in which the resumed training would look for one."""
    losses, fsync = module.Sweep._losses, os.fsync

    def poisoned(sweep: Any, body: Any, rows: torch.Tensor) -> list[torch.Tensor]:
        found = losses(sweep, body, rows)
        return [found[0] * (float("nan") if len(found) == 2 and sweep.step >= 3 else 1.0), *found[1:]]

    def full(fd: int) -> None:
        if "student.json" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        fsync(fd)

    specs = [StudentSpec(8), StudentSpec(16)]
    monkeypatch.setattr(module.Sweep, "_losses", poisoned)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        distill_students(bridge, specs, ids, out=tmp_path, config=QUICK)
    left = [path.name for path in (tmp_path / "students").iterdir() if path.name != LOCK_FILE]
    assert left == [module.PARTIAL_FILE]
    monkeypatch.setattr(os, "fsync", fsync)
    found = distill_students(bridge, specs, ids, out=tmp_path, config=QUICK, resume=True)
    assert [student.status for student in found] == ["diverged", "under-trained"]
    assert [student.name for student in load_students(tmp_path)] == ["width8", "width16"]


def test_a_curve_that_ends_badly_keeps_its_weights(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose held-out loss rose is called diverged, and still lies there."""
    risen = LearningCurveFit(1.0, (0.0, 1.0), 0.0, 0.0, "diverged")
    monkeypatch.setattr(module, "fit_learning_curve", lambda _tokens, _losses: risen)
    result = distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    assert result.status == "diverged"
    assert weights(tmp_path / "students" / "width8")


def test_half_precision_comes_near(bridge: Any, ids: torch.Tensor) -> None:
    full, half = (distill(bridge, 16, ids, config=changed(dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert full.losses != half.losses
    assert half.loss == pytest.approx(full.loss, rel=0.02)


def test_what_lies_there_is_not_lost(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    with pytest.raises(InputError, match="holds width8 already; name another --out"):
        distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, out=tmp_path, config=QUICK)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_no_number_names_step_and_rate_and_keeps_the_checkpoint(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.Sweep._losses

    def poisoned(sweep: Any, body: Any, rows: torch.Tensor) -> list[torch.Tensor]:
        losses = whole(sweep, body, rows)
        return [losses[0] * (float("nan") if sweep.step >= 3 else 1.0), *losses[1:]]

    monkeypatch.setattr(module.Sweep, "_losses", poisoned)
    with pytest.raises(InputError, match=r"width8 at step 4 \(loss nan, learning rate 0.003\); the last .* try --lr"):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, checkpoint_seconds=0.0)
    assert (tmp_path / "students" / module.PARTIAL_FILE).exists()

    seen: list[int] = []

    def first_only(sweep: Any, body: Any, rows: torch.Tensor) -> list[torch.Tensor]:
        losses = whole(sweep, body, rows)
        seen.append(len(losses))
        return [losses[0] * (float("nan") if len(losses) == 2 and sweep.step >= 3 else 1.0), *losses[1:]]

    monkeypatch.setattr(module.Sweep, "_losses", first_only)
    lost, fine = distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, out=tmp_path / "two", config=QUICK)
    assert (lost.status, fine.status, seen) == ("diverged", "under-trained", [2, 2, 2, 2, 1, 1])
    assert "step 4" in lost.settings["diverged"]


def test_a_student_without_a_single_loss_is_no_result(bridge: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="training diverged: width8 at step 1 "):
        distill(bridge, 8, ids, config=changed(lr=float("1e30"), optimizer="adamw", warmup=0.0, n_tokens=32 * 8 * 40))


def test_the_teacher_leaves_as_it_came(bridge: Any, ids: torch.Tensor) -> None:
    hooks = {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()}
    grads = {name: (weight.requires_grad, weight.grad) for name, weight in bridge.named_parameters()}
    before = {name: weight.clone() for name, weight in bridge.named_parameters()}
    distill(bridge, 8, ids, config=QUICK)
    assert hooks == {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()}
    assert grads == {name: (weight.requires_grad, weight.grad) for name, weight in bridge.named_parameters()}
    assert all(torch.equal(before[name], weight) for name, weight in bridge.named_parameters())


@pytest.mark.parametrize(
    ("specs", "given", "message"),
    [
        (
            [StudentSpec(8)],
            {"batch_size": 64},
            "holds 36 sequences of 32 tokens to train on, a batch is 64; give more text",
        ),
        ([StudentSpec(8)], {"accumulate": 3}, "a batch of 8 sequences cannot be cut into 1 processes times 3 parts"),
        ([StudentSpec(8), StudentSpec(8)], {}, "every student needs a name of its own, got width8, width8"),
        ([StudentSpec(8, match=Match("blocks.9.hook_resid_post", 0))], {}, "the model has layers 0 to 2, got layer 9"),
        (
            [StudentSpec(8, match=Match("blocks.1.hook_resid_post", 7))],
            {},
            "the student has layers 0 to 2, got layer 7",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    bridge: Any, ids: torch.Tensor, specs: list[StudentSpec], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distill_students(bridge, specs, ids, config=changed(**given))


def test_a_token_beyond_the_vocabulary_is_refused(bridge: Any, ids: torch.Tensor) -> None:
    wrong = ids.clone()
    wrong[3, 3] = 300
    with pytest.raises(InputError, match="token id 300, the teacher's vocabulary ends at 299"):
        distill(bridge, 8, wrong, config=QUICK)


def test_the_kept_part_counts_errors_by_their_cost(sae: Any) -> None:
    """The squared length of the target of one active feature is its cost per square, times the square."""
    n, d = sae.W_dec.shape
    cost, mean_square = np.linspace(1.0, 2.0, n), np.full(n, 0.5)
    kept = np.zeros(n, dtype=bool)
    kept[[3, 7]] = True
    part = KeptPart(sae, kept, cost, mean_square)
    act = torch.randn(5, d, generator=torch.Generator().manual_seed(0)) * 3
    target = part(act)
    codes = (sae.encode(act) * torch.from_numpy(kept)).detach().double()
    rows = sae.W_dec.detach().double()
    # By hand: xᵀ Σ ρ_i ŵ_i ŵ_iᵀ x of the reconstruction x, ρ_i = cost_i / 0.5.
    x = codes @ rows
    along = x @ torch.nn.functional.normalize(rows, dim=1).T
    expected = (along[:, [3, 7]].square() * torch.from_numpy(cost / 0.5)[[3, 7]]).sum(1)
    torch.testing.assert_close(target.double().square().sum(1), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="holds no feature"):
        KeptPart(sae, np.zeros(n, dtype=bool), cost, mean_square)


def test_matching_needs_a_weight_and_falls_to_its_end() -> None:
    assert [Match("h", 0, weight=2.0, until=0.5).weight_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [2, 1, 0, 0]
    with pytest.raises(InputError, match="weight above 0"):
        Match("h", 0, weight=0.0)


def test_the_schedule_by_hand() -> None:
    training = DistillConfig(lr=1.0, warmup=0.1, decay=0.2)
    # 100 steps: rises over 10, is 1, falls over the last 20: step 90 has 10 of 20 left.
    assert [training.lr_at(step, 100) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 0.5, 0.05]
    )
    assert DistillConfig(lr=1.0, warmup=0.0, schedule="cosine").lr_at(50, 100) == pytest.approx(0.5)


PROCESSES = """
import sys, torch
torch.set_num_threads(1)
import warnings; warnings.simplefilter("ignore")
from tl_distill_floor.distilling.distill import distill_students
from tl_distill_floor.distilling.config import StudentSpec, DistillConfig
from tl_distill_floor.distilling.matching import Match
sizes = {"n_tokens": 32 * 8 * 6, "batch_size": 8, "n_evaluations": 3, "n_heldout_tokens": 128}
training = DistillConfig(**sizes, early_stop=False, accumulate=2)
ids = torch.load(sys.argv[2], weights_only=True)
match = Match("blocks.1.hook_resid_post", 1)
distill_students(sys.argv[1], [StudentSpec(8), StudentSpec(16, match=match)], ids, out=sys.argv[3], config=training)
"""


@pytest.mark.slow
def test_two_processes_equal_one(teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROCESSES)
    torch.save(ids, tmp_path / "ids.pt")
    for n, launcher in ((1, []), (2, ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"])):
        command = [sys.executable, *launcher, script, teacher_dir, tmp_path / "ids.pt", tmp_path / str(n)]
        subprocess.run([str(part) for part in command], check=True, timeout=300)
    for name in ("width8", "width16"):
        assert_like([tmp_path / n / "students" / name for n in ("1", "2")], ids)


KILLED = """
import sys, torch
import warnings; warnings.simplefilter("ignore")
torch.set_num_threads(1)
from tl_distill_floor.distilling.distill import distill_students
from tl_distill_floor.distilling.config import StudentSpec, DistillConfig
training = DistillConfig(n_tokens=32 * 8 * 300, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)
ids = torch.load(sys.argv[2], weights_only=True)
specs = [StudentSpec(8), StudentSpec(16)]
distill_students(sys.argv[1], specs, ids, out=sys.argv[3], config=training, resume=True, checkpoint_seconds=0.0)
"""


@pytest.mark.slow
def test_killed_by_the_system_at_any_moment(teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    """SIGKILL again and again, each time a little later after the checkpoint moved on, until a run ends by itself."""
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    torch.save(ids, tmp_path / "ids.pt")
    partial, kills = tmp_path / "killed" / "students" / module.PARTIAL_FILE, 0
    while kills < 4:
        process = subprocess.Popen(
            [sys.executable, script, teacher_dir, tmp_path / "ids.pt", tmp_path / "killed"], stderr=subprocess.DEVNULL
        )
        before, deadline = partial.stat().st_mtime_ns if partial.exists() else 0, time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if partial.exists() and partial.stat().st_mtime_ns != before:
                time.sleep(0.011 * kills)
                process.kill()
            time.sleep(0.001)
        assert process.wait() == -9, "it ended before it was killed; train for longer"
        kills += 1
    for run in ("killed", "whole"):
        command = [sys.executable, script, teacher_dir, tmp_path / "ids.pt", tmp_path / run]
        subprocess.run(command, check=True, timeout=300, stderr=subprocess.DEVNULL)
    for name in ("width8", "width16"):
        one, other = (weights(tmp_path / run / "students" / name) for run in ("killed", "whole"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list((tmp_path / "killed" / "students").glob(".*"))


def test_teachers_are_loaded_by_name(teacher_dir: Path, ids: torch.Tensor) -> None:
    assert distill(str(teacher_dir), 8, ids, config=QUICK).teacher == load_teacher(str(teacher_dir)).name


@pytest.mark.parametrize("sharding", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_students_whose_weights_are_sharded_are_refused(
    teacher_dir: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, sharding: DistributedType
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", sharding)
    with pytest.raises(InputError, match=f"not trained under {sharding.value}: they are narrower"):
        distill(teacher_dir, 8, ids)
