"""Tests of the lengths of rows that a teacher and a student in a Trainer read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tests.helpers.trainers import arguments, kl_of_rows, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.distilling.hf_trainer.sequence_limits import SequenceLimits, sequence_limits
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


def test_rows_are_not_run_with_the_rotary_frequencies_of_longer_rows(tmp_path: Path) -> None:
    """Nor are they run with those for the padding of a batch. Rows on one side of the switch are run together."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    teacher, student = (
        plain_model("Phi3", seed, rope_parameters=rope, original_max_position_embeddings=16) for seed in (0, 1)
    )
    assert sequence_limits(teacher) == SequenceLimits(64, (16,))
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, VOCABULARY, (length,), generator=random).tolist() for length in (9, 16, 17, 24)]

    def padded(features: Any) -> Any:
        """Return a batch whose padding reaches beyond the switch."""
        ids = torch.tensor([[*row["input_ids"], *[0] * (32 - len(row["input_ids"]))] for row in features])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    for collator in (None, padded):
        trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher, data_collator=collator)
        for part in (rows[:2], rows[2:]):
            loss = trainer.evaluate([{"input_ids": row} for row in part])["eval_loss"]
            assert loss == pytest.approx(kl_of_rows(teacher, student, part), rel=1e-4)
    with pytest.raises(InputError, match="more than 16 tokens, and a batch has rows of 9 to 24; cut the rows"):
        trainer.evaluate([{"input_ids": row} for row in rows])


def test_rope_that_grows_with_a_sequence_does_so_beyond_the_context_only(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    teacher, student = (plain_model("Llama", seed, rope_parameters=rope, max_position_embeddings=16) for seed in (0, 1))
    rows = [list(range(3, 3 + length)) for length in (8, 16)]
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher=teacher)
    loss = trainer.evaluate([{"input_ids": row} for row in rows])["eval_loss"]
    assert loss == pytest.approx(kl_of_rows(teacher, student, rows), rel=1e-4)
    with pytest.raises(InputError, match="the teacher reads sequences of 2 to 16 tokens, got 17"):
        trainer.evaluate([{"input_ids": list(range(17))}])
