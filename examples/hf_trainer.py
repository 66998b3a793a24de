"""Distil a student with the Trainer of Hugging Face: its arguments, logging, checkpoints and callbacks.

On several GPUs, start it with `torchrun --nproc-per-node 4 hf_trainer.py`, or with `accelerate launch`, also for FSDP.
"""

import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from tl_distill_floor import DistillationTrainer, Objective, load_teacher, load_text

teacher = load_teacher("tiny-prose")  # or a Hugging Face name, a directory, or a transformers model in memory
text = load_text(None, teacher.tokenizer, context_size=64)  # the embedded text; or a file of yours instead of None
rows = Dataset.from_dict({"input_ids": [row.tolist() for row in text.read()]}).train_test_split(32, shuffle=False)

with tempfile.TemporaryDirectory() as folder:
    trainer = DistillationTrainer(
        teacher=teacher,
        width=64,  # or model=..., a student of your own with the teacher's vocabulary
        objective=Objective("forward-kl", temperature=1.0),
        args=TrainingArguments(
            folder,
            max_steps=20,  # seconds, for this example; a useful student needs millions of tokens
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            eval_strategy="steps",
            eval_steps=10,
            logging_steps=10,
            save_strategy="no",
            report_to="none",  # or "wandb", "tensorboard"
            dataloader_pin_memory=False,  # leave this out on a GPU
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    trainer.train()
    for line in trainer.state.log_history:
        if "eval_loss" in line:
            tokens = line["num_input_tokens_seen"]
            print(f"{tokens:,} tokens: KL(teacher ‖ student) = {line['eval_loss']:.3f} nats per token")

    trainer.save_model(Path(folder) / "student")
    student = AutoModelForCausalLM.from_pretrained(Path(folder) / "student")
    print(f"saved a {type(student).__name__} with {student.num_parameters():,} parameters")
