"""Run a teacher up to its unembedding, so that logits can be computed later in chunks of tokens."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import check_causal
from tl_distill_floor.measuring.hooks import eval_mode, forward_hooks, get_hook_point
from tl_distill_floor.measuring.logit_map import (
    OUTPUTS_NOT_FINITE,
    LazyLogits,
    LogitMap,
    check_same_logits,
    ids_to_check,
    measure_logit_map,
)
from tl_distill_floor.sources.context_lengths import teacher_vocabulary


class ReachedUnembeddingError(Exception):
    """Ends a forward pass at the unembedding."""


class BackboneOutput(NamedTuple):
    """Output of a model without its unembedding."""

    last_hidden: Float[Tensor, "batch position width"]
    """Input of the unembedding."""
    matched: Float[Tensor, "batch position *d_matched"] | None
    """Activation that hook matching compares; None without hook matching."""


class TeacherBackbone:
    """A teacher with hook points, without its unembedding, run without gradients.

    Args:
        model: the teacher's model.
        hook_name: hook point whose activation is returned too; None for no hook point.
        runs_to_end: see `teacher_backbone`.
    """

    def __init__(self, model: HookedModel, hook_name: str | None, *, runs_to_end: bool = False) -> None:
        self._model, self._hook_name, self._runs_to_end = model, hook_name, runs_to_end
        self._captured: dict[str, Tensor] = {}
        self.unembed: nn.Module = model.unembed  # type: ignore[attr-defined]
        self.logit_map = LogitMap()

    def capture(self, name: str, output: Tensor) -> None:
        """Keep the output of a hook point until the end of the forward pass."""
        self._captured[name] = output

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "batch position"]) -> BackboneOutput:
        """Return the last hidden states, and the activation at the hook point."""
        last: list[Tensor] = []
        with capture_input(self.unembed, last, stop=not self._runs_to_end), suppress(ReachedUnembeddingError):
            self._model(ids)
        if not last:
            raise InputError("the forward pass of the teacher did not reach its unembedding")
        return BackboneOutput(last[0], self._captured.pop(self._hook_name) if self._hook_name else None)

    def logits(self, last_hidden: Float[Tensor, "token d_model"]) -> LazyLogits:
        """Return the logits of some tokens, computed when they are needed.

        Args:
            last_hidden: last hidden states of the tokens.
        """
        return LazyLogits(last_hidden, self.unembed, self.logit_map)

    @torch.no_grad()
    def verify_logits(self, ids: Int[Tensor, "sequence position"] | None) -> None:
        """Measure what the teacher does to its logits after the unembedding.

        Args:
            ids: sequences of a real text; random tokens if None.

        Raises:
            InputError: it is neither a scale nor a cap, a logit is NaN or Inf, or the teacher is no causal language
                model.
        """
        ids = ids_to_check(self._model, ids, teacher_vocabulary(self._model))

        def full_logits(some_ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "..."]:
            logits: Tensor = self._model(some_ids)
            self._captured.clear()
            if not float(logits.amax()) < math.inf:  # NaN too; −inf masks a token
                raise InputError(OUTPUTS_NOT_FINITE)
            return logits

        check_causal(self._model, "teacher", teacher_vocabulary(self._model), full_logits)
        self.logit_map = measure_logit_map(self._model, self.unembed, full_logits, ids)
        check_same_logits(self._model, self.logit_map(self.unembed(self(ids).last_hidden)), full_logits(ids))


@contextmanager
def teacher_backbone(
    model: HookedModel,
    hook_name: str | None = None,
    ids: Int[Tensor, "sequence position"] | None = None,
    *,
    runs_to_end: bool = False,
) -> Iterator[TeacherBackbone]:
    """Yield the teacher without its unembedding; remove all hooks and restore its mode at the end.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: hook point whose activation is returned too; None for no hook point.
        ids: sequences of a real text, which the map from last hidden states to logits is verified on; random tokens
            if None.
        runs_to_end: whether forward passes run to their end, instead of ending at the unembedding by an exception,
            after which the weights of a sharded model would stay gathered.

    Raises:
        InputError: the model has no such hook point, or changes its logits after the unembedding in an unknown way.
    """
    if hook_name:
        get_hook_point(model, hook_name)
    backbone = TeacherBackbone(model, hook_name, runs_to_end=runs_to_end)
    with eval_mode(model), forward_hooks(model, [hook_name] if hook_name else [], backbone.capture):
        backbone.verify_logits(ids)
        yield backbone


@contextmanager
def capture_input(module: nn.Module, captured: list[Tensor], *, stop: bool = True) -> Iterator[None]:
    """Keep a module's input, and end the forward pass there by a `ReachedUnembeddingError`.

    Args:
        module: the unembedding.
        captured: list that receives its input.
        stop: if False, the forward pass goes on: the module gets no position of its input, and computes nothing.
    """

    def capture(_module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
        assert isinstance(inputs[0], Tensor)
        captured.append(inputs[0])
        if stop:
            raise ReachedUnembeddingError
        return (inputs[0][..., :0, :], *inputs[1:])

    handle = module.register_forward_pre_hook(capture)
    try:
        yield
    finally:
        handle.remove()
