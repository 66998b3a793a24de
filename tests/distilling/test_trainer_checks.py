"""Tests that students and tokenizers of other vocabularies than the teacher's are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tests.helpers.trainers import arguments, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.errors import InputError


def word_tokenizer(words: list[str], **special: str) -> Any:
    """Return a tokenizer of words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    level = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(level), **special)


def save(directory: Path, seed: int, tokenizer: Any) -> Any:
    """Save a model with a tokenizer, and load it again."""
    from transformers import AutoModelForCausalLM

    plain_model("Llama", seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory)


WORDS = [f"w{number}" for number in range(VOCABULARY)]


def test_rejects_tokenizers_of_the_same_size_with_other_tokens(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", 0, word_tokenizer(WORDS))
    swapped = [WORDS[0], WORDS[2], WORDS[1], *WORDS[3:]]
    same = save(tmp_path / "same", 1, word_tokenizer(WORDS))
    other = save(tmp_path / "other", 1, word_tokenizer(swapped))
    args = arguments(tmp_path)
    with pytest.raises(
        InputError, match=r"the student and that of the teacher .* for 2 ids, such as 1 \('w2' and 'w1'"
    ):
        DistillationTrainer(other, args, teacher=teacher)
    with pytest.raises(InputError, match=r"the student and that of the teacher have different tokens for 2 ids"):
        DistillationTrainer(other, args, teacher=str(tmp_path / "teacher"))
    with pytest.raises(InputError, match=r"the processing_class and that of the teacher have different tokens"):
        DistillationTrainer(same, args, teacher=teacher, processing_class=word_tokenizer(swapped))
    DistillationTrainer(same, args, teacher=teacher, processing_class=word_tokenizer(WORDS))


def test_accepts_tokenizers_with_other_special_tokens_or_fewer_tokens(tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", 0, word_tokenizer([*WORDS[:-1], "<reserved>"], bos_token="<reserved>"))
    for number, words in enumerate((WORDS[:-1], [*WORDS[:-1], "<pad>"])):
        special = {"pad_token": "<pad>"} if "<pad>" in words else {}
        student = save(tmp_path / f"student{number}", 1, word_tokenizer(words, **special))
        trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher)
        assert trainer.model is student


def test_rejects_students_that_share_modules_with_the_teacher(tmp_path: Path) -> None:
    """The student's unembedding is replaced while the student runs."""
    teacher, student = plain_model("Llama"), plain_model("Llama", 1)
    student.set_output_embeddings(teacher.get_output_embeddings())
    with pytest.raises(InputError, match="the student has weights of the teacher's own modules; give it copies"):
        DistillationTrainer(student, arguments(tmp_path), teacher=teacher)


def test_devices_without_float64_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's GPUs are, on which the Trainer trains by default; on other machines they cannot be used at all."""
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args), "device", torch.device("mps"))
    with pytest.raises(InputError, match=r"device 'mps'.*; set use_cpu of the TrainingArguments to True"):
        DistillationTrainer(plain_model("Llama", 1), args, teacher=plain_model("Llama"))
