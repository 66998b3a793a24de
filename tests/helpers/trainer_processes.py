"""Train with a `DistillationTrainer` in one process or several, as a program that `torchrun` starts."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

MATCH_RESUMED = "losses of a resumed training with hook matching"
"""Key of the log that a sharded training has: for a training that is not interrupted, and for one that is."""


def train(kind: str, teacher: str, ids: Path, out: Path) -> None:
    """Train on sequences of different lengths, and write the log of the training and the student into a directory.

    Args:
        kind: "one" process, "ddp", or "fsdp".
        teacher: directory of the teacher.
        ids: file of token ids.
        out: directory.
    """
    from accelerate import DistributedType, PartialState
    from transformers import TrainingArguments

    from tl_distill_floor import DistillationTrainer, Match

    rows = [{"input_ids": row[: 32 - 3 * (i % 5)]} for i, row in enumerate(torch.load(ids, weights_only=True))]
    options: dict[str, Any] = {"teacher": teacher, "width": 16, "train_dataset": rows, "eval_dataset": rows[:7]}
    sharding: dict[str, Any] = {}
    if kind == "fsdp":
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        config = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["GPTNeoXLayer"]}
        sharding = {"fsdp": True, "fsdp_config": config | {"state_dict_type": "FULL_STATE_DICT"}}
    args = TrainingArguments(
        str(out), max_steps=6, per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=3, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, save_steps=3,
        eval_strategy="steps", eval_steps=3, report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        **sharding,
    )  # fmt: skip
    if kind == "fsdp":
        assert args.device.type == "cpu"
        # accelerate shards only for processes that it takes to be on GPUs.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = DistillationTrainer(args=args, **options)
    trainer.train()
    assert trainer.accelerator.distributed_type.value == {"one": "NO", "ddp": "MULTI_CPU", "fsdp": "FSDP"}[kind]
    trainer.save_model(str(out / "final"))
    log = {"losses": losses_of(trainer)}
    if kind == "fsdp":
        options["match"] = Match("blocks.1.hook_resid_post", 1)
        trainer = DistillationTrainer(args=args, **options)
        trainer.train()
        resumed = DistillationTrainer(args=args, **options)
        resumed.train(resume_from_checkpoint=str(out / "checkpoint-3"))
        log[MATCH_RESUMED] = [losses_of(trainer), losses_of(resumed)]
    if trainer.is_world_process_zero():
        (out / "log.json").write_text(json.dumps(log))


def losses_of(trainer: Any) -> list[list[float]]:
    """Return the step, the tokens seen, and the loss of every line of a Trainer's log."""
    lines = [(line, line.get("loss", line.get("eval_loss"))) for line in trainer.state.log_history]
    return [[line["step"], line["num_input_tokens_seen"], loss] for line, loss in lines if loss is not None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
