"""Write files of SAEs by the rules of their formats, and compute activations in plain PyTorch."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.saes import D_IN, D_SAE


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file, with its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def save_tensors(path: Path, content: Any) -> Path:
    """Write a torch or safetensors file, with its folder, and return its path."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def top_k(pre: Tensor, k: int) -> Tensor:
    """Return the k largest positive entries of each row, and 0 elsewhere."""
    order = pre.argsort(dim=1, descending=True)[:, :k]
    return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).clamp(min=0))


def per_feature_threshold(seed: int = 3) -> Tensor:
    """Return a random threshold for each feature."""
    return torch.rand(D_SAE, generator=torch.Generator().manual_seed(seed)) + 0.3


def random_bias(seed: int = 4) -> Tensor:
    """Return a random bias of the width of the activations."""
    return torch.randn(D_IN, generator=torch.Generator().manual_seed(seed))
