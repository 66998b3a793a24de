"""Forward passes that end before the unembedding, of teachers and students alike, with what a hook point holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import evaluating, hook_point, hooked

TOLERANCE = 1e-3


class _ReachedUnembeddingError(Exception):
    """Ends a forward pass: the logits are computed elsewhere, in chunks."""


class Body(nn.Module):
    """A causal language model up to its unembedding; what distributed training wraps.

    Args:
        model: a `transformers` causal language model.
        layer: the residual stream after this layer is handed on too.
    """

    def __init__(self, model: nn.Module, layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._layer = layer
        n_layers = len(layers_of(model))
        if layer is not None and not 0 <= layer < n_layers:
            raise InputError(f"the student has layers 0 to {n_layers - 1}, got layer {layer} to be matched")
        _check_whole(self)

    @property
    def unembed(self) -> nn.Module:
        found: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        return found

    def forward(
        self, ids: Int[Tensor, "batch position"]
    ) -> tuple[Float[Tensor, "batch position width"], Float[Tensor, "batch position width"] | None]:
        """The last hidden state, and the residual stream after the chosen layer."""
        last: list[Tensor] = []
        matched: list[Tensor] = []
        with _keeping_input(self.unembed, last), _keeping_output(self.model, self._layer, matched):
            try:
                self.model(ids, use_cache=False)
            except _ReachedUnembeddingError:
                return last[0], matched[0] if matched else None
        raise InputError(f"the forward pass of {type(self.model).__name__} never reached its unembedding")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a `transformers` model.

    Raises:
        InputError: there is no list of as many modules as the configuration says.
    """
    expected = int(model.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == expected:
            return module
    raise InputError(f"{type(model).__name__} has no list of {expected} layers")


class TeacherBody:
    """A teacher with hook points, up to its unembedding, without gradients."""

    def __init__(self, model: Any, hook_name: str | None) -> None:
        self._model, self._hook_name = model, hook_name
        self._captured: dict[str, Tensor] = {}
        self.unembed: nn.Module = model.unembed

    def keep(self, name: str, output: Tensor) -> None:
        self._captured[name] = output

    @torch.no_grad()
    def __call__(
        self, ids: Int[Tensor, "batch position"]
    ) -> tuple[Float[Tensor, "batch position d_model"], Float[Tensor, "batch position d_model"] | None]:
        last: list[Tensor] = []
        with _keeping_input(self.unembed, last):
            try:
                self._model(ids)
            except _ReachedUnembeddingError:
                return last[0], self._captured.pop(self._hook_name) if self._hook_name else None
        raise InputError("the forward pass of the teacher never reached its unembedding")


@contextmanager
def teacher_body(model: Any, hook_name: str | None = None) -> Iterator[TeacherBody]:
    """A teacher that is run up to its unembedding; it leaves as it came.

    Raises:
        InputError: the model has no such hook point, or its logits are more than its unembedding's output.
    """
    if hook_name:
        hook_point(model, hook_name)
    body = TeacherBody(model, hook_name)
    with evaluating(model), hooked(model, [hook_name] if hook_name else [], body.keep):
        ids = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
        with torch.no_grad():
            _compare(type(model).__name__, model(ids), body.unembed(body(ids)[0]))
        yield body


def _check_whole(body: Body) -> None:
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(body.parameters()).device)
    with torch.no_grad():
        _compare(type(body.model).__name__, body.model(ids).logits, body.unembed(body(ids)[0]))


def _compare(name: str, logits: Tensor, of_unembedding: Tensor) -> None:
    """Some families cap or scale what the unembedding gives; their losses must not be silently wrong."""
    if logits.shape != of_unembedding.shape or not torch.allclose(logits, of_unembedding, atol=TOLERANCE, rtol=1e-2):
        raise InputError(f"{name} changes its logits after the unembedding (a cap or a scale), which is not supported")


@contextmanager
def _keeping_input(module: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs[0])
        raise _ReachedUnembeddingError

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _keeping_output(model: nn.Module, layer: int | None, kept: list[Tensor]) -> Iterator[None]:
    if layer is None:
        yield
        return

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    handle = layers_of(model)[layer].register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
