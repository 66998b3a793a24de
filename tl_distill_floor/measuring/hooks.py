"""Reading a teacher's activation at a hook point. The model leaves as it came: no hook, no changed mode."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

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
    model: Any, hook_names: Sequence[str]
) -> Iterator[Callable[[Int[Tensor, "batch position"]], list[Float[Tensor, "batch position *d_model"]]]]:
    """A function from token ids to the activations at the hook points; the forward pass stops at the last of them.

    Raises:
        InputError: see `hook_point`.
    """
    captured: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        captured[name] = output
        if len(captured) == len(set(hook_names)):
            raise _ReachedHookPointError

    def read(tokens: Tensor) -> list[Tensor]:
        captured.clear()
        try:
            with torch.no_grad():
                model(tokens)
        except _ReachedHookPointError:
            return [captured[name] for name in hook_names]
        missed = ", ".join(name for name in hook_names if name not in captured)
        raise InputError(f"the forward pass never reached {missed}; name another hook point")

    with evaluating(model), hooked(model, hook_names, keep):
        yield read
        captured.clear()


class Differentiable(NamedTuple):
    """A whole forward pass, whose graph begins at the earliest of the hook points."""

    logits: Float[Tensor, "batch position vocabulary"]
    activations: list[Float[Tensor, "batch position *d_model"]]


@contextmanager
def differentiator(
    model: Any, hook_names: Sequence[str]
) -> Iterator[Callable[[Int[Tensor, "batch position"]], Differentiable]]:
    """A function from token ids to logits and to the activations at the hook points, which they can be derived in.

    No gradient of the model's own weights is computed or kept.

    Raises:
        InputError: see `hook_point`; the model gives no logits.
    """
    captured: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        captured[name] = output if output.requires_grad else output.detach().requires_grad_()
        return captured[name]

    def run(tokens: Tensor) -> Differentiable:
        captured.clear()
        with torch.enable_grad():
            logits = checked_logits(model, model(tokens))
        missed = ", ".join(name for name in hook_names if name not in captured)
        if missed:
            raise InputError(f"the forward pass never reached {missed}; name another hook point")
        return Differentiable(logits, [captured.pop(name) for name in dict.fromkeys(hook_names)])

    with evaluating(model), weights_fixed(model), hooked(model, hook_names, keep):
        yield run
        captured.clear()


def checked_logits(model: Any, output: Any) -> Float[Tensor, "batch position vocabulary"]:
    """What a forward pass gave, where it is logits.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] < int(model.cfg.d_vocab):
        raise InputError("the model gives no logits over its vocabulary, so losses in nats mean nothing; --cost energy")
    return output


def check_finite(activation: Float[Tensor, "..."], hook_name: str) -> None:
    """Raise an InputError where an activation holds NaN or Inf."""
    if activation.numel() and not torch.stack(activation.aminmax()).isfinite().all():  # both are NaN where one value is
        raise InputError(f"the activation at {hook_name} holds NaN or Inf; run the teacher with --dtype fp32")


@contextmanager
def hooked(model: Any, hook_names: Sequence[str], keep: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """`keep` is given what each hook point puts out, and what it returns, if anything, goes on instead."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        return lambda _module, _inputs, output: keep(name, output)

    with ExitStack() as stack:
        for name in dict.fromkeys(hook_names):
            stack.callback(hook_point(model, name).register_forward_hook(hook_of(name)).remove)
        yield


@contextmanager
def weights_fixed(model: nn.Module) -> Iterator[None]:
    """No weight requires a gradient inside, so that no graph is built but the one from the hook points on."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


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


def canonical_name(hook_name: str) -> str:
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
