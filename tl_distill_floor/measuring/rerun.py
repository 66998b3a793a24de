"""Running a teacher again from a hook point on, with another activation there. The model leaves as it came."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.measuring import kl
from tl_distill_floor.measuring.hooks import checked_logits, evaluating, hook_point, hooked

KL_NUMBERS = 2**24
"""Logits whose KL is computed at once, 64 MiB in fp32."""


class Rerunner:
    """A teacher over one batch of sequences at a time, and the same with another activation at the hook point.

    What lies before the hook point's block is computed once: run again, the blocks before it hand on what they put out.
    """

    def __init__(self, model: Any, hook_name: str) -> None:
        self._model = model
        number = re.match(r"blocks\.(\d+)\.", hook_name)
        self._before = list(getattr(model, "blocks", ()))[: int(number[1])] if number else []
        self._captured: list[Tensor] = []
        self._output_before: Any = None
        self._spliced: Tensor | None = None
        self.logits, self._tokens = torch.empty(0), torch.empty(0)

    @property
    def activation(self) -> Float[Tensor, "batch position *d_model"]:
        """At the hook point, of the sequences that ran last."""
        return self._captured[0]

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position *d_model"]:
        """The activation at the hook point; the logits stay in `logits`.

        Raises:
            InputError: the model gives no logits.
        """
        self._captured.clear()
        self._tokens = tokens
        self.logits = checked_logits(self._model, self._model(tokens))
        return self.activation

    @torch.no_grad()
    def rerun(
        self, activation: Float[Tensor, "row position *d_model"], rows: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, "row position vocabulary"]:
        """The logits with another activation of the sequences that ran last, or of some of them, each any times."""
        chosen = slice(None) if rows is None else rows
        handed_on = _rows_of(self._output_before, chosen)
        self._spliced = activation
        try:
            with _constant(self._before, handed_on):
                return checked_logits(self._model, self._model(self._tokens[chosen]))
        finally:
            self._spliced = None

    def at_hook_point(self, _name: str, output: Tensor) -> Tensor | None:
        if self._spliced is None:
            self._captured.append(output)
            return None
        return self._spliced.to(output.dtype).view_as(output)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What the last block before the hook point's puts out is kept inside."""

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._spliced is None:
                self._output_before = output

        handles = [block.register_forward_hook(keep) for block in self._before[-1:]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._captured.clear()
            self._output_before = None


@contextmanager
def rerunner(model: Any, hook_name: str) -> Iterator[Rerunner]:
    """A teacher that can be run again from a hook point on.

    Raises:
        InputError: see `hook_point`.
    """
    hook_point(model, hook_name)
    made = Rerunner(model, hook_name)
    with evaluating(model), hooked(model, [hook_name], made.at_hook_point), made.recording():
        yield made


@torch.no_grad()
def forward_kl(
    teacher: Float[Tensor, "batch position vocabulary"], student: Float[Tensor, "batch position vocabulary"]
) -> Float[Tensor, "batch position"]:
    """KL(teacher ‖ student) of every position in nats, from logits."""
    n_positions = teacher.shape[0] * teacher.shape[1]
    at_once = max(1, KL_NUMBERS // teacher.shape[-1])
    parts = []
    for first in range(0, n_positions, at_once):
        rows = slice(first, first + at_once)
        parts.append(kl.forward_kl(teacher.flatten(0, 1)[rows], student.flatten(0, 1)[rows]))
    # Rounding leaves some positions a hair below 0.
    return torch.cat(parts).view(teacher.shape[:2]).clamp_(min=0.0)


def _rows_of(output: Any, rows: Any) -> Any:
    """A block's output for some of the sequences: a tensor, or a tuple that holds one."""
    if isinstance(output, Tensor):
        return output[rows]
    return tuple(_rows_of(part, rows) for part in output) if isinstance(output, tuple) else output


@contextmanager
def _constant(blocks: list[nn.Module], output: Any) -> Iterator[None]:
    """The blocks compute nothing inside and put out what is given."""
    forward: Callable[..., Any] = lambda *_inputs, **_options: output  # noqa: E731
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = before
