"""Names of hook points, and functions that are called there: to read activations, among others.

Every function restores the model: hooks are removed, and modes are set back.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.context_lengths import teacher_vocabulary
from tl_distill_floor.sources.teacher_checks import check_head, forward_errors

# HookedTransformer's and TransformerBridge's name of the same point within a block.
ALIASES = {
    "hook_resid_post": "hook_out",
    "hook_resid_pre": "hook_in",
    "hook_mlp_out": "mlp.hook_out",
    "hook_attn_out": "attn.hook_out",
    "attn.hook_z": "attn.o.hook_in",
}
# The output that a block adds to the residual stream, in models that normalise it once more (Gemma 2 and later).
POST_NORM = {"hook_mlp_out": "ln2_post.hook_out", "hook_attn_out": "ln1_post.hook_out"}
FLAGS = dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input") | {
    "hook_mlp_in": "use_hook_mlp_in", "hook_attn_in": "use_attn_in", "hook_result": "use_attn_result"
}  # fmt: skip
"""Flags of a model without which TransformerLens leaves out hook points, by the end of their names."""
OTHER_NAME = ALIASES | {bridge: hooked for hooked, bridge in ALIASES.items()}
"""The other name of a point within a block, in either direction."""
N_SIMILAR = 3
"""Names of hook points that a message lists."""

HookFunction = Callable[[str, Tensor], Tensor | None]
"""Called with a hook point's name and output; a tensor that it returns replaces the output."""


class _StopForwardError(Exception):
    """Ends a forward pass at a hook point.

    TransformerLens's `stop_at_layer` ends only between blocks, and some bridges ignore it.
    """


def resid_post(layer: int) -> str:
    """Return the name of the hook point of the residual stream after `layer`."""
    return f"blocks.{layer}.hook_resid_post"


def get_hook_point(model: HookedModel, hook_name: str) -> nn.Module:
    """Return the module whose output is the activation at a hook point.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: the hook point's name in either of them.

    Raises:
        InputError: the model has no such hook point or layer, or an SAE is attached to the model.
    """
    module: nn.Module = model.hook_dict[resolve_hook_name(model, hook_name)]
    return module


def resolve_hook_name(model: HookedModel, hook_name: str) -> str:
    """Return the model's own name of a hook point.

    Raises:
        InputError: see `get_hook_point`.
    """
    if getattr(model, "acts_to_saes", None) or getattr(model, "_acts_to_saes", None):
        raise InputError("an SAE is attached to the model, which changes its activations; call model.reset_saes()")
    prefix, point = split_name(hook_name)
    points = model.hook_dict  # a bridge makes it anew each time
    for name in (hook_name, prefix + POST_NORM.get(point, point), prefix + OTHER_NAME.get(point, point)):
        if name in points:
            return name
    layer = prefix.removeprefix("blocks.").removesuffix(".")
    if layer.isdigit() and int(layer) >= model.cfg.n_layers:
        raise InputError(f"the model has layers 0 to {model.cfg.n_layers - 1}, got layer {layer}; set --layer")
    similar = get_close_matches(hook_name, model.hook_dict, N_SIMILAR) or residual_points(model)[:N_SIMILAR]
    raise InputError(
        f"the model has no hook point {hook_name!r}; name one of the {len(model.hook_dict)} in model.hook_dict, such as"
        f" {', '.join(similar)}"
    )


@contextmanager
def activation_reader(
    model: HookedModel, hook_names: Sequence[str]
) -> Iterator[Callable[[Int[Tensor, "batch position"]], list[Float[Tensor, "batch position *d_model"]]]]:
    """Yield a function that reads activations; its forward pass ends at the last hook point.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_names: hook points to read.

    Yields:
        A function from token ids to the activations at the hook points, in the order of `hook_names`.

    Raises:
        InputError: see `get_hook_point`; also if the forward pass does not reach a hook point.

    Example:
        >>> with activation_reader(model, ["blocks.3.hook_resid_post"]) as read:  # doctest: +SKIP
        ...     (activation,) = read(ids)
    """
    captured: dict[str, Tensor] = {}

    def capture(name: str, output: Tensor) -> None:
        captured[name] = output
        if len(captured) == len(set(hook_names)):
            raise _StopForwardError

    def read(tokens: Tensor) -> list[Tensor]:
        captured.clear()
        try:
            with torch.no_grad(), forward_errors(model):
                model(tokens)
        except _StopForwardError:
            return [captured[name] for name in hook_names]
        raise not_reached(hook_names, captured)

    with eval_mode(model), forward_hooks(model, hook_names, capture):
        yield read
        captured.clear()


def forward_logits(
    model: HookedModel, tokens: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch some_position vocabulary"]:
    """Run a full forward pass and return its logits, at all positions unless a hook gives the unembedding fewer.

    Raises:
        InputError: the forward pass fails, the model returns no logits, or its unembedding is random.
    """
    with forward_errors(model):
        output = model(tokens)
    return check_logits(model, output)


def check_logits(model: HookedModel, output: object) -> Float[Tensor, "batch position vocabulary"]:
    """Return the output of a forward pass, or raise an InputError if it is not logits over the vocabulary."""
    check_head(model)
    # Toy models may predict fewer tokens than they read. A bridge has the number of its tokenizer there.
    d_out = 0 if "original_model" in vars(model) else int(getattr(model.cfg, "d_vocab_out", 0) or 0)
    n_outputs = d_out if d_out > 0 else teacher_vocabulary(model)
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] < n_outputs:
        raise InputError("the model returns no logits, so no loss in nats can be measured; use --cost energy")
    return output


