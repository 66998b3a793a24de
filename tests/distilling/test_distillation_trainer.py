"""Tests of the Trainer: the losses of the sweep on the same batches, normalisation, evaluation, and checkpoints."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.helpers import trainer_processes
from tests.helpers.models import CONTEXT, VOCABULARY, save_family
from tests.helpers.trainers import arguments
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.distilling.hf_trainer.hook_matching import HOOK_MATCHING_FILE
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.losses import NO_LABEL, Objective
from tl_distill_floor.distilling.training.matching import Match
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_step import set_matching_variance, summed_losses, train_step
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.sources.teachers import load_teacher

MATCH = Match("blocks.1.hook_resid_post", 1)


def rows_of(ids: Tensor) -> list[dict[str, Tensor]]:
    """Return rows of a data set."""
    return [{"input_ids": row} for row in ids]


@pytest.fixture(scope="module")
def plain(teacher_dir: Path) -> Any:
    """Load the random teacher with transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()


@pytest.fixture
def student(bridge: Any) -> Any:
    """Build a student of width 16."""
    return build_student(bridge, 16)


def kl_of_full_models(teacher: Any, student: Any, ids: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) in nats at each position but the last of each sequence."""
    with torch.no_grad():
        return forward_kl(teacher(ids).logits, student(ids).logits)[:, :-1]


def test_loss_is_the_kl_of_the_full_models_at_the_counted_positions(plain: Any, student: Any, tmp_path: Path) -> None:
    """Padding on either side, and labels of -100, are not counted."""
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, VOCABULARY, (9,), generator=random)
    rows = [
        {"input_ids": torch.cat([torch.zeros(3, dtype=torch.int64), tokens]), "attention_mask": [0] * 3 + [1] * 9},
        {"input_ids": torch.cat([tokens, torch.zeros(3, dtype=torch.int64)]), "attention_mask": [1] * 9 + [0] * 3},
    ]
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=plain, train_dataset=rows)
    kl = kl_of_full_models(plain, student, tokens[None])
    loss = trainer.compute_loss(student, trainer.data_collator(rows))
    assert loss.item() == pytest.approx(float(kl.mean()), rel=1e-5)
    labels = [NO_LABEL] * 6 + tokens[6:].tolist()
    loss = trainer.compute_loss(student, trainer.data_collator([{"input_ids": tokens, "labels": labels}]))
    assert loss.item() == pytest.approx(float(kl[0, 5:].mean()), rel=1e-5)


@pytest.fixture
def sweep_batches(ids: Tensor) -> Tensor:
    """Return sequences of which the sweep and the Trainer count the same positions: all but the first and the last."""
    random = torch.Generator().manual_seed(5)
    sequences = torch.randint(1, VOCABULARY, ids.shape, generator=random)
    sequences[:, 0] = sequences[:, -1] = 0
    return sequences


def open_sweep(bridge: Any, sequences: Tensor, objective: Objective, match: Match | None) -> Sweep:
    """Return a sweep of one student with AdamW and a constant learning rate."""
    config = DistillConfig(
        n_tokens=20 * 8 * CONTEXT, batch_size=8, optimizer="adamw", lr=1e-2, warmup=0.0, decay=0.0, objective=objective
    )
    split = read_text_split(load_teacher(bridge), sequences[:-4], sequences[-4:], config)
    return Sweep(load_teacher(bridge), [StudentSpec(16, match=match)], split, config, Accelerator(cpu=True))


@pytest.mark.slow
def test_training_is_that_of_the_sweep_on_the_same_batches(bridge: Any, sweep_batches: Tensor, tmp_path: Path) -> None:
    """In 20 steps of 2 parts each, the losses are equal at each step, and the logits at the end."""
    sweep = open_sweep(bridge, sweep_batches, Objective(), None)
    batches = [sweep.split.batch(step, sweep.config) for step in range(20)]
    losses = []
    with teacher_backbone(bridge, sweep.teacher_hook) as backbone:
        for step in range(20):
            sweep.step = step
            losses += train_step(sweep, backbone)

    class Rows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        """The same batches in their order; the first position, of the token of the beginning, is not counted."""

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for row in torch.cat(batches):
                labels = row.clone()
                labels[:2] = NO_LABEL
                yield {"input_ids": row, "labels": labels}

    args = arguments(tmp_path, max_steps=20, gradient_accumulation_steps=2)
    trainer = DistillationTrainer(args=args, teacher=bridge, width=16, train_dataset=Rows())
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged == pytest.approx(losses, rel=1e-4)
    ids = sweep_batches[:4]
    with torch.no_grad():
        logits = trainer.model(ids).logits, sweep.students[0].module.student(ids).logits
    torch.testing.assert_close(*logits, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("objective", "match"),
    [(Objective(), None), (Objective("reverse-kl", temperature=2.0), None), (Objective(), MATCH)],
)
def test_first_gradient_equals_that_of_the_sweep(
    bridge: Any, sweep_batches: Tensor, tmp_path: Path, objective: Objective, match: Match | None
) -> None:
    """The gradients before any update are equal up to rounding."""
    sweep = open_sweep(bridge, sweep_batches, objective, match)
    ids = sweep.split.batch(0, sweep.config)
    with teacher_backbone(bridge, sweep.teacher_hook) as backbone:
        set_matching_variance(sweep, backbone)
        (summed,) = summed_losses(sweep, backbone, ids)
    expected = summed / int(sweep.split.stream.counted(ids).sum())
    expected.backward()
    trainer = DistillationTrainer(
        args=arguments(tmp_path, seed=0), teacher=bridge, width=16, train_dataset=rows_of(ids), objective=objective,
        match=match,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": torch.cat([torch.full((2,), NO_LABEL), row[2:]])} for row in ids]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # The projection of hook matching comes last in both.
    weights = zip(sweep.students[0].module.parameters(), trainer.model.parameters(), strict=True)
    for of_sweep, of_trainer in weights:
        torch.testing.assert_close(of_trainer.grad, of_sweep.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("match", [None, MATCH])
def test_parts_of_different_lengths_are_weighted_by_their_tokens(
    bridge: Any, ids: Tensor, tmp_path: Path, match: Match | None
) -> None:
    """One step over a batch equals one step over its parts, of which one has a single counted position."""
    rows = [{"input_ids": row[: 2 if i == 0 else 32 if i < 2 else 11]} for i, row in enumerate(ids[:4])]
    students = []
    for parts in (1, 4):
        args = arguments(
            tmp_path, max_steps=1, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts,
            learning_rate=1.0, optim="sgd",
        )  # fmt: skip
        trainer = DistillationTrainer(args=args, teacher=bridge, width=16, train_dataset=rows, match=match)
        trainer.train()
        students.append((trainer.model, trainer.state.log_history[0]["loss"]))
    assert students[0][1] == pytest.approx(students[1][1], rel=1e-6)
    for first, second in zip(*(student.parameters() for student, _ in students), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


def test_eval_loss_is_the_forward_kl_per_token_of_all_sequences(
    plain: Any, student: Any, ids: Tensor, tmp_path: Path
) -> None:
    """It is the same for every objective, although the batches have different numbers of tokens."""
    rows = [{"input_ids": row[: 32 if i < 5 else 7]} for i, row in enumerate(ids[:7])]
    trainer = DistillationTrainer(
        student, arguments(tmp_path), teacher=plain, eval_dataset={"held": rows, "first": rows[:1]},
        objective=Objective("reverse-kl", temperature=3.0, cross_entropy=0.5),
    )  # fmt: skip
    metrics = trainer.evaluate()
    kl = [kl_of_full_models(plain, student, row["input_ids"][None])[0] for row in rows]
    assert metrics["eval_held_loss"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-5)
    assert metrics["eval_first_loss"] == pytest.approx(float(kl[0].mean()), rel=1e-5)


def test_every_row_is_evaluated_if_the_last_batch_of_a_training_is_dropped(
    plain: Any, student: Any, ids: Tensor, tmp_path: Path
) -> None:
    args = arguments(tmp_path, dataloader_drop_last=True)
    rows = {"several": rows_of(ids[:6]), "less than a batch": rows_of(ids[:3])}
    trainer = DistillationTrainer(
        student, args, teacher=plain, train_dataset=rows_of(ids[:6]), eval_dataset=rows["several"]
    )
    for name, n_rows in (("several", 6), ("less than a batch", 3)):
        expected = float(kl_of_full_models(plain, student, ids[:n_rows]).mean())
        assert trainer.evaluate(rows[name])["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert trainer.predict(rows[name]).metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert len(trainer.get_train_dataloader()) == 1


def test_metrics_are_computed_from_the_logits(plain: Any, student: Any, ids: Tensor, tmp_path: Path) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        return {"shape": prediction.predictions.shape[-1], "labels": float((prediction.label_ids != NO_LABEL).mean())}

    trainer = DistillationTrainer(
        student, arguments(tmp_path), teacher=plain, eval_dataset=rows_of(ids[:4]), compute_metrics=accuracy
    )
    metrics = trainer.evaluate()
    assert metrics["eval_shape"] == VOCABULARY
    assert metrics["eval_labels"] == pytest.approx(31 / 32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("match", [None, MATCH])
def test_losses_do_not_depend_on_the_default_dtype(
    match: Match | None, dtype: torch.dtype, plain: Any, ids: Tensor, tmp_path: Path
) -> None:
    """The Trainer itself rounds the training loss that it logs to the default dtype."""

    def losses() -> list[float]:
        trainer = DistillationTrainer(
            args=arguments(tmp_path, max_steps=2, seed=0), teacher=plain, width=16, train_dataset=rows_of(ids),
            eval_dataset=rows_of(ids[:8]), match=match,
        )  # fmt: skip
        trainer.train()
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(ids[:8])))
        return [float(loss), trainer.evaluate()["eval_loss"]]

    expected = losses()
    torch.set_default_dtype(dtype)
    try:
        assert losses() == pytest.approx(expected, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("match", [None, MATCH])
def test_resumed_training_ends_with_the_same_weights(
    plain: Any, ids: Tensor, tmp_path: Path, match: Match | None
) -> None:
    """Also what hook matching learned is restored, which is not part of the saved student."""
    from transformers import AutoModelForCausalLM

    def trainer_in(directory: Path, **options: Any) -> DistillationTrainer:
        args = arguments(directory, save_strategy="steps", save_steps=2, **options)
        return DistillationTrainer(args=args, teacher=plain, width=16, train_dataset=rows_of(ids), match=match)

    full = trainer_in(tmp_path / "full")
    full.train()
    resumed = trainer_in(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoint-2"))
    names = [name for name, _ in full.model.named_parameters()]
    assert any("hook_matching" in name for name in names) == (match is not None)
    for first, second in zip(full.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second)
    checkpoint = tmp_path / "full" / "checkpoint-4"
    saved, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert torch.equal(saved(ids[:2]).logits, full.model.eval()(ids[:2]).logits)
    assert (checkpoint / HOOK_MATCHING_FILE).exists() == (match is not None)
    assert (checkpoint / "tokenizer.json").exists()
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [line["num_input_tokens_seen"] for line in log if "loss" in line] == [128, 256, 384, 512]


def test_teacher_is_neither_trained_nor_changed(plain: Any, student: Any, ids: Tensor, tmp_path: Path) -> None:
    """It is in evaluation mode while it runs, and then in the mode that it had."""
    teacher = copy.deepcopy(plain).train()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    modes: list[bool] = []
    teacher.register_forward_pre_hook(lambda module, _inputs: modes.append(module.training))
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher, train_dataset=rows_of(ids))
    trainer.train()
    assert not any(modes)
    assert teacher.training
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    assert all(weight.grad is None for weight in teacher.parameters())
    trained = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert not trained & {id(weight) for weight in teacher.parameters()}
    assert [type(module) for module in teacher.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.slow
def test_students_of_all_kinds_of_teachers_are_equal(
    plain: Any, bridge: Any, teacher_dir: Path, ids: Tensor, tmp_path: Path
) -> None:
    """The teacher is a transformers model, a TransformerBridge, a directory or a loaded teacher, with hook matching."""
    losses = []
    for teacher in (plain, bridge, str(teacher_dir), load_teacher(bridge)):
        trainer = DistillationTrainer(
            args=arguments(tmp_path), teacher=teacher, width=16, depth=2, train_dataset=rows_of(ids[:4]), match=MATCH
        )
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(ids[:4]))).item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.slow
def test_capped_and_scaled_logits_are_those_of_the_models(tokenizer: Any, ids: Tensor, tmp_path: Path) -> None:
    """Gemma 2 caps its logits."""
    from transformers import AutoModelForCausalLM

    directory = save_family(tmp_path / "teacher", tokenizer, "Gemma2", head_dim=8, num_key_value_heads=2)
    teacher = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    rows = rows_of(ids[:4])
    trainer = DistillationTrainer(
        args=arguments(tmp_path), teacher=teacher, width=16, start="random", train_dataset=rows, eval_dataset=rows
    )
    kl = float(kl_of_full_models(teacher, trainer.model.eval(), ids[:4]).mean())
    assert trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item() == pytest.approx(kl, rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(kl, rel=1e-4)


@pytest.mark.slow
def test_model_init_builds_a_student_for_each_trial(plain: Any, bridge: Any, ids: Tensor, tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=1), teacher=plain, model_init=lambda: build_student(bridge, 16),
        train_dataset=rows_of(ids), match=MATCH,
    )  # fmt: skip
    trainer.train()
    assert any("hook_matching" in name for name, _ in trainer.model.named_parameters())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(teacher_dir: Path, ids: Tensor, tmp_path: Path) -> None:
    """This holds for DDP and for FSDP version 2, although the parts of a batch have different numbers of tokens."""
    from transformers import AutoModelForCausalLM

    torch.save(ids, tmp_path / "ids.pt")
    logs, students = {}, {}
    trainer_processes.train("one", str(teacher_dir), tmp_path / "ids.pt", tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", trainer_processes.__file__]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for kind in ("ddp", "fsdp"):
        command = [*launch, kind, str(teacher_dir), str(tmp_path / "ids.pt"), str(tmp_path / kind)]
        subprocess.run(command, check=True, timeout=300, env=environment)
    for kind in ("one", "ddp", "fsdp"):
        logs[kind] = json.loads((tmp_path / kind / "log.json").read_text())
        students[kind] = AutoModelForCausalLM.from_pretrained(tmp_path / kind / "final")
    for kind in ("ddp", "fsdp"):
        assert np.array(logs[kind]["losses"]) == pytest.approx(np.array(logs["one"]["losses"]), rel=1e-5)
        with torch.no_grad():
            logits = [students[which](ids[:4]).logits for which in ("one", kind)]
        torch.testing.assert_close(*logits, atol=5e-3, rtol=1e-3)
    complete, resumed = logs["fsdp"][trainer_processes.MATCH_RESUMED]
    assert np.array(resumed) == pytest.approx(np.array(complete), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None, "width": 8}, "a DistillationTrainer needs a teacher; set teacher to a model in memory"),
        (
            {"width": 8, "args": {"label_smoothing_factor": 0.1}},
            "label_smoothing_factor has no effect on a distillation",
        ),
        ({}, "trains one student, got 0 of model, width and model_init; give one"),
        ({"width": 25}, "a student's width must be from 1 to its teacher's 24, got 25"),
        ({"width": 8, "depth": 9}, "depth must be from 1 to its teacher's 3 layers, got 9"),
        (
            {"width": 8, "match": Match("blocks.1.mlp.hook_out", 1)},
            "a transformers model has no hook point blocks.1.mlp",
        ),
        ({"width": 8, "match": Match("blocks.9.hook_resid_post", 1)}, "has layers 0 to 2, got layer 9 to match"),
        ({"width": 8, "match": Match("blocks.1.hook_resid_post", 9)}, "has layers 0 to 2, got layer 9 to match"),
    ],
)
def test_rejects_unusable_input(plain: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"teacher": plain} | options
    with pytest.raises(InputError, match=message):
        DistillationTrainer(**(given | {"args": arguments(tmp_path, **options.get("args", {}))}))


def test_rejects_students_that_do_not_fit_the_teacher(plain: Any, tokenizer: Any, student: Any, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    directory = save_family(tmp_path / "other", tokenizer, "GPTNeoX", vocab_size=VOCABULARY + 8)
    other, headless = (kind.from_pretrained(directory) for kind in (AutoModelForCausalLM, AutoModel))
    args = arguments(tmp_path)
    with pytest.raises(InputError, match=r"a vocabulary of 308 tokens and the teacher .* one of 300, so their"):
        DistillationTrainer(other, args, teacher=plain)
    with pytest.raises(InputError, match="must be a transformers causal language model, got GPTNeoXModel"):
        DistillationTrainer(headless, args, teacher=plain)
    with pytest.raises(InputError, match="the student is the teacher itself"):
        DistillationTrainer(plain, args, teacher=plain)
    with pytest.raises(InputError, match="got 2 of model, width and model_init"):
        DistillationTrainer(student, args, teacher=plain, width=8)


def test_rejects_data_without_token_ids_or_counted_positions(plain: Any, student: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    args = arguments(tmp_path)
    with pytest.raises(InputError, match="train_dataset has the columns text, and no input_ids; tokenize it"):
        DistillationTrainer(student, args, teacher=plain, train_dataset=Dataset.from_dict({"text": ["a"]}))
    masked = [{"input_ids": [1, 2, 3], "labels": [NO_LABEL] * 3}]
    trainer = DistillationTrainer(student, args, teacher=plain, eval_dataset=masked)
    with pytest.raises(InputError, match="no position of the evaluation data set is counted"):
        trainer.evaluate()


@pytest.mark.parametrize("column", ["seq_lengths", "position_ids"])
def test_rejects_packed_rows_of_a_data_set(column: str, plain: Any, student: Any, tmp_path: Path) -> None:
    """The Trainer drops columns that the model does not have, before the collator sees them."""
    from datasets import Dataset

    one, two = {"seq_lengths": ([4], [2, 2]), "position_ids": ([0, 1, 2, 3], [0, 1, 0, 1])}[column]
    for documents in (one, two):
        rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]], column: [documents], "name": ["a"]})
        trainer = DistillationTrainer(student, arguments(tmp_path), teacher=plain, eval_dataset=rows)
        if documents is one:
            assert trainer.evaluate()["eval_loss"] > 0
        else:
            with pytest.raises(InputError, match="a row holds several documents"):
                trainer.evaluate()
