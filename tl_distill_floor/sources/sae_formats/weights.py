"""The weights of an SAE in one layout, and checks of them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_distill_floor.errors import InputError


@dataclass(frozen=True)
class SaeWeights:
    """Weights of an SAE: codes = act((x - [b_dec]) @ W_enc + b_enc), reconstruction = codes @ W_dec + b_dec."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    subtract_b_dec: bool
    """Whether b_dec is also subtracted from x before the encoder."""
    threshold: Float[Tensor, " d_sae"] | None = None
    """Pre-activation above which a feature of a JumpReLU SAE is active; None for the others."""
    k: int | None = None
    """Active features per token of a TopK SAE; None for the others."""
    signed: bool = False
    """Whether the k codes of the largest magnitude are kept with their sign (AbsTopK)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The stated settings of the SAE's training, by SAELens's names; `layer` if a layer is named but no hook point."""


def make_weights(
    name: str,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor | None,
    b_dec: Tensor | None,
    *,
    subtract_b_dec: bool,
    threshold: Tensor | float | None = None,
    k: object = None,
    signed: bool = False,
    metadata: dict[str, Any] | None = None,
) -> SaeWeights:
    """Return checked weights.

    Args:
        name: name of the SAE, for error messages.
        W_enc: encoder [d_in, d_sae].
        W_dec: decoder [d_sae, d_in].
        b_enc: bias of the encoder [d_sae]; zeros if None.
        b_dec: bias that is added after the decoder [d_in]; zeros if None.
        subtract_b_dec: whether b_dec is also subtracted before the encoder.
        threshold: threshold of a JumpReLU SAE, a number or [d_sae].
        k: active features of a TopK SAE, an integer.
        signed: see `SaeWeights`.
        metadata: see `SaeWeights`.

    Raises:
        InputError: shapes do not fit together, a weight is not finite, or k is not an integer from 1 to d_sae.
    """
    if W_enc.ndim != 2 or W_enc.T.shape != W_dec.shape:
        raise InputError(
            f"{name} holds an encoder of shape {list(W_enc.shape)} (input, feature) and a decoder of shape"
            f" {list(W_dec.shape)}, which do not fit together; give another file"
        )
    d_in, d_sae = W_enc.shape
    b_enc = W_enc.new_zeros(d_sae) if b_enc is None else b_enc
    b_dec = W_enc.new_zeros(d_in) if b_dec is None else b_dec
    if threshold is not None:
        threshold = torch.as_tensor(threshold, dtype=torch.float32)
        threshold = threshold.expand(d_sae) if threshold.numel() == 1 else threshold
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    sizes = {"b_enc": d_sae, "b_dec": d_in, "threshold": d_sae}
    for label, tensor in tensors.items():
        if tensor is None:
            continue
        if label in sizes and tuple(tensor.shape) != (sizes[label],):
            raise InputError(
                f"{name} holds a {label} of shape {list(tensor.shape)}, expected [{sizes[label]}] for {d_in} inputs and"
                f" {d_sae} features; give another file"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds NaN or Inf in {label}; give a file saved before training diverged")
    return SaeWeights(
        W_enc,
        W_dec,
        b_enc,
        b_dec,
        subtract_b_dec,
        threshold,
        None if k is None else check_k(k, d_sae, name),
        signed,
        dict(metadata or {}),
    )


def fold_bias(W_enc: Tensor, b_enc: Tensor, b_pre: Tensor) -> Tensor:
    """Return b with (x - b_pre) @ W_enc + b_enc = x @ W_enc + b; in fp32 if the weights are of half precision."""
    folded: Tensor = b_enc.double() - b_pre.double() @ W_enc.double()
    return folded.to(torch.promote_types(W_enc.dtype, torch.float32))


def full_precision(tensor: Tensor) -> Tensor:
    """Return a tensor in fp32 if it is of half precision, so that what is computed from it is not rounded."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_k(k: object, d_sae: int, name: str) -> int:
    """Return k as an integer, or raise an InputError if it is not an integer from 1 to d_sae."""
    number = k.item() if isinstance(k, Tensor) and k.numel() == 1 else k
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"{name} has k={number!r:.40}, expected an integer from 1 to {d_sae} (its features)")
    if not 0 < number <= d_sae or number != int(number):  # NaN is not in the range either
        raise InputError(f"{name} has k={number:g}, expected an integer from 1 to {d_sae} (its features)")
    return int(number)
