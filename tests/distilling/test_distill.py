"""Tests of the training of students: equal results with parts, processes and interruptions, and saved checkpoints."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType

from tests.helpers.models import VOCABULARY, save_family
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.training import evaluation, student_results, training_step
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill, distill_students
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.sweep_checkpoint import SWEEP_CHECKPOINT_FILE
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.teacher_backbone import TeacherBackbone
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.storage.locks import LOCK_FILE
from tl_distill_floor.theory.learning_curve import LearningCurveFit

QUICK = DistillConfig(n_tokens=32 * 8 * 6, batch_size=8, n_evaluations=3, n_heldout_tokens=128, early_stop=False)
"""6 steps of 8 sequences of 32 tokens."""


def saved_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a saved student."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def quick_config(**fields: Any) -> DistillConfig:
    """Return `QUICK` with other fields."""
    return dataclasses.replace(QUICK, **fields)


def assert_same_students(students: list[Path], ids: torch.Tensor) -> None:
    """Check that two saved students have the same learning curve and the same logits up to rounding.

    Weights are not compared. Adam changes weights whose gradient is rounding error, such as the biases of keys.
    """
    from transformers import AutoModelForCausalLM

    first, second = (StudentResult.load(student).losses for student in students)
    assert first == pytest.approx(second, rel=1e-4)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(student)(ids[:4]).logits for student in students]
    torch.testing.assert_close(*logits, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulated_parts_equal_a_full_batch(bridge: Any, ids: torch.Tensor, tmp_path: Path, optimizer: str) -> None:
    match = Match("blocks.1.hook_resid_post", 1)
    for parts in (1, 4):
        config = quick_config(accumulate=parts, optimizer=optimizer)
        specs = [StudentSpec(8), StudentSpec(16, match=match)]
        distill_students(bridge, specs, ids, out=tmp_path / str(parts), config=config)
    for name in ("width8", "width16"):
        assert_same_students([tmp_path / parts / "students" / name for parts in ("1", "4")], ids)


def test_students_trained_together_equal_students_trained_alone(bridge: Any, ids: torch.Tensor) -> None:
    together = distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, config=QUICK)
    alone = [distill(bridge, width, ids, config=QUICK) for width in (8, 16)]
    assert [s.losses for s in together] == [pytest.approx(s.losses, rel=1e-5) for s in alone]


def test_saved_student_is_a_transformers_model_with_the_reported_loss(
    bridge: Any, teacher_dir: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    """The special token 0 and the first token of each sequence are not counted."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = distill(bridge, 8, ids[:30], heldout=ids[30:34], out=tmp_path, config=QUICK)
    assert result.path is not None
    student, heldout = AutoModelForCausalLM.from_pretrained(result.path), ids[30:34]
    counted = heldout != 0
    counted[:, 0] = False
    with torch.no_grad():
        logits = student(heldout).logits
        loss = forward_kl(bridge(heldout), logits)[counted].mean()
        bridge_logits = TransformerBridge.boot_transformers(result.path, device="cpu")(heldout)
    assert float(loss) == pytest.approx(result.loss, rel=1e-4)
    assert result.heldout_tokens == int(counted.sum())
    torch.testing.assert_close(bridge_logits, logits, atol=1e-4, rtol=1e-4)
    own, saved = (AutoTokenizer.from_pretrained(directory) for directory in (teacher_dir, result.path))
    assert own("a")["input_ids"] == saved("a")["input_ids"]
    card = (Path(result.path) / "README.md").read_text()
    assert "8 dimensions wide" in card
    assert f"{result.loss:.4f} nats per token" in card
    assert load_students(tmp_path) == [result]


def test_training_lowers_the_loss(bridge: Any, ids: torch.Tensor) -> None:
    result = distill(bridge, 16, ids, heldout=ids, config=quick_config(n_tokens=32 * 8 * 60, lr=1e-2))
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.tokens[-1] == 32 * 8 * 60


class KilledError(Exception):
    """Interrupts a training."""


def kill(*_progress: Any) -> None:
    """Interrupt the training at the first call."""
    raise KilledError


def diverge_first_student(monkeypatch: pytest.MonkeyPatch, *, from_step: int, n_active: int | None = None) -> list[int]:
    """Make the first student's loss NaN.

    Args:
        monkeypatch: restores the losses after the test.
        from_step: first step with a NaN.
        n_active: only with this number of active students; with any number if None.

    Returns:
        A list that receives the number of active students at every step.
    """
    summed_losses, seen = training_step.summed_losses, []

    def with_nan(sweep: Sweep, teacher: TeacherBackbone, rows: torch.Tensor) -> list[torch.Tensor]:
        losses = summed_losses(sweep, teacher, rows)
        seen.append(len(losses))
        is_nan = sweep.step >= from_step and n_active in (None, len(losses))
        return [losses[0] * (float("nan") if is_nan else 1.0), *losses[1:]]

    monkeypatch.setattr(training_step, "summed_losses", with_nan)
    return seen


