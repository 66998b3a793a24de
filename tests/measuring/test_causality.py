"""Tests that models whose predictions depend on later tokens are no teachers and no students of a Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import VOCABULARY
from tests.helpers.trainers import arguments, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import check_causal

NOT_CAUSAL: list[tuple[str, str, dict[str, Any], str]] = [
    ("Bert", "ForMaskedLM", {}, "predictions of the {} BertForMaskedLM depend on later tokens"),
    ("Bert", "LMHeadModel", {}, "predictions of the {} BertLMHeadModel depend on later tokens"),
    (
        "XLNet",
        "LMHeadModel",
        {"d_inner": 32, "d_head": 8, "max_position_embeddings": None},
        "predictions of the {} XLNetLMHeadModel depend on",
    ),
    ("T5", "ForConditionalGeneration", {"d_kv": 8, "decoder_start_token_id": 0}, "the {} T5.* is an encoder-decoder"),
    (
        "Bart",
        "ForConditionalGeneration",
        {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
        "the {} Bart.* is an encoder-decoder",
    ),
]


@pytest.mark.parametrize(("family", "head", "config", "message"), NOT_CAUSAL)
@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.filterwarnings("ignore")
def test_rejects_models_that_are_not_causal(
    family: str, head: str, config: dict[str, Any], message: str, role: str, tmp_path: Path
) -> None:
    models = {"teacher": plain_model("Llama"), "student": plain_model("Llama", 1)}
    models[role] = plain_model(family, head=head, **config)
    with pytest.raises(InputError, match=message.format(role)):
        DistillationTrainer(models["student"], arguments(tmp_path), teacher=models["teacher"])


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Mamba2", {"num_heads": 4, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
        ("Mixtral", {"num_local_experts": 4, "num_key_value_heads": 2}),
        ("Bloom", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accepts_causal_models_in_both_precisions(family: str, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Rounding depends on the length of a sequence."""
    model = plain_model(family, **config).to(dtype)
    check_causal(model, "teacher", VOCABULARY, lambda ids: model(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("dtype", "head", "is_decoder"),
    [
        (torch.float32, "LMHeadModel", True),
        (torch.bfloat16, "LMHeadModel", True),
        (torch.bfloat16, "ForMaskedLM", False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_is_judged_by_its_predictions(dtype: torch.dtype, head: str, is_decoder: bool) -> None:
    model = plain_model("Bert", head=head, is_decoder=is_decoder).to(dtype)
    logits_of = lambda ids: model(ids).logits  # noqa: E731
    if is_decoder:
        check_causal(model, "teacher", VOCABULARY, logits_of)
        return
    with pytest.raises(InputError, match="depend on later tokens"):
        check_causal(model, "teacher", VOCABULARY, logits_of)


def test_rejects_a_model_that_depends_on_the_length_of_a_sequence_only() -> None:
    """Such a model counts positions from the end of a batch."""

    class FromTheEnd(nn.Module):
        """Predictions of random size that depend on the number of positions that follow."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 10, generator=torch.Generator().manual_seed(0)))

        def forward(self, ids: Tensor) -> Tensor:
            """Return the logits."""
            return self.weight[: ids.shape[1]].flip(0).expand(len(ids), -1, -1)

    model = FromTheEnd()
    with pytest.raises(InputError, match="depend on padding after a sequence"):
        check_causal(model, "student", 10, model)
