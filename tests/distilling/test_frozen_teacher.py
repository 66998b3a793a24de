"""Tests of what a student in a Trainer takes over from its teacher: generation settings and tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.trainers import arguments, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.errors import InputError


@pytest.mark.parametrize("kind", ["model", "directory"])
def test_built_students_have_the_generation_settings_of_the_teacher(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    teacher = plain_model("Llama")
    teacher.generation_config.update(eos_token_id=[2, 7], temperature=0.6, do_sample=True)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    given = teacher if kind == "model" else str(tmp_path / "teacher")
    trainer = DistillationTrainer(args=arguments(tmp_path), teacher=given, width=8)
    trainer.save_model(str(tmp_path / "student"))
    settings = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 7]
    assert (settings["temperature"], settings["do_sample"]) == (0.6, True)
    trainer.model.generation_config.eos_token_id = 3
    assert teacher.generation_config.eos_token_id == [2, 7]


def test_generation_settings_that_cannot_be_saved_are_refused_before_the_training(tmp_path: Path) -> None:
    teacher = plain_model("Llama")
    teacher.generation_config.temperature = 0.6
    teacher.generation_config.do_sample = False
    with pytest.raises(InputError, match=r"the teacher's generation_config, which is saved .* is not valid .*; fix it"):
        DistillationTrainer(args=arguments(tmp_path), teacher=teacher, width=8)


def test_published_generation_settings_are_saved_although_they_are_not_valid(tokenizer: Any, tmp_path: Path) -> None:
    """transformers itself saves invalid settings of a model that was loaded, if they were not changed."""
    from transformers import AutoModelForCausalLM

    plain_model("Llama").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    published = {"temperature": 0.6, "do_sample": False, "eos_token_id": [2, 7]}
    (tmp_path / "teacher" / "generation_config.json").write_text(json.dumps(published))
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    trainer = DistillationTrainer(args=arguments(tmp_path), teacher=teacher, width=8)
    trainer.save_model(str(tmp_path / "student"))
    saved = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["eos_token_id"]) == (0.6, [2, 7])
