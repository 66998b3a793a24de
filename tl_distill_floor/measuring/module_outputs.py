"""Find the hook point that holds what a module of a `transformers` model returns.

SAEs of other libraries name such modules. Families differ in what a block adds to the residual stream: Gemma 2 and 3,
OLMo 2 and GLM-4 normalise the output of a module once more, Granite scales it, and BLOOM's modules add the residual
stream themselves.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import ALIASES, POST_NORM, activation_reader, eval_mode, resolve_hook_name
from tl_distill_floor.sources.context_lengths import cut_to_context, teacher_vocabulary
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teacher_checks import forward_errors

N_TOKENS = 8
"""Tokens of the sequence on which a hook point is compared with a module."""
SAME_OUTPUT = 1e-3
"""Largest difference of the two, as a share of the norm."""
_END = re.compile(r"(?:^|\.)((?:layers|h|blocks)\.\d+(?:\..+?)?)(\.output|\.input)?$")
"""End of the name of a module in a layer, and whether its input or its output is meant."""
_WRAPPER = "._original_component"
"""Part that TransformerBridge adds to the names of the modules that it wraps."""


def hook_point_of_module(model: HookedModel, hook_name: str, module_name: str) -> str:
    """Return the hook point that holds a module's output: the expected one, or another one of the same block.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: the hook point that holds it in most families.
        module_name: name of the module, such as "layers.3.mlp"; with ".input" at its end, what it reads.

    Raises:
        InputError: no hook point holds it, or it cannot be found out for a HookedTransformer.
    """
    own_name = resolve_hook_name(model, hook_name)
    original: nn.Module | None = vars(model).get("original_model")
    if original is None:
        _check_hooked_transformer(model, hook_name, module_name)
        return hook_name
    match = _END.search(module_name)
    module = None if match is None else _module_at(original, match[1])
    if module is None:  # the model names its modules in another way than the SAE's library
        return hook_name
    prefix, point = hook_name.split(".")[:2], hook_name.split(".", 2)[-1]
    of_block = [name for name in model.hook_dict if name.split(".")[:2] == prefix]
    of_module = ".".join([*prefix, ALIASES.get(point, point)])
    names = [own_name, *sorted(of_block, key=lambda name: name != of_module)]
    value = _value_of(model, module, is_input=match is not None and match[2] == ".input")
    for name in names:
        if value is not None and _holds(model, name, value):
            return hook_name if name == own_name else name
    raise InputError(
        f"the SAE reads {module_name}, and no hook point of a {type(original).__name__} holds it; give an SAE of the"
        " residual stream"
    )


def _check_hooked_transformer(model: HookedModel, hook_name: str, module_name: str) -> None:
    """Raise an InputError for a HookedTransformer of a family in which the module's output has no hook point."""
    point = hook_name.split(".", 2)[-1]
    family = str(getattr(model.cfg, "original_architecture", ""))
    has_other_output = getattr(model.cfg, "use_normalization_before_and_after", False) or family.startswith("Bloom")
    is_norm = "layernorm" in module_name  # such as post_feedforward_layernorm, whose output is the hook point's
    if point in POST_NORM and has_other_output and not is_norm:
        raise InputError(
            f"the SAE reads {module_name}, whose output has no hook point in a HookedTransformer of {family}; load the"
            " teacher as a TransformerBridge"
        )


def _module_at(original: nn.Module, path: str) -> nn.Module | None:
    """Return the module whose name ends with a path; None if there is none."""
    modules: Iterator[tuple[str, nn.Module]] = original.named_modules()
    for name, module in modules:
        plain = name.replace(_WRAPPER, "")
        if plain == path or plain.endswith(f".{path}"):
            return module
    return None


def _sample(model: HookedModel) -> Tensor:
    """Return the token ids of a short sequence."""
    n_tokens = cut_to_context(N_TOKENS, model)
    return torch.arange(1, n_tokens + 1, device=device_of(model))[None] % teacher_vocabulary(model)


def _value_of(model: HookedModel, module: nn.Module, *, is_input: bool) -> Tensor | None:
    """Return what a module returns, or reads, in a forward pass; None if it is not run."""
    values: list[object] = []
    if is_input:
        handle = module.register_forward_pre_hook(lambda _module, inputs: values.append(inputs))
    else:
        handle = module.register_forward_hook(lambda _module, _inputs, output: values.append(output))
    try:
        with torch.no_grad(), eval_mode(model), forward_errors(model):
            model(_sample(model))
    finally:
        handle.remove()
    return next(_tensors(values), None)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _holds(model: HookedModel, hook_name: str, value: Tensor) -> bool:
    """Return whether a hook point holds a value; it may split the last axis into heads."""
    try:
        with activation_reader(model, [hook_name]) as read:
            (activation,) = read(_sample(model))
    except InputError:  # the forward pass does not reach it
        return False
    if not isinstance(activation, Tensor) or activation.numel() != value.numel():
        return False
    difference = activation.reshape(value.shape).float() - value.float()
    return bool(difference.norm() <= SAME_OUTPUT * value.float().norm())
