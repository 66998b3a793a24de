"""A tiny teacher with random weights, its sizes, and a short text. Nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS, VOCABULARY, CONTEXT, FEATURES = 24, 3, 300, 32, 96
HOOK = "blocks.1.hook_resid_post"

PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a"
    " wife. Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and"
    " nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the"
    " world. "
)


def save_teacher(directory: Path, tokenizer: Any, layers: int) -> Path:
    """Save a GPT-NeoX with random weights as a Hugging Face directory, and return the directory."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=3,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    GPTNeoXForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_family(directory: Path, tokenizer: Any, family: str, *, head: str = "ForCausalLM", **config: Any) -> Path:
    """Save a tiny model of a transformers family with random weights, and return the directory.

    The weights of norms are random too, so that it matters where a norm is applied.

    Args:
        directory: where to save it.
        tokenizer: a tokenizer of at most `VOCABULARY` tokens.
        family: name of the family as in transformers' class names, such as "Llama".
        head: rest of the class name, such as "Model" for a model without a head.
        config: options of the configuration that differ.
    """
    import transformers

    options = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**options | config))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=random))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
