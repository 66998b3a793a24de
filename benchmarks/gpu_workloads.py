"""The teachers and SAEs of `gpu.py`, which are created on the device."""

from functools import lru_cache

import torch
from speed_workloads import Workload
from synthetic_data import random_ids, random_sae

from tl_distill_floor import load_sae, load_teacher
from tl_distill_floor.annotations import Dtype
from tl_distill_floor.sources.devices import TORCH_DTYPES

SIZES = ("tiny-prose", "smollm2", "pythia-410m")
N_FEATURES = {"tiny-prose": 2048, "smollm2": 4608, "pythia-410m": 32_768}
L0 = {"tiny-prose": 24, "smollm2": 40, "pythia-410m": 200}
"""Features that fire on a token of the random SAEs, and of the random codes of bottleneck students."""
SMALL_FEATURES, SMALL_VOCABULARY = 512, 8192
"""Features of a random SAE, and vocabulary of a random model, for a rehearsal."""


@lru_cache(maxsize=1)
def open_workload(size: str, dtype: Dtype, device: str, small: bool) -> Workload:
    """Return a teacher and an SAE on a device, without token ids.

    The SAE is in fp32 whatever the dtype of the teacher, as `load_sae` loads it. Of the last call the result is kept.

    Args:
        size: one of `SIZES`. All but tiny-prose have random weights.
        dtype: dtype of the teacher.
        device: torch device.
        small: whether models with random weights have 2 narrow layers.
    """
    if size == "tiny-prose":
        source = load_sae(None, model_name=size, device=device)
        model = load_teacher(size, device=device, dtype=dtype).model
        return Workload(model, None, source.sae, source.hook_name or "", random_ids(0))
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        # Eager attention, as `load_teacher` loads models.
        plain = AutoModelForCausalLM.from_config(
            _random_config(size, small), dtype=getattr(torch, TORCH_DTYPES[dtype]), attn_implementation="eager"
        )
    model = TransformerBridge.boot_transformers(
        "random",
        hf_model=plain.to(device).eval(),
        tokenizer=load_teacher("tiny-prose").model.tokenizer,
        device=device,
        dtype=getattr(torch, TORCH_DTYPES[dtype]),
    )
    hook_name = f"blocks.{0 if small else 12}.hook_resid_post"
    n_features, l0 = (SMALL_FEATURES, 20) if small else (N_FEATURES[size], L0[size])
    return Workload(model, None, random_sae(model, n_features, hook_name, l0=l0), hook_name, random_ids(0))


def _random_config(size: str, small: bool) -> object:
    """Return the configuration of a model of the shape of SmolLM2-135M or Pythia-410M."""
    from transformers import GPTNeoXConfig, LlamaConfig

    if size == "smollm2":
        shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        narrow = {"hidden_size": 72, "intermediate_size": 192, "num_hidden_layers": 2}
        return LlamaConfig(
            vocab_size=SMALL_VOCABULARY if small else 49_152, num_key_value_heads=3, max_position_embeddings=8192,
            tie_word_embeddings=True,
            **shape | (narrow if small else {}),
        )  # fmt: skip
    assert size == "pythia-410m"
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    narrow = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    return GPTNeoXConfig(
        vocab_size=SMALL_VOCABULARY if small else 50_304, max_position_embeddings=2048,
        **shape | (narrow if small else {}),
    )  # fmt: skip