SPECS = [StudentSpec(8), StudentSpec(16, match=Match("blocks.1.hook_resid_post", 1), start="teacher-slice")]


@pytest.fixture(scope="module")
def uninterrupted(bridge: Any, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the students of `SPECS` without an interruption, and return the run directory."""
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    distill_students(bridge, SPECS, ids, out=directory, config=QUICK)
    return directory


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_resumed_training_ends_with_the_same_weights(
    bridge: Any, ids: torch.Tensor, uninterrupted: Path, tmp_path: Path, killed_after: int
) -> None:

    def kill_after(n_tokens: int, _total: int, _message: str) -> None:
        if n_tokens == killed_after * 8 * 32:
            raise KilledError

    options: dict[str, Any] = {"out": tmp_path / "killed", "config": QUICK, "checkpoint_seconds": 0.0}
    with pytest.raises(KilledError):
        distill_students(bridge, SPECS, ids, progress=kill_after, **options)
    with pytest.raises(InputError, match="is of an interrupted training; add --resume"):
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


def test_saves_the_weights_of_a_student_whose_curve_diverged(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose held-out loss rose has the status diverged, and is saved with its weights."""
    risen = LearningCurveFit(1.0, (0.0, 1.0), 0.0, 0.0, "diverged")
    for module in (evaluation, student_results):
        monkeypatch.setattr(module, "fit_student", lambda _config, _tokens, _losses: risen)
    result = distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    assert result.status == "diverged"
    assert saved_weights(tmp_path / "students" / "width8")


def test_half_precision_gives_about_the_same_loss(bridge: Any, ids: torch.Tensor) -> None:
    full, half = (distill(bridge, 16, ids, config=quick_config(dtype=dtype)) for dtype in ("fp32", "bf16"))
    assert full.losses != half.losses
    assert half.loss == pytest.approx(full.loss, rel=0.02)


def test_rejects_a_directory_that_already_has_a_student(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    with pytest.raises(InputError, match="already has width8; name another directory with --out"):
        distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, out=tmp_path, config=QUICK)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_loss_names_step_and_learning_rate_and_keeps_the_checkpoint(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_first_student(monkeypatch, from_step=3)
    with pytest.raises(InputError, match=r"width8 at step 4 \(loss nan, learning rate 0.003\); the last .* try --lr"):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, checkpoint_seconds=0.0)
    assert (tmp_path / "students" / SWEEP_CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(
    ("objective", "advice"),
    [
        (Objective(cross_entropy=0.5), "the text holds tokens of probability 0"),
        (Objective("reverse-kl"), "use --divergence forward-kl"),
    ],
)
def test_infinite_loss_is_not_blamed_on_the_learning_rate(
    tokenizer: Any, ids: torch.Tensor, tmp_path: Path, objective: Objective, advice: str
) -> None:
    """The teacher's head masks the second half of the vocabulary; students from random weights do not."""
    from transformers import AutoModelForCausalLM

    directory = save_family(tmp_path / "teacher", tokenizer, "Phi", tie_word_embeddings=False)
    masked = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        masked.lm_head.bias[VOCABULARY // 2 :] = -torch.inf
    masked.save_pretrained(directory)
    start = "svd" if objective.cross_entropy else "random"
    with pytest.raises(InputError, match=f"training diverged: .*loss inf.*; {advice}"):
        distill(directory, 16, ids, start=start, config=quick_config(objective=objective))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_other_students_continue_after_one_diverged(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_active = diverge_first_student(monkeypatch, from_step=3, n_active=2)
    diverged, other = distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, out=tmp_path, config=QUICK)
    assert (diverged.status, other.status, n_active) == ("diverged", "under-trained", [2, 2, 2, 2, 1, 1])
    assert "step 4" in diverged.settings["diverged"]


def test_rejects_a_training_that_diverges_before_the_first_evaluation(bridge: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="training diverged: width8 at step 1 "):
        distill(
            bridge, 8, ids, config=quick_config(lr=float("1e30"), optimizer="adamw", warmup=0.0, n_tokens=32 * 8 * 40)
        )


def test_restores_the_teacher(bridge: Any, ids: torch.Tensor) -> None:
    hooks = {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()}
    grads = {name: (weight.requires_grad, weight.grad) for name, weight in bridge.named_parameters()}
    before = {name: weight.clone() for name, weight in bridge.named_parameters()}
    distill(bridge, 8, ids, config=QUICK)
    assert hooks == {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()}
    assert grads == {name: (weight.requires_grad, weight.grad) for name, weight in bridge.named_parameters()}
    assert all(torch.equal(before[name], weight) for name, weight in bridge.named_parameters())


@pytest.mark.parametrize(
    ("specs", "fields", "message"),
    [
        (
            [StudentSpec(8)],
            {"batch_size": 64},
            "has 36 training sequences of 32 tokens, fewer than a batch of 64; give more text",
        ),
        (
            [StudentSpec(8)],
            {"accumulate": 3},
            "a batch of 8 sequences cannot be divided into 1 processes of 3 parts each",
        ),
        ([StudentSpec(8), StudentSpec(8)], {}, "each student needs a name of its own, got width8, width8"),
        ([StudentSpec(8, match=Match("blocks.9.hook_resid_post", 0))], {}, "the model has layers 0 to 2, got layer 9"),
        (
            [StudentSpec(8, match=Match("blocks.1.hook_resid_post", 7))],
            {},
            "the student has layers 0 to 2, got layer 7",
        ),
    ],
)
def test_rejects_unusable_input(
    bridge: Any, ids: torch.Tensor, specs: list[StudentSpec], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distill_students(bridge, specs, ids, config=quick_config(**fields))


def test_rejects_tokens_outside_the_vocabulary(bridge: Any, ids: torch.Tensor) -> None:
    wrong = ids.clone()
    wrong[3, 3] = 300
    with pytest.raises(InputError, match="token id 300, the teacher's vocabulary ends at 299"):
        distill(bridge, 8, wrong, config=QUICK)


TRAIN_IN_PROCESSES = """
import sys, torch
torch.set_num_threads(1)
import warnings; warnings.simplefilter("ignore")
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.distilling.training.config import StudentSpec, DistillConfig
from tl_distill_floor.distilling.training.matching import Match
sizes = {"n_tokens": 32 * 8 * 6, "batch_size": 8, "n_evaluations": 3, "n_heldout_tokens": 128}
config = DistillConfig(**sizes, early_stop=False, accumulate=2)
ids = torch.load(sys.argv[2], weights_only=True)
match = Match("blocks.1.hook_resid_post", 1)
distill_students(sys.argv[1], [StudentSpec(8), StudentSpec(16, match=match)], ids, out=sys.argv[3], config=config)
"""


@pytest.mark.slow
def test_two_processes_give_the_same_students_as_one(teacher_dir: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN_IN_PROCESSES)
    torch.save(ids, tmp_path / "ids.pt")
    for n, launcher in ((1, []), (2, ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"])):
        command = [sys.executable, *launcher, script, teacher_dir, tmp_path / "ids.pt", tmp_path / str(n)]
        subprocess.run([str(part) for part in command], check=True, timeout=300)
    for name in ("width8", "width16"):
        assert_same_students([tmp_path / n / "students" / name for n in ("1", "2")], ids)


KILLED_TRAININGS = """
import os, signal, sys, time, torch
import warnings; warnings.simplefilter("ignore")
torch.set_num_threads(1)
from pathlib import Path
from tl_distill_floor.distilling.training.distill import distill_students
from tl_distill_floor.distilling.training.config import StudentSpec, DistillConfig
from tl_distill_floor.distilling.training.sweep_checkpoint import SWEEP_CHECKPOINT_FILE
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


def test_loads_teachers_by_name(teacher_dir: Path, ids: torch.Tensor) -> None:
    assert distill(str(teacher_dir), 8, ids, config=QUICK).teacher == load_teacher(str(teacher_dir)).name


@pytest.mark.parametrize("sharding", [DistributedType.MEGATRON_LM, DistributedType.DEEPSPEED])
def test_rejects_other_ways_of_sharding(
    teacher_dir: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, sharding: DistributedType
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", sharding)
    with pytest.raises(InputError, match=f"not trained under {sharding.value}; start accelerate with --use_fsdp"):
        distill(teacher_dir, 8, ids)


def test_rejects_wrong_choices_before_the_teacher_is_loaded() -> None:
    """A teacher of this name does not exist."""
    with without_type_checks():
        with pytest.raises(InputError, match="start must be one of random, teacher-slice, svd, got 'copy'"):
            distill("no-teacher", 8, start="copy")
        with pytest.raises(InputError, match="dtype must be one of fp32, bf16, got 'half'"):
            distill("no-teacher", 8, dtype="half")
        with pytest.raises(TypeError, match="learning_rate"):
            distill("no-teacher", 8, learning_rate=1e-3)
