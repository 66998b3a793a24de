"""Find the layers of a model, and match the layers of a student with those of its teacher."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import resid_post

RESIDUAL_BEFORE_LAYER = ("hook_resid_pre", "hook_in")
"""Names of the residual stream before a layer, which equals the residual stream after the previous layer."""
RESIDUAL = (*RESIDUAL_BEFORE_LAYER, "hook_resid_post", "hook_out")
"""Names of the residual stream before or after a layer."""


def is_residual(hook_name: str) -> bool:
    """Return whether a hook point is on the residual stream between layers."""
    return hook_name.count(".") == 2 and hook_name.endswith(RESIDUAL)


def layer_of(hook_name: str) -> int | None:
    """Return the layer of a hook point, or None if it is outside the layers."""
    from sae_lens.util import extract_layer_from_tlens_hook_name

    layer: int | None = extract_layer_from_tlens_hook_name(hook_name)
    return layer


def student_layer(hook_name: str, n_layers: int, depth: int) -> int:
    """Return the student's layer at the same relative depth as a hook point of the teacher.

    Args:
        hook_name: the teacher's hook point.
        n_layers: number of layers of the teacher.
        depth: number of layers of the student.

    Returns:
        A layer number, counted from 0.

    Raises:
        InputError: the hook point is outside the layers.

    Example:
        >>> student_layer("blocks.5.hook_resid_post", n_layers=12, depth=6)
        2
    """
    layer = layer_of(hook_name)
    if layer is None:
        raise InputError(
            f"{hook_name} is in no layer, so no layer of a student corresponds to it; name a hook point of a layer"
        )
    layers_before = layer if hook_name.endswith(RESIDUAL_BEFORE_LAYER) else layer + 1
    return max(1, math.floor(layers_before * depth / n_layers + 0.5)) - 1


def student_hook(hook_name: str, n_layers: int, depth: int) -> str:
    """Return the name of the residual stream after `student_layer` of the same arguments."""
    return resid_post(student_layer(hook_name, n_layers, depth))


def evenly_spaced_layers(n_layers: int, depth: int) -> list[int]:
    """Return `depth` of `n_layers` layer numbers, evenly spaced, with the first and the last if depth is above 1."""
    return [round(i * (n_layers - 1) / max(depth - 1, 1)) for i in range(depth)]


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of layers of a `transformers` model, and its name; of a model of text and images, of its text.

    Of several lists of this length, it is one of the decoder, if it has one, and the one with the most weights.

    Raises:
        InputError: no list of modules has the length that the configuration gives.
    """
    n_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)  # type: ignore[union-attr,operator]
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    of_decoder = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of {n_layers} layers, so it cannot be distilled")

    def rank(named: tuple[str, nn.ModuleList]) -> tuple[bool, int]:
        return id(named[1]) in of_decoder, sum(weight.numel() for weight in named[1].parameters())

    return max(lists, key=rank)


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Return the list of layers of a `transformers` model; see `layer_list`."""
    return layer_list(model)[1]


@contextmanager
def capture_residual_stream(model: nn.Module, layer: int | None, captured: list[Tensor]) -> Iterator[None]:
    """Keep the residual stream after a layer, [batch, position, width], of each forward pass in the context.

    Args:
        model: a `transformers` model.
        layer: the layer; with None, nothing is kept.
        captured: list that receives the residual stream.

    Raises:
        InputError: the model has no such list of layers. In its forward pass: the layer's output has another shape.
    """
    if layer is None:
        yield
        return

    module = layers_of(model)[layer]
    forward = module.forward

    def capture(*inputs: object, **options: object) -> Tensor | tuple[Tensor, ...]:
        output: Tensor | tuple[Tensor, ...] = forward(*inputs, **options)
        stream = output if isinstance(output, Tensor) else output[0]
        if stream.ndim != 3:
            raise InputError(
                f"layer {layer} of {type(model).__name__} has an output of shape {tuple(stream.shape)}, and hook"
                " matching compares [batch, position, width]; train without hook matching"
            )
        captured.append(stream)
        return output

    with replaced_forward(module, capture):
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Replace the forward pass of one module during the context.

    Unlike a hook, it is also seen by a model that was compiled before: `torch.compile` does not look for new hooks.

    Args:
        module: the module.
        forward: what is called instead.
    """
    own = vars(module).get("forward")  # set by libraries that have replaced it too
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
