"""Compare measurements, and load one set of weights as different model classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.models import WIDTH
from tl_distill_floor import FeatureStats
from tl_distill_floor.results.codes import Codes


def same_numbers(one: FeatureStats, other: FeatureStats) -> None:
    """To the last bit."""
    for name in ("firing_count", "sum_act", "sum_act_sq", "sum_cost", "sampled_sum", "decoder_norm"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("n_tokens", "n_masked", "sampled_tokens", "sampled_sum_sq", "sampled_error_sq", "fvu"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("n_tokens", "firing_count", "cost"):
        np.testing.assert_array_equal(getattr(one.blocks, name), getattr(other.blocks, name), err_msg=name)
    same_codes(one.codes, other.codes)
    assert one.digest() == other.digest()


def hooked(kind: str, teacher_dir: Path) -> Any:
    """The same weights as another class of model; HookedTransformer's are converted by TransformerLens itself."""
    if kind.endswith("Bridge"):
        from sae_lens import SAETransformerBridge

        return SAETransformerBridge.boot_transformers(str(teacher_dir), device="cpu")
    pytest.importorskip("transformer_lens.HookedTransformer")
    import sae_lens
    import transformer_lens
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights
    from transformers import AutoModelForCausalLM

    config = transformer_lens.HookedTransformerConfig(
        n_layers=3, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=3, d_mlp=48, d_vocab=300, act_fn="gelu",
        normalization_type="LN", positional_embedding_type="rotary", rotary_dim=4, parallel_attn_mlp=True, eps=1e-5,
        device="cpu",
    )  # fmt: skip
    cls = {"HookedTransformer": transformer_lens.HookedTransformer}.get(kind) or getattr(sae_lens, kind)
    model = cls(config, tokenizer=None)
    model.load_state_dict(convert_neox_weights(AutoModelForCausalLM.from_pretrained(teacher_dir), config), strict=False)
    return model


def same_codes(found: Codes | None, expected: Codes | None) -> None:
    """To the last bit."""
    assert found is not None
    assert expected is not None
    assert found.n_features == expected.n_features
    for name in ("row_start", "feature", "value", "sequence"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
