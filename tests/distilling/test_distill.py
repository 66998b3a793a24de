"""Tests of the training of students: equal results with parts and processes, saved students, and refused input."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType

from tests.helpers.models import VOCABULARY, save_family
from tests.helpers.quick_training import QUICK, diverge_first_student, quick_config, saved_weights
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.annotations import StudentStatus
from tl_distill_floor.distilling.training import evaluation, student_results
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.distill import distill, distill_students
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE, Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.results.student import StudentResult, load_students
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.theory.learning_curve import LearningCurveFit


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


def test_accumulated_parts_equal_a_full_batch(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    match = Match("blocks.1.hook_resid_post", 1)
    for parts in (1, 4):
        config = quick_config(accumulate=parts)
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
    result = distill(bridge, 16, ids, heldout=ids, config=quick_config(n_tokens=32 * 8 * 30, lr=1e-2))
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.tokens[-1] == 32 * 8 * 30


def test_saves_the_weights_of_a_student_whose_curve_diverged(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose held-out loss rose has the status diverged, and is saved with its weights."""
    risen = LearningCurveFit(1.0, (0.0, 1.0), (0.0, 1.0), 0.0, 0.0, "diverged")
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
    with pytest.raises(InputError, match="already has width8; name another directory with out="):
        distill_students(bridge, [StudentSpec(8), StudentSpec(16)], ids, out=tmp_path, config=QUICK)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_loss_names_step_and_learning_rate_and_keeps_the_checkpoint(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_first_student(monkeypatch, from_step=3)
    with pytest.raises(InputError, match=r"width8 at step 4 \(loss nan, learning rate 0.003\); the last .* try lr="):
        distill(bridge, 8, ids, out=tmp_path, config=QUICK, checkpoint_seconds=0.0)
    assert (tmp_path / "students" / SWEEP_CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(
    ("objective", "advice"),
    [
        (Objective(cross_entropy=0.5), "the text holds tokens of probability 0"),
        (Objective("reverse-kl"), "set the divergence to forward-kl"),
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
            {"batch_size": 64, "n_tokens": 2048},
            "36 training sequences of 32 tokens were read from .*, fewer than a batch of 64; give more text, or",
        ),
        (
            [StudentSpec(8)],
            {"batch_size": 64, "n_tokens": 2047},
            "fewer than a batch of 64; set n_tokens=2048 or more, or a smaller batch_size=",
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


def test_a_student_stops_when_its_curve_has_saturated_and_others_continue(
    bridge: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[float] = []

    def fit(_config: DistillConfig, _tokens: Sequence[int], losses: Sequence[float]) -> LearningCurveFit:
        """Return a fit by which the first student saturates at its first point, and the other one never does."""
        fitted.append(losses[-1])
        status: StudentStatus = "saturated" if len(fitted) == 1 else "under-trained"
        interval = (losses[-1], losses[-1])
        return LearningCurveFit(losses[-1], interval, interval, 0.0, 0.0, status)

    monkeypatch.setattr(evaluation, "fit_student", fit)
    narrow, wide = distill_students(
        bridge, [StudentSpec(8), StudentSpec(16)], ids, config=quick_config(early_stop=True)
    )
    assert (narrow.status, narrow.tokens) == ("saturated", (256,))
    assert (wide.status, wide.tokens) == ("under-trained", (256, 1536))
    assert fitted == [*narrow.losses, *wide.losses]


def test_a_process_without_heldout_sequences_runs_none(
    ids: torch.Tensor, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the second of two processes has with one held-out sequence. Llama cannot run a batch of no sequence."""
    teacher = load_teacher(save_family(tmp_path, tokenizer, "Llama"))
    split = read_text_split(teacher, ids, ids[:1], QUICK)
    sweep = Sweep(teacher, [StudentSpec(8)], split, QUICK, Accelerator(cpu=True))
    with teacher_backbone(teacher.model) as backbone:
        of_one_process = evaluation.heldout_losses(sweep, backbone)
        monkeypatch.setattr(Accelerator, "num_processes", 2)
        of_first = evaluation.heldout_losses(sweep, backbone)
        monkeypatch.setattr(Accelerator, "process_index", 1)
        (of_second,) = evaluation.heldout_losses(sweep, backbone)
    assert of_first == of_one_process
    assert math.isnan(of_second)  # it counts no token


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
