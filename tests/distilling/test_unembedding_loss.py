"""Tests of losses that are computed inside of a student's forward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tl_distill_floor.distilling.hf_trainer.unembedding_loss import loss_at_unembedding
from tl_distill_floor.errors import InputError


@pytest.fixture
def model() -> Any:
    """Create a small Gemma 2, which caps its logits and whose unembedding is its embedding."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


IDS = torch.arange(12).view(2, 6)


def test_loss_and_gradients_equal_those_of_the_full_logits(model: Any) -> None:
    """Also of a model that changes its logits after the unembedding: the loss is not changed by it."""

    def squared_logits(_hidden: Tensor, unembed: nn.Module, _matched: Tensor | None) -> Tensor:
        logits: Tensor = unembed(_hidden)
        return logits.square().mean()

    outputs: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(IDS)
    handle.remove()
    expected = outputs[0].square().mean()
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    with loss_at_unembedding(model, squared_logits):
        loss = model(IDS).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name])


def test_residual_stream_is_that_after_the_layer(model: Any) -> None:
    seen: list[Tensor | None] = []

    def keep(hidden: Tensor, _unembed: nn.Module, matched: Tensor | None) -> Tensor:
        seen.append(matched)
        return hidden.sum()

    with torch.no_grad(), loss_at_unembedding(model, keep, layer=0):
        model(IDS)
    expected = model(IDS, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(seen[0], expected)


def test_model_is_restored_also_after_an_error(model: Any) -> None:
    logits = model(IDS).logits

    def fail(_hidden: Tensor, _unembed: nn.Module, _matched: Tensor | None) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), loss_at_unembedding(model, fail, layer=1):
        model(IDS)
    assert "forward" not in vars(model.lm_head)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(IDS).logits, logits)


def test_forward_pass_that_another_library_replaced_is_used_and_restored(model: Any) -> None:
    original = model.lm_head.forward
    doubled = model.lm_head.forward = lambda hidden: 2 * original(hidden)
    with torch.no_grad(), loss_at_unembedding(model, lambda hidden, unembed, _: unembed(hidden).sum()):
        loss = model(IDS).loss
    assert model.lm_head.forward is doubled
    with torch.no_grad(), loss_at_unembedding(model, lambda hidden, _unembed, _: 2 * original(hidden).sum()):
        torch.testing.assert_close(model(IDS).loss, loss)


def test_rejects_an_unembedding_without_its_weight_as_a_parameter(model: Any) -> None:
    """FSDP version 1 without the original parameters has such an unembedding, whose gradient would be lost."""
    weight = model.lm_head.weight.detach()
    del model.lm_head._parameters["weight"]
    model.lm_head.weight = weight
    with (
        loss_at_unembedding(model, lambda hidden, unembed, _: unembed(hidden).sum()),
        pytest.raises(InputError, match="set fsdp_version to 2"),
    ):
        model(IDS)


def test_rejects_a_model_that_does_not_use_its_unembedding(model: Any) -> None:
    model.get_output_embeddings = lambda: nn.Linear(16, 50)
    with (
        loss_at_unembedding(model, lambda hidden, unembed, _: unembed(hidden).sum()),
        pytest.raises(InputError, match="did not reach its unembedding"),
    ):
        model(IDS)
