"""Reading a teacher's activation at a hook point. The model leaves as it came: no hook, no changed mode."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.errors import InputError

# HookedTransformer's name of a point within a block, and TransformerBridge's: either model is asked by either name.
ALIASES = {
    "hook_resid_post": "hook_out",
    "hook_resid_pre": "hook_in",
    "hook_mlp_out": "mlp.hook_out",
    "hook_attn_out": "attn.hook_out",
    "attn.hook_z": "attn.o.hook_in",
}
# What a block adds to the residual stream, where it normalises that once more (Gemma 2 and later).
POST_NORM = {"hook_mlp_out": "ln2_post.hook_out", "hook_attn_out": "ln1_post.hook_out"}
OTHER_NAME = ALIASES | {bridge: hooked for hooked, bridge in ALIASES.items()}


class _ReachedHookPointError(Exception):
    """Ends a forward pass at the hook point: nothing behind it is computed."""


def resid_post(layer: int) -> str:
    """The hook point of the residual stream after `layer`."""
    return f"blocks.{layer}.hook_resid_post"


def hook_point(model: Any, hook_name: str) -> nn.Module:
    """The module whose output is the activation `hook_name`, on a HookedTransformer or a TransformerBridge.

    Raises:
        InputError: the model has no such hook point, no such layer, or an SAE is attached to it.
    """
    found: nn.Module = model.hook_dict[name_in(model, hook_name)]
    return found


def name_in(model: Any, hook_name: str) -> str:
    """The name under which `model` itself knows the hook point.

    Raises:
        InputError: see `hook_point`.
    """
    if getattr(model, "acts_to_saes", None) or getattr(model, "_acts_to_saes", None):
        raise InputError("an SAE is attached to the model, which changes its activations; call model.reset_saes()")
    prefix, point = _split(hook_name)
    for name in (hook_name, prefix + POST_NORM.get(point, point), prefix + OTHER_NAME.get(point, point)):
        if name in model.hook_dict:
            return name
    layer = prefix.removeprefix("blocks.").removesuffix(".")
    if layer.isdigit() and int(layer) >= model.cfg.n_layers:
        raise InputError(f"the model has layers 0 to {model.cfg.n_layers - 1}, got layer {layer}; set --layer")
    raise InputError(
        f"the model has no hook point {hook_name!r}; it has {', '.join(_residual_points(model))} and"
        f" {len(model.hook_dict)} others (model.hook_dict lists them)"
    )


@contextmanager
def reader(
    model: Any, hook_name: str
) -> Iterator[Callable[[Int[Tensor, "batch position"]], Float[Tensor, "batch position *d_model"]]]:
    """A function from token ids to the activation at `hook_name`; the forward pass stops there.

    Raises:
        InputError: see `hook_point`.
    """
    captured: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        captured.append(output)
        raise _ReachedHookPointError

    def read(tokens: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                model(tokens)
        except _ReachedHookPointError:
            return captured.pop()
        raise InputError(f"the forward pass never reached {hook_name}; name another hook point")

    handle = hook_point(model, hook_name).register_forward_hook(keep)
    try:
        with evaluating(model):
            yield read
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside; every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def same_point(hook_name: str) -> str:
    """One name for a hook point that has two."""
    prefix, point = _split(hook_name)
    return prefix + ALIASES.get(point, point)


def _split(hook_name: str) -> tuple[str, str]:
    """("blocks.3.", "attn.hook_z") of "blocks.3.attn.hook_z"; ("", name) outside a block."""
    match = re.fullmatch(r"(blocks\.\d+\.)(.+)", hook_name)
    return (match[1], match[2]) if match else ("", hook_name)


def _residual_points(model: Any) -> list[str]:
    return [
        name for name in model.hook_dict if name.endswith((".hook_resid_post", ".hook_out")) and name.count(".") == 2
    ]
