"""Teachers with a context shorter than the samples of the checks are measured, distilled and planned as others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tests.helpers.trainers import arguments, kl_of_rows, plain_model
from tl_distill_floor import DistillationTrainer, DistillConfig, InputError, distill, plan, predict_floor
from tl_distill_floor.distilling.students.family_models import sample_ids
from tl_distill_floor.measuring.kl import forward_kl
from tl_distill_floor.measuring.module_outputs import hook_point_of_module
from tl_distill_floor.sources.context_lengths import longest_of_config, teacher_context
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import choose_context_size, load_teacher

FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"head": "LMHeadModel", "max_position_embeddings": 8},
    "OPT": {"max_position_embeddings": 5, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "Mpt": {"max_position_embeddings": None, "max_seq_len": 7, "n_heads": 2, "n_layers": 2},
}


@pytest.fixture(params=FAMILIES, scope="module")
def teacher(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """Load a random teacher that has no more positions than its context, or fails beyond it."""
    directory = tmp_path_factory.mktemp(request.param)
    plain_model(request.param, **FAMILIES[request.param]).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return load_teacher(directory)


@pytest.fixture(scope="module")
def rows(teacher: Teacher) -> torch.Tensor:
    """Return random sequences as long as the context, without special tokens."""
    shape = (48, teacher_context(teacher.model))
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))


def test_the_context_is_that_of_the_configuration(teacher: Teacher) -> None:
    """TransformerLens states 2,048 tokens for MPT."""
    config = teacher.model.original_model.config  # type: ignore[attr-defined]
    expected = {"gpt2": 8, "opt": 5, "mpt": 7}[config.model_type]
    assert choose_context_size(teacher.model) == teacher_context(teacher.model) == longest_of_config(config) == expected
    assert sample_ids(config).shape[1] < expected
    with pytest.raises(InputError, match=f"the teacher reads sequences of 2 to {expected} tokens, got {expected + 1}"):
        choose_context_size(teacher.model, expected + 1)


def test_a_student_is_predicted_planned_and_distilled(teacher: Teacher, rows: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    floor = predict_floor(teacher, text=rows, steps=10, widths=[4, 8])
    assert floor.head is not None
    assert plan(floor, teacher, max_width=8, min_speedup=1e-3).width == 8
    n = rows.shape[1]
    config = DistillConfig(n_tokens=32 * n, n_heldout_tokens=8 * n, n_evaluations=2, batch_size=8)
    student = distill(teacher, 8, rows[:40], heldout=rows[40:], config=config, out=tmp_path)
    plain, saved = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (teacher.name, student.path)
    )
    with torch.no_grad():
        kl = forward_kl(plain(rows[40:]).logits, saved(rows[40:]).logits)
    assert student.loss == pytest.approx(float(kl[:, 1:].mean()), rel=1e-4)


def test_a_student_is_trained_by_the_trainer(teacher: Teacher, rows: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(teacher.name, dtype=torch.float32).eval()
    data = [{"input_ids": row} for row in rows[:4].tolist()]
    trainer = DistillationTrainer(teacher=plain, width=8, args=arguments(tmp_path), eval_dataset=data)
    expected = kl_of_rows(plain, trainer.model, list(rows[:4]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_hook_point_of_a_module_is_found(teacher: Teacher) -> None:
    model_type = teacher.model.original_model.config.model_type  # type: ignore[attr-defined]
    block = {"gpt2": "h.1", "opt": "layers.1", "mpt": "blocks.1"}[model_type]
    name = "blocks.1.hook_resid_post"
    assert hook_point_of_module(teacher.model, name, block) == name
