"""Sizes that are computed on the meta device equal those of real models."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.helpers.models import VOCABULARY
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.students.model_size import DEFAULT_CONTEXT, ModelSize, choose_cache_context, model_size
from tl_distill_floor.errors import InputError

CONTEXT = 48


def config_of(family: str, **options: Any) -> Any:
    """Return the configuration of a tiny model."""
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0,
    }  # fmt: skip
    return getattr(transformers, f"{family}Config")(**sizes | options)


def cache_tensors(cache: Any) -> list[torch.Tensor]:
    """Return what the layers of a real cache hold: keys and values, and the states of recurrent layers."""
    tensors = []
    for layer in cache.layers:
        states = [getattr(layer, name, None) for name in ("keys", "values", "conv_states", "recurrent_states")]
        for state in states:
            tensors += state.values() if isinstance(state, dict) else [] if state is None else [state]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("GPT2", {}),
        ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("GPTNeoX", {}),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 16}),
        ("Mixtral", {"num_key_value_heads": 2, "num_local_experts": 2}),
        ("ModernBertDecoder", {"local_attention": 16}),  # whose configuration needs an id of the padding
        ("Mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8, "chunk_size": 16}),
    ],
)
@torch.no_grad()
def test_sizes_equal_those_of_a_real_model(family: str, options: dict[str, Any]) -> None:
    config = config_of(family, **options)
    size = model_size(config, "bf16", CONTEXT)
    assert config.pad_token_id == 0  # the configuration is not changed
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    weights = list(model.parameters())
    assert size.n_parameters == sum(weight.numel() for weight in weights)
    assert size.weight_bytes == sum(weight.nbytes for weight in weights)
    output = model(torch.zeros((1, CONTEXT), dtype=torch.long), use_cache=True)
    cache = next(output[name] for name in ("cache", "past_key_values", "cache_params") if name in output)
    assert size.cache_bytes == sum(tensor.nbytes for tensor in cache_tensors(cache))


def test_sizes_are_those_worked_out_by_hand() -> None:
    """The cache has 2 layers, keys and values of 2 heads of 8 dimensions, 48 tokens, 2 bytes; a window, 15 tokens."""
    grouped = config_of("Llama", num_key_value_heads=2)
    assert model_size(grouped, "bf16", 48).cache_bytes == 2 * 2 * 2 * 8 * 48 * 2
    assert model_size(grouped, "fp32", 48).cache_bytes == 2 * 2 * 2 * 8 * 48 * 4
    windowed = config_of("Mistral", num_key_value_heads=2, sliding_window=16)
    assert model_size(windowed, "bf16", 48).cache_bytes == 2 * 2 * 2 * 8 * 15 * 2
    untied, tied = (config_of("Llama", tie_word_embeddings=tie) for tie in (False, True))
    assert model_size(untied, "fp16", 8).n_parameters - model_size(tied, "fp16", 8).n_parameters == VOCABULARY * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options", "context", "n_parameters", "cache_bytes"),
    [
        # Llama 2 7B, with 32 layers of 32 heads of 128 dimensions, and Llama 3 8B, with 8 key-value heads.
        ("Llama", {}, 4096, 6_738_415_616, 2 * 32 * 4096 * 4096 * 2),
        (
            "Llama",
            {"vocab_size": 128_256, "intermediate_size": 14_336, "num_key_value_heads": 8},
            4096,
            8_030_261_248,
            2 * 32 * 1024 * 4096 * 2,
        ),
        ("GPT2", {}, 1024, 124_439_808, 2 * 12 * 768 * 1024 * 2),
    ],
)
def test_sizes_equal_those_of_published_models(
    family: str, options: dict[str, Any], context: int, n_parameters: int, cache_bytes: int
) -> None:
    size = model_size(getattr(transformers, f"{family}Config")(**options), "bf16", context)
    assert size == ModelSize(n_parameters, 2 * n_parameters, cache_bytes)


def test_a_cache_that_the_family_does_not_fill_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    size = model_size(config_of("Llama"), "bf16", 8)
    assert size.cache_bytes is None
    assert size.weight_bytes == 2 * size.n_parameters


def test_rejects_other_dtypes_and_contexts_out_of_range(bridge: Any) -> None:
    assert choose_cache_context(bridge, None) == min(DEFAULT_CONTEXT, 64)
    assert choose_cache_context(bridge, 10) == 10
    for context in (0, 65):
        with pytest.raises(InputError, match=f"the teacher's context has 1 to 64 tokens, got {context}; set context="):
            choose_cache_context(bridge, context)
    message = "memory_dtype must be one of fp32, bf16, fp16, got 'int4'"
    with pytest.raises(InputError, match=message), without_type_checks():
        model_size(config_of("Llama"), "int4", 8)  # type: ignore[arg-type]
