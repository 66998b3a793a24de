"""Promoted tokens, compared with a computation by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import FEATURES
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.measuring import direct_logits
from tl_distill_floor.measuring.direct_logits import find_promoted_tokens, promoted_strings
from tl_distill_floor.measuring.strongest_contexts import token_decoder


@pytest.fixture(scope="module")
def hooked_transformer() -> Any:
    """Create a HookedTransformer with one layer and random weights."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=16, n_ctx=8, d_head=8, d_vocab=40, act_fn="gelu", normalization_type="LN", seed=3
    )
    model = HookedTransformer(config)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (model.ln_final.w, model.ln_final.b, model.unembed.b_U):
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


def expected_tokens(rows: torch.Tensor, weight: torch.Tensor, W_U: torch.Tensor, n: int) -> list[list[int]]:
    """Return the promoted tokens for a LayerNorm with a weight and an unembedding [d_model, token]; biases cancel."""
    rows = rows.double()
    centered = rows - rows.mean(-1, keepdim=True)
    normed = centered / centered.square().mean(-1, keepdim=True).sqrt() * weight.double()
    return (normed @ W_U.double()).argsort(dim=1, descending=True)[:, :n].tolist()


def test_promoted_tokens_of_hooked_transformer_match_hand_computation(
    hooked_transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(7, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 7)[:, None]
    promoted = find_promoted_tokens(hooked_transformer, rows)
    assert promoted.tolist() == expected_tokens(
        rows, hooked_transformer.ln_final.w.detach(), hooked_transformer.unembed.W_U.detach(), 6
    )
    monkeypatch.setattr(direct_logits, "LOGITS_AT_ONCE", 100)  # two rows at a time
    np.testing.assert_array_equal(find_promoted_tokens(hooked_transformer, rows), promoted)
    np.testing.assert_array_equal(find_promoted_tokens(hooked_transformer, rows, 2), promoted[:, :2])


def test_promoted_tokens_of_bridge_match_hand_computation(bridge: Any, sae: Any) -> None:
    model = bridge.original_model
    weight, W_U = model.gpt_neox.final_layer_norm.weight.detach(), bridge.unembed.W_U.detach()
    promoted = find_promoted_tokens(bridge, sae.W_dec)
    assert promoted.shape == (FEATURES, 6)
    assert promoted.tolist() == expected_tokens(sae.W_dec.detach(), weight, W_U, 6)


def test_row_of_zeros_promotes_no_token(hooked_transformer: Any) -> None:
    promoted = find_promoted_tokens(hooked_transformer, torch.stack([torch.zeros(16), torch.ones(16).cumsum(0)]))
    assert (promoted[0] == -1).all()
    assert (promoted[1] >= 0).all()


def test_promoted_tokens_are_unknown_outside_the_residual_stream(
    hooked_transformer: Any, bridge: Any, sae: Any
) -> None:
    assert find_promoted_tokens(hooked_transformer, torch.ones(7, 24)).shape == (7, 0)
    assert find_promoted_tokens(hooked_transformer, torch.ones(7, 2, 8)).shape == (7, 0)
    for name in ("ln_final", "unembed"):
        without: Any = SimpleNamespace(cfg=hooked_transformer.cfg, **{name: getattr(hooked_transformer, name)})
        with without_type_checks():
            assert find_promoted_tokens(without, torch.ones(7, 16)).shape == (7, 0)
    for point in ("hook_resid_post", "hook_mlp_out"):
        assert [len(tokens) for tokens in promoted_strings(bridge, sae.W_dec, f"blocks.1.{point}")] == [6] * FEATURES
    # The concatenated heads have the width of the residual stream here, but are not added to it.
    assert promoted_strings(bridge, sae.W_dec, "blocks.1.attn.hook_z") == [()] * FEATURES


def test_find_promoted_tokens_does_not_change_the_model(hooked_transformer: Any) -> None:
    hooked_transformer.train()
    before = {name: parameter.clone() for name, parameter in hooked_transformer.named_parameters()}
    find_promoted_tokens(hooked_transformer, torch.ones(3, 16, requires_grad=True))
    assert all(module.training for module in hooked_transformer.modules())
    assert not any(point.fwd_hooks or point._forward_hooks for point in hooked_transformer.hook_dict.values())
    for name, parameter in hooked_transformer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad


def test_promoted_strings_are_those_of_the_tokens(bridge: Any, sae: Any, tokenizer: Any) -> None:
    decode = token_decoder(tokenizer)
    expected = [tuple(map(decode, row)) for row in find_promoted_tokens(bridge, sae.W_dec).tolist()]
    assert promoted_strings(bridge, sae.W_dec, "blocks.1.hook_resid_post") == expected


def test_promoted_strings_are_ids_without_a_tokenizer(hooked_transformer: Any) -> None:
    rows = torch.stack([torch.zeros(16), torch.ones(16).cumsum(0)])
    ids = find_promoted_tokens(hooked_transformer, rows)[1].tolist()
    expected = [(), tuple(f"⟨{token}⟩" for token in ids)]
    assert promoted_strings(hooked_transformer, rows, "blocks.0.hook_resid_post") == expected
