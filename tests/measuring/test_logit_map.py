"""Logits that a model scales or caps after its unembedding: measured on the model, in training and in judging."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    NanoChatConfig,
    PreTrainedConfig,
)

from tests.helpers.models import VOCABULARY
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.distill import distill
from tl_distill_floor.distilling.training.student_module import Backbone
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.logit_map import LogitMap, check_same_logits, measure_logit_map

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA = SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
FAMILIES: dict[str, tuple[Callable[[], PreTrainedConfig], LogitMap]] = {
    "llama": (lambda: LlamaConfig(**SIZES, pad_token_id=0), LogitMap()),
    "gemma-2, cap 30": (
        lambda: Gemma2Config(**GEMMA, pad_token_id=0, final_logit_softcapping=30.0),
        LogitMap(cap=30.0),
    ),
    "gemma-2, cap 5": (
        lambda: Gemma2Config(**GEMMA, pad_token_id=None, final_logit_softcapping=5.0),
        LogitMap(cap=5.0),
    ),
    "gemma-2, no cap": (
        lambda: Gemma2Config(**GEMMA, pad_token_id=0, final_logit_softcapping=None),
        LogitMap(),
    ),
    "granite, divided by 7": (
        lambda: GraniteConfig(**SIZES, pad_token_id=0, logits_scaling=7.0),
        LogitMap(scale=1 / 7),
    ),
    "cohere": (lambda: CohereConfig(**SIZES, pad_token_id=0, logit_scale=0.0625), LogitMap(scale=0.0625)),
    "nanochat": (
        lambda: NanoChatConfig(**SIZES, pad_token_id=0, final_logit_softcapping=15.0),
        LogitMap(cap=15.0),
    ),
}


def random_model(config: PreTrainedConfig, scale: float = 1.0) -> nn.Module:
    """Return a model with random weights, whose unembedding is multiplied by `scale`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [0.01, 20.0])
def test_measures_the_scale_and_the_cap_of_each_family(family: str, scale: float, ids: torch.Tensor) -> None:
    """The cap is found also where the model's own logits are far below it."""
    config, expected = FAMILIES[family]
    model = random_model(config(), scale)
    backbone = Backbone(model, ids=ids[:3])
    assert backbone.logit_map.scale == pytest.approx(expected.scale)
    assert backbone.logit_map.cap == expected.cap
    with torch.no_grad():
        hidden = backbone(ids[:3]).last_hidden
        logits = backbone.logits(hidden.flatten(0, 1)).compute(slice(None))
        torch.testing.assert_close(logits, model(ids[:3]).logits.flatten(0, 1))


def test_caps_match_the_definition() -> None:
    unembedded = torch.tensor([-100.0, -1.0, 0.0, 0.5])
    expected = [4.0 * torch.tanh(torch.tensor(3.0 * u / 4.0)) for u in unembedded.tolist()]
    assert LogitMap(scale=3.0, cap=4.0)(unembedded).tolist() == pytest.approx([float(value) for value in expected])
    assert LogitMap()(unembedded) is unembedded


class OtherLogits(nn.Module):
    """A model that changes its logits by a function."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.unembed, self.change = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False), change

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.change(self.unembed(self.embed(ids)))
        return logits


@pytest.mark.parametrize(
    "change",
    [
        lambda u: u + 1.0,
        lambda u: u.clamp(-3, 3),
        lambda u: u * torch.linspace(1, 2, 50),
        lambda u: u.masked_fill(torch.arange(50) == 7, -torch.inf),
        lambda u: torch.relu(u),
        lambda u: u[..., :-1],
    ],
    ids=["shifted", "clamped", "scaled by token", "masked", "rectified", "cut"],
)
def test_rejects_other_changes_of_the_logits(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = OtherLogits(change)
    with pytest.raises(InputError, match="OtherLogits"):
        measure_logit_map(model, model.unembed, model, torch.arange(20).view(2, 10))


def test_logits_of_minus_infinity_count_as_equal() -> None:
    masked = torch.tensor([[1.0, -torch.inf]])
    check_same_logits(nn.Linear(1, 1), masked, masked.clone())
    with pytest.raises(InputError, match="changes its logits"):
        check_same_logits(nn.Linear(1, 1), torch.tensor([[1.0, 0.0]]), masked)


@pytest.mark.parametrize("family", ["gemma-2, cap 5", "granite, divided by 7", "nanochat"])
def test_reported_loss_is_that_of_the_saved_student(
    family: str, ids: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    """The loss of the two saved models is computed by plain transformers, in float64."""
    from transformer_lens.model_bridge import TransformerBridge

    directory = tmp_path / "teacher"
    random_model(FAMILIES[family][0](), scale=20.0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    config = DistillConfig(n_tokens=32 * 8 * 4, batch_size=8, n_evaluations=2, n_heldout_tokens=256, early_stop=False)
    teacher = TransformerBridge.boot_transformers(str(directory), device="cpu")
    result = distill(teacher, 16, ids[:32], start="random", heldout=ids[32:], out=tmp_path / "run", config=config)
    assert result.path is not None
    heldout = ids[32:]
    with torch.no_grad():
        log_p, log_q = (
            AutoModelForCausalLM.from_pretrained(path)(heldout).logits.double().log_softmax(-1)
            for path in (directory, result.path)
        )
    counted = heldout != 0
    counted[:, 0] = False
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[counted].mean()
    assert result.loss == pytest.approx(float(expected), rel=1e-4)
