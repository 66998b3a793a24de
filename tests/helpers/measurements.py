"""Compare measurements, cache activations, and load one set of weights as different model classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.models import CONTEXT, HOOK, WIDTH
from tl_distill_floor import FeatureStats
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.results.codes import Codes


def assert_same_stats(stats: FeatureStats, expected: FeatureStats) -> None:
    """Assert that two measurements are identical to the last bit."""
    for name in ("firing_count", "sum_act", "sum_act_sq", "sum_cost", "sampled_sum", "decoder_norm"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(expected, name), err_msg=name)
    scalars = ("n_tokens", "n_cost_tokens", "n_masked", "sampled_tokens", "sampled_sum_sq", "sampled_error_sq", "fvu")
    for name in (*scalars, "ids_digest"):
        assert getattr(stats, name) == getattr(expected, name), name
    for name in ("n_tokens", "n_cost_tokens", "firing_count", "cost"):
        np.testing.assert_array_equal(getattr(stats.blocks, name), getattr(expected.blocks, name), err_msg=name)
    assert_same_codes(stats.codes, expected.codes)
    assert stats.digest() == expected.digest()


def assert_same_codes(codes: Codes | None, expected: Codes | None) -> None:
    """Assert that codes are kept in both and are identical to the last bit."""
    assert codes is not None
    assert expected is not None
    assert codes.n_features == expected.n_features
    for name in ("row_start", "feature", "value", "sequence"):
        np.testing.assert_array_equal(getattr(codes, name), getattr(expected, name), err_msg=name)


def load_as(model_class: str, teacher_dir: Path) -> Any:
    """Load a teacher's weights as another model class; TransformerLens converts them for HookedTransformer."""
    if model_class.endswith("Bridge"):
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
    is_hooked = model_class == "HookedTransformer"
    cls = transformer_lens.HookedTransformer if is_hooked else getattr(sae_lens, model_class)
    model = cls(config, tokenizer=None)
    model.load_state_dict(convert_neox_weights(AutoModelForCausalLM.from_pretrained(teacher_dir), config), strict=False)
    return model


def save_cache(path: Path, bridge: Any, ids: torch.Tensor, *, token_ids: bool = True) -> Path:
    """Save activations as SAELens's CacheActivationsRunner does."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    with activation_reader(bridge, [HOOK]) as read:
        (activation,) = read(ids)
    features = {HOOK: Array2D((CONTEXT, WIDTH), "float32")}
    columns = {HOOK: activation.numpy()}
    if token_ids:
        features["token_ids"], columns["token_ids"] = Sequence(Value("int32"), CONTEXT), ids.numpy()
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(path)
    return path
