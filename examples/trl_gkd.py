"""Distil a student with TRL's GKDTrainer, partly on text that the student writes itself (pip install trl).

The student is what `tl-floor plan --export student --start svd` writes: a Hugging Face model with initial weights.
"""

import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from tl_distill_floor import export_student, load_text
from tl_distill_floor.sources.model_names import tiny_prose_directory

teacher_name = str(tiny_prose_directory())  # or a Hugging Face name
PROMPT, ROW = 16, 64  # tokens

with tempfile.TemporaryDirectory() as folder:
    export_student(teacher_name, 64, Path(folder) / "student", start="svd")
    teacher = AutoModelForCausalLM.from_pretrained(teacher_name)
    student = AutoModelForCausalLM.from_pretrained(Path(folder) / "student")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "student")
    tokenizer.pad_token = tokenizer.eos_token

    text = load_text(None, tokenizer, context_size=ROW)  # the embedded text; or a file of yours instead of None
    rows = [row.tolist() for row in text.read()]
    dataset = Dataset.from_list([{"input_ids": row, "prompt": tokenizer.decode(row[:PROMPT])} for row in rows])

    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            folder,
            lmbda=0.5,  # share of the batches that the student writes
            beta=0.0,  # KL(teacher ‖ student); 1.0 is KL(student ‖ teacher)
            temperature=1.0,
            max_new_tokens=32,
            max_steps=6,  # seconds, for this example
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            logging_steps=2,
            save_strategy="no",
            report_to="none",
            bf16=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    for line in trainer.state.log_history:
        if "loss" in line:
            print(f"step {line['step']}: {line['loss']:.3f} nats per token")
