"""Number of parameters of a model, and the memory of its weights and its KV cache, without allocating them."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tl_distill_floor.annotations import HookedModel, MemoryDtype
from tl_distill_floor.distilling.students.family_models import create_shell
from tl_distill_floor.distilling.students.student_config import hugging_face_config
from tl_distill_floor.errors import InputError, as_integer, check_choice
from tl_distill_floor.sources.context_lengths import longest_of_config

MEMORY_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the cache in the outputs of the versions of transformers, and of recurrent models."""
DEFAULT_CONTEXT = 4096
"""Tokens in the KV cache by default, unless the teacher's context is shorter."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters and memory of a model."""

    n_parameters: int
    """Number of parameters; tied weights count once."""
    weight_bytes: int
    """Bytes of the weights."""
    cache_bytes: int | None
    """Bytes of the KV cache (also of recurrent states) for one sequence; None if it is not known."""


@torch.no_grad()
def model_size(config: PreTrainedConfig, dtype: MemoryDtype, context: int) -> ModelSize:
    """Return the parameters of a model, and the bytes of its weights and of the cache of one sequence.

    The cache is the one that the model itself creates in a forward pass of `context` tokens on torch's meta device,
    which computes shapes only. So sliding windows, grouped queries and recurrent layers are taken into account.

    Args:
        config: Hugging Face configuration.
        dtype: dtype of the weights and the cache.
        context: tokens in the cache.

    Raises:
        InputError: the family has no model of this configuration.

    Example:
        >>> from transformers import GPT2Config
        >>> model_size(GPT2Config(n_embd=32, n_layer=2, n_head=4), "bf16", context=100).cache_bytes
        25600
    """
    check_choice("memory_dtype", dtype, MemoryDtype)
    model = create_shell(copy.deepcopy(config)).to("meta", MEMORY_DTYPES[dtype])
    weights = list(model.parameters())
    return ModelSize(
        n_parameters=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        cache_bytes=_cache_bytes(model, context),
    )


def choose_cache_context(model: HookedModel, context: int | None) -> int:
    """Return a number of tokens in the KV cache that was given, or by default 4096 or the teacher's context.

    Args:
        model: the teacher's model.
        context: tokens in the cache; None for the default.

    Raises:
        InputError: the context is not an integer, below 1, or longer than the teacher's.
    """
    longest = longest_of_config(hugging_face_config(model)) or int(model.cfg.n_ctx)
    if context is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 1 <= as_integer("context", context) <= longest:
        raise InputError(f"the teacher's context has 1 to {longest:,} tokens, got {context:,}; set --context")
    return as_integer("context", context)


def _cache_bytes(model: nn.Module, context: int) -> int | None:
    """Return the bytes of the cache of one sequence; None if the model cannot be run on the meta device."""
    with suppress(Exception):  # a strict configuration may require one
        model.config.pad_token_id = None  # type: ignore[union-attr]  # some families look for padding in the token ids
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # type: ignore[operator]  # the others look at values
    try:
        output = model(torch.zeros(1, context, dtype=torch.long, device="meta"), use_cache=True)
        cache = next(output[name] for name in CACHE_NAMES if name in output)
        states = [tensor for tensor in _tensors(cache, set()) if tensor.is_floating_point()]
    except Exception:  # the code of a family can raise anything
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in states) or None


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in an object, its attributes, lists and dictionaries, each once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    named = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    for part in value if isinstance(value, list | tuple) else list(named.values()):
        yield from _tensors(part, seen)
