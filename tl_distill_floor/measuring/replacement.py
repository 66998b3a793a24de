"""Replace activations at hook points: by other values, or by leaves of an autograd graph, to differentiate by them.

Every function restores the model: hooks are removed, and `requires_grad` is set back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import (
    HookFunction,
    check_finite,
    eval_mode,
    forward_hooks,
    forward_logits,
    get_hook_point,
    not_reached,
    split_name,
)
from tl_distill_floor.measuring.logit_map import ids_to_check
from tl_distill_floor.sources.context_lengths import teacher_vocabulary
from tl_distill_floor.sources.teacher_checks import forward_errors

START, MIDDLE, END = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
"""Points of the residual stream within a block."""
MAX_ROUNDING = 0.05
"""Largest error of a block's output, as a share of the change in its middle, that may be rounding in half precision."""


class DifferentiableOutput(NamedTuple):
    """Output of a forward pass whose autograd graph begins at the earliest of the hook points."""

    logits: Float[Tensor, "batch position vocabulary"]
    activations: list[Float[Tensor, "batch position *d_model"]]
    """One for each hook point. The logits can be differentiated with respect to them."""


@contextmanager
def differentiable_forward(
    model: HookedModel, hook_names: Sequence[str]
) -> Iterator[Callable[[Int[Tensor, "batch position"]], DifferentiableOutput]]:
    """Yield a function that runs a forward pass which can be differentiated with respect to activations.

    No gradient with respect to the model's weights is computed.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_names: hook points whose activations are returned, each once.

    Yields:
        A function from token ids to the logits and the activations.

    Raises:
        InputError: see `activation_reader`; also if the model returns no logits, or a hook point has several
            activations in one forward pass.
    """
    captured: dict[str, Tensor] = {}

    def capture(name: str, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():  # a forward pass for something else
            return None
        if name in captured:
            check_same_activation(name, captured[name], output)
        else:
            captured[name] = output if output.requires_grad else output.detach().requires_grad_()
        return captured[name]

    def run(tokens: Tensor) -> DifferentiableOutput:
        captured.clear()
        with torch.enable_grad():
            logits = forward_logits(model, tokens)
        if len(captured) < len(set(hook_names)):
            raise not_reached(hook_names, captured)
        return DifferentiableOutput(logits, [captured.pop(name) for name in dict.fromkeys(hook_names)])

    with eval_mode(model), frozen_weights(model), replacing_hooks(model, hook_names, capture, differentiable=True):
        yield run
        captured.clear()


def check_same_activation(hook_name: str, first: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> None:
    """Check that a forward pass that reaches a hook point again has the same activation there.

    A HookedTransformer normalises the input of a block three times: for queries, keys and values.

    Args:
        hook_name: the hook point.
        first: the activation when it is reached first.
        other: the activation when it is reached again.

    Raises:
        InputError: the activations differ.
    """
    if not torch.equal(first, other):
        raise InputError(
            f"the forward pass reaches {hook_name} several times, with different activations, so no loss in nats can be"
            " measured; use --cost energy, or an SAE of another hook point"
        )


@contextmanager
def replacing_hooks(
    model: HookedModel, hook_names: Sequence[str], function: HookFunction, *, differentiable: bool = False
) -> Iterator[None]:
    """Call a function that replaces outputs at each hook point during the context; see `forward_hooks`.

    In the middle of a block a bridge has the residual stream only where it enters the MLP. There a change is added to
    the output of the block as well, as the residual stream itself would carry it.

    Raises:
        InputError: see `get_hook_point`; or it is not known how a block carries a change in its middle.
    """
    ends = {name: end for name in hook_names if (end := _end_of_skipped_part(model, name))}
    changes: dict[str, Tensor] = {}

    def replace(name: str, output: Tensor) -> Tensor | None:
        if name not in ends:
            return function(name, output)
        # A clone, since the output itself may be in the residual stream, or a copy of what is in it.
        replaced = function(name, output.clone())
        changes.pop(ends[name], None)
        if replaced is not None:
            changes[ends[name]] = replaced - output
        return replaced

    def carry(name: str, output: Tensor) -> Tensor | None:
        return output + changes.pop(name).to(output.device).view_as(output) if name in changes else None

    with (
        forward_hooks(model, list(ends.values()), carry, differentiable=differentiable),
        forward_hooks(model, hook_names, replace, differentiable=differentiable),
    ):
        yield


@torch.no_grad()
def _end_of_skipped_part(model: HookedModel, hook_name: str) -> str | None:
    """Return the end of the block if a change at a hook point in its middle reaches the MLP only; None otherwise.

    The input of the block is changed, and with it the residual stream from there on. Then only the middle is replaced
    by its changed value. The outputs of the block in both runs differ by the part of the change that is not carried.
    """
    prefix, point = split_name(hook_name)
    if point != MIDDLE:
        return None
    get_hook_point(model, hook_name)
    start, end = prefix + START, prefix + END
    ids = ids_to_check(model, None, teacher_vocabulary(model))
    random = torch.Generator().manual_seed(0)

    def run(changed: str, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        seen: dict[str, Tensor] = {}

        def hook(name: str, output: Tensor) -> Tensor:
            seen[name] = change(output) if name == changed else output
            return seen[name]

        with forward_hooks(model, [start, hook_name, end], hook), forward_errors(model):
            model(ids)
        if len(seen) < 3:
            raise not_reached([start, hook_name, end], seen)
        return seen[hook_name], seen[end]

    middle, _ = run(start, lambda stream: stream)
    other, expected = run(start, lambda stream: stream * torch.randn(stream.shape, generator=random).to(stream))
    _, output = run(hook_name, lambda _: other)
    check_finite(expected, end)
    change = (other - middle).view_as(expected)
    for carried, result in ((0, None), (change, end)):
        if float((output + carried - expected).norm()) <= MAX_ROUNDING * float(change.norm()):
            return result
    raise InputError(
        f"a change at {hook_name} does not reach the residual stream of this model, so no loss in nats can be measured;"
        " use --cost energy, or an SAE of another hook point"
    )


@contextmanager
def frozen_weights(model: HookedModel | nn.Module) -> Iterator[None]:
    """Set `requires_grad` to False for every weight during the context, so that autograd keeps no graph for them."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