def check_finite(activation: Float[Tensor, "..."], hook_name: str) -> None:
    """Raise an InputError if an activation holds NaN or Inf."""
    # If one value is NaN, both results of `aminmax` are.
    if activation.numel() and not torch.stack(activation.aminmax()).isfinite().all():
        raise InputError(f"the activation at {hook_name} holds NaN or Inf; run the teacher with --dtype fp32")


@contextmanager
def forward_hooks(
    model: HookedModel, hook_names: Sequence[str], function: HookFunction, *, differentiable: bool = False
) -> Iterator[None]:
    """Call a function at each hook point during the context.

    The hooks are those of TransformerLens, not of torch: some hook points are connected only while they hold one, and
    some convert what they see (OPT's MLP runs on flattened tokens).

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_names: hook points.
        function: called with the hook point's name and output; a tensor that it returns replaces the output.
        differentiable: whether a tensor that is returned always becomes part of the autograd graph. Otherwise some
            bridges (Granite) ignore one that is equal to the output.

    Raises:
        InputError: see `get_hook_point`.
    """
    with ExitStack() as stack:
        for name in dict.fromkeys(hook_names):
            point = get_hook_point(model, name)
            stack.callback(_remove_hook, point, _add_hook(point, partial(_call_hook, function, name), differentiable))
        yield


def _call_hook(function: HookFunction, name: str, output: Tensor, *, hook: object) -> Tensor | None:  # noqa: ARG001
    """Call a function as TransformerLens calls a hook."""
    return function(name, output)


def _add_hook(point: nn.Module, hook: Callable[..., Tensor | None], differentiable: bool) -> object:
    """Add a hook to a hook point and return its handle."""
    point.add_hook(hook)  # type: ignore[operator]
    handle: object = point.fwd_hooks[-1]  # type: ignore[index, union-attr]
    if differentiable:
        # Listed as a backward hook as well, which is how a hook point says that it needs to be in the graph. A real
        # backward hook would warn where no input requires a gradient.
        point.bwd_hooks.append(handle)  # type: ignore[operator, union-attr]
    return handle


def _remove_hook(point: nn.Module, handle: Any) -> None:
    """Remove a hook that `_add_hook` added, and leave those of others."""
    handle.hook.remove()
    for name in ("fwd_hooks", "bwd_hooks"):
        setattr(point, name, [other for other in getattr(point, name) if other is not handle])


@contextmanager
def eval_mode(model: HookedModel | nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode (no dropout) during the context, then restore the mode of each module.

    A HookedTransformer whose tokenizer pads on the left takes the first tokens of a sequence for padding if they are
    the token that pads. Rows are padded on the right here, so its tokenizer says so during the context.
    """
    assert isinstance(model, nn.Module)
    wrapped = vars(model).get("original_model")  # a bridge does not register the model that it wraps
    whole = [model, wrapped] if isinstance(wrapped, nn.Module) else [model]
    training = [module for part in whole for module in part.modules() if module.training]
    tokenizer: Any = getattr(model, "tokenizer", None)
    pads_left = getattr(tokenizer, "padding_side", "right") == "left"
    if training:  # a bridge takes as long for this as for a forward pass
        model.eval()
    if pads_left:
        tokenizer.padding_side = "right"
    try:
        yield
    finally:
        if pads_left:
            tokenizer.padding_side = "left"
        for module in training:
            module.training = True


def canonical_name(hook_name: str) -> str:
    """Return one name for a hook point that has two."""
    prefix, point = split_name(hook_name)
    return prefix + ALIASES.get(point, point)


def split_name(hook_name: str) -> tuple[str, str]:
    """Split "blocks.3.attn.hook_z" into ("blocks.3.", "attn.hook_z"); outside a block the prefix is empty."""
    match = re.fullmatch(r"(blocks\.\d+\.)(.+)", hook_name)
    return (match[1], match[2]) if match else ("", hook_name)


def residual_points(model: HookedModel) -> list[str]:
    """Return the names of the hook points of the residual stream after each layer."""
    return [
        name for name in model.hook_dict if name.endswith((".hook_resid_post", ".hook_out")) and name.count(".") == 2
    ]


def not_reached(hook_names: Sequence[str], captured: Mapping[str, Tensor]) -> InputError:
    """Return the error for hook points that a forward pass did not reach.

    Args:
        hook_names: hook points.
        captured: what was captured at those that it reached.
    """
    missing = [name for name in hook_names if name not in captured]
    setters = {f"model.set_{flag}(True)" for name in missing for end, flag in FLAGS.items() if name.endswith(end)}
    advice = f"call {' and '.join(sorted(setters))}" if setters else "name another hook point"
    return InputError(f"the forward pass does not reach {', '.join(missing)}; {advice}")
