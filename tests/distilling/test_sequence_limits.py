"""Tests of the lengths of rows that a teacher and a student in a Trainer read."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.trainers import arguments, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.distilling.sequence_limits import SequenceLimits, sequence_limits
from tl_distill_floor.errors import InputError


@pytest.mark.parametrize(
    ("family", "config", "longest"),
    [
        ("Llama", {"max_position_embeddings": 24, "num_attention_heads": 2}, 24),
        ("GPT2", {"n_positions": 24, "n_head": 2}, 24),
        ("Mpt", {"n_heads": 2, "max_seq_len": 24}, 24),
        ("Bloom", {"n_head": 2}, None),
        ("Mamba", {}, None),
    ],
)
def test_the_longest_sequence_is_that_of_the_configuration(
    family: str, config: dict[str, Any], longest: int | None
) -> None:
    import transformers

    options = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1} | config
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**options))
    assert sequence_limits(model) == SequenceLimits(longest)


def test_the_longest_sequence_of_a_teacher_with_hook_points_is_its_context(bridge: Any) -> None:
    assert sequence_limits(bridge) == SequenceLimits(64)


@pytest.mark.parametrize("shorter", ["teacher", "student"])
def test_rows_beyond_a_context_are_refused_by_name(shorter: str, tmp_path: Path) -> None:
    models = {
        name: plain_model("GPT2", head="LMHeadModel", max_position_embeddings=16 if name == shorter else 64)
        for name in ("teacher", "student")
    }
    rows = [{"input_ids": list(range(17))}]
    args = arguments(tmp_path)
    trainer = DistillationTrainer(models["student"], args, teacher=models["teacher"], train_dataset=rows)
    with pytest.raises(InputError, match=f"the {shorter} reads sequences of 2 to 16 tokens, got 17"):
        trainer.train()
