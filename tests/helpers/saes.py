"""Small random SAEs and state dicts, and the message with which `load_sae` refuses one."""

import warnings
from typing import Any

import pytest
import torch

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.saes import load_sae

D_IN, D_SAE = 6, 20
PAPER_FILE = "sae_layer12_final.pt"


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random state dict with SAELens's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear_style(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with the names and orientation of two `nn.Linear` modules."""
    return {
        "encoder.weight": state["W_enc"].T,
        "decoder.weight": state["W_dec"].T,
        "encoder.bias": state["b_enc"],
        "decoder.bias": state["b_dec"],
    }


def tiny_sae(
    architecture: str = "standard", *, metadata: dict[str, Any] | None = None, seed: int = 0, **config: Any
) -> Any:
    """Return a random SAELens SAE."""
    from sae_lens import SAE

    k = {"k": 3} if architecture.endswith("topk") else {}
    base = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, **k, **config, "metadata": metadata or {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = SAE.from_dict(base)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return sae


def refusal(spec: Any, **options: Any) -> str:
    """Return the message with which `load_sae` refuses an SAE, and check that it is one line without a full stop."""
    with pytest.raises(InputError) as caught, without_type_checks():
        load_sae(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message
