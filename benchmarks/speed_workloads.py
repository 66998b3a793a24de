"""The teachers, SAEs and token ids on which `speed.py` times the stages of a measurement."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from synthetic_data import random_ids, random_sae

from tl_distill_floor import load_sae, load_teacher
from tl_distill_floor.sources.devices import device_of

BATCH_SIZE = 16
"""Sequences per batch, as on the command line."""


class Workload(NamedTuple):
    """A teacher, an SAE for it, and token ids."""

    model: Any
    """The teacher, a TransformerLens model."""
    plain: Any
    """A transformers model of the same class and size, with random weights; None if it is not compared."""
    sae: Any
    hook_name: str
    ids: torch.Tensor
    """Token ids [sequence, position], on the CPU."""
    batch_size: int = BATCH_SIZE
    """Sequences per batch."""

    @property
    def device(self) -> torch.device:
        """Device of the teacher."""
        return device_of(self.model)

    def batches(self) -> Iterator[torch.Tensor]:
        """Yield the token ids of each batch, on the teacher's device."""
        for batch in self.ids.split(self.batch_size):
            yield batch.to(self.device)


def tiny_prose(n_tokens: int) -> Workload:
    """Return the embedded teacher and its SAE."""
    source = load_sae(None, model_name="tiny-prose")
    return _workload(load_teacher("tiny-prose").model, source.sae, source.hook_name, n_tokens)


def smollm2(n_tokens: int) -> Workload:
    """Return SmolLM2-135M with a random SAE of 4,608 features."""
    hook_name = "blocks.12.hook_resid_post"
    model = load_teacher("smollm2-135m").model
    return _workload(model, random_sae(model, 4608, hook_name), hook_name, n_tokens)


def pythia_410m(n_tokens: int) -> Workload:
    """Return a random model of Pythia-410M's shape, with a random SAE of 32,768 features of which about 200 fire."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = load_teacher("tiny-prose").model.tokenizer
    model = TransformerBridge.boot_transformers("random", hf_model=GPTNeoXForCausalLM(config), tokenizer=tokenizer)
    hook_name = "blocks.12.hook_resid_post"
    return _workload(model, random_sae(model, 32_768, hook_name, l0=200), hook_name, n_tokens)


def _workload(model: Any, sae: Any, hook_name: str, n_tokens: int) -> Workload:
    """Add token ids and a plain transformers model."""
    inner = model.original_model
    return Workload(model, type(inner)._from_config(inner.config).eval(), sae, hook_name, random_ids(n_tokens))
