"""Encode activations with an SAE."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_distill_floor.annotations import SaeModule


def as_sae_input(
    sae: SaeModule, activation: Float[Tensor, "token *d_model"], n_heads: int
) -> Float[Tensor, "token *d_in"]:
    """Move activations to the SAE's device, in the shape that the SAE reads.

    Args:
        sae: a SAELens SAE.
        activation: activations of some tokens.
        n_heads: attention heads of the teacher, for an SAE that concatenates the heads of `hook_z` itself.
    """
    flat = activation.to(sae.device).flatten(1)
    # `cfg.reshape_activations` says what the SAE can do, the switch what it does now.
    if getattr(sae, "hook_z_reshaping_mode", sae.cfg.reshape_activations == "hook_z"):
        return rearrange(flat, "token (head d_head) -> token head d_head", head=n_heads)
    return flat


def encode_tokens(
    sae: SaeModule, activation: Float[Tensor, "token *d_model"], n_heads: int
) -> Float[Tensor, "token feature"]:
    """Return the SAE's codes of some tokens in fp32; for the arguments see `as_sae_input`."""
    codes: Tensor = sae.encode(as_sae_input(sae, activation, n_heads).to(sae.dtype)).flatten(1).float()
    return codes
