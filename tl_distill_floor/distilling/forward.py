"""Run models up to their unembedding, so that logits can be computed later in chunks of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.distilling.layers import layers_of
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import eval_mode, forward_hooks, get_hook_point

LOGIT_TOLERANCE = 1e-3
"""Largest absolute difference between a model's logits and the output of its unembedding."""


class _ReachedUnembeddingError(Exception):
    """Ends a forward pass at the unembedding."""


class BackboneOutput(NamedTuple):
    """Output of a model without its unembedding."""

    last_hidden: Float[Tensor, "batch position width"]
    """Input of the unembedding."""
    matched: Float[Tensor, "batch position *d_matched"] | None
    """Activation that hook matching compares; None without hook matching."""


class Backbone(nn.Module):
    """A `transformers` causal language model without its unembedding.

    Args:
        model: the language model.
        layer: layer whose residual stream is returned too; None for no layer.

    Raises:
        InputError: the model has no such layer, or changes its logits after the unembedding.
    """

    def __init__(self, model: nn.Module, layer: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._layer = layer
        n_layers = len(layers_of(model))
        if layer is not None and not 0 <= layer < n_layers:
            raise InputError(f"the student has layers 0 to {n_layers - 1}, got layer {layer} to match")
        self._check_logits()

    @property
    def unembed(self) -> nn.Module:
        """The unembedding, from last hidden states to logits."""
        unembed: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        return unembed

    def forward(self, ids: Int[Tensor, "batch position"]) -> BackboneOutput:
        """Return the last hidden states, and the residual stream after the layer that is matched."""
        last: list[Tensor] = []
        matched: list[Tensor] = []
        with _capture_input_and_stop(self.unembed, last), _capture_output(self.model, self._layer, matched):
            try:
                self.model(ids, use_cache=False)
            except _ReachedUnembeddingError:
                return BackboneOutput(last[0], matched[0] if matched else None)
        raise InputError(f"the forward pass of {type(self.model).__name__} did not reach its unembedding")

    @torch.no_grad()
    def _check_logits(self) -> None:
        ids = _sample_ids(self.model)
        _check_same_logits(self.model, self.model(ids).logits, self.unembed(self(ids).last_hidden))


class TeacherBackbone:
    """A teacher with hook points, without its unembedding, run without gradients.

    Args:
        model: the teacher's model.
        hook_name: hook point whose activation is returned too; None for no hook point.
    """

    def __init__(self, model: HookedModel, hook_name: str | None) -> None:
        self._model, self._hook_name = model, hook_name
        self._captured: dict[str, Tensor] = {}
        self.unembed: nn.Module = model.unembed  # type: ignore[attr-defined]

    def capture(self, name: str, output: Tensor) -> None:
        """Keep the output of a hook point until the end of the forward pass."""
        self._captured[name] = output

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "batch position"]) -> BackboneOutput:
        """Return the last hidden states, and the activation at the hook point."""
        last: list[Tensor] = []
        with _capture_input_and_stop(self.unembed, last):
            try:
                self._model(ids)
            except _ReachedUnembeddingError:
                return BackboneOutput(last[0], self._captured.pop(self._hook_name) if self._hook_name else None)
        raise InputError("the forward pass of the teacher did not reach its unembedding")


@contextmanager
def teacher_backbone(model: HookedModel, hook_name: str | None = None) -> Iterator[TeacherBackbone]:
    """Yield the teacher without its unembedding; remove all hooks and restore its mode at the end.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: hook point whose activation is returned too; None for no hook point.

    Raises:
        InputError: the model has no such hook point, or changes its logits after the unembedding.
    """
    if hook_name:
        get_hook_point(model, hook_name)
    backbone = TeacherBackbone(model, hook_name)
    with eval_mode(model), forward_hooks(model, [hook_name] if hook_name else [], backbone.capture):
        ids = _sample_ids(model)
        with torch.no_grad():
            _check_same_logits(model, model(ids), backbone.unembed(backbone(ids).last_hidden))
        yield backbone


def _sample_ids(model: HookedModel | nn.Module) -> Int[Tensor, "batch position"]:
    """Return the token ids of the forward pass that checks the logits."""
    return torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)


def _check_same_logits(
    model: HookedModel | nn.Module, logits: Float[Tensor, "..."], unembedded: Float[Tensor, "..."]
) -> None:
    """Raise an InputError if a model's logits differ from the output of its unembedding.

    Some families cap or scale their logits. The losses computed here would be wrong for them.
    """
    if logits.shape != unembedded.shape or not torch.allclose(logits, unembedded, atol=LOGIT_TOLERANCE, rtol=1e-2):
        raise InputError(
            f"{type(model).__name__} changes its logits after the unembedding (a cap or a scale), which is not"
            " supported; use another teacher"
        )


@contextmanager
def _capture_input_and_stop(module: nn.Module, captured: list[Tensor]) -> Iterator[None]:
    """End the forward pass at a module, and keep the module's input."""

    def capture(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        assert isinstance(inputs[0], Tensor)
        captured.append(inputs[0])
        raise _ReachedUnembeddingError

    handle = module.register_forward_pre_hook(capture)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _capture_output(model: nn.Module, layer: int | None, captured: list[Tensor]) -> Iterator[None]:
    """Keep the output of a layer; with None, keep nothing."""
    if layer is None:
        yield
        return

    def capture(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        captured.append(output if isinstance(output, Tensor) else output[0])

    handle = layers_of(model)[layer].register_forward_hook(capture)
    try:
        yield
    finally:
        handle.remove()
