"""Run a teacher a second time with another activation at a hook point. The model is restored afterwards."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.measuring.hooks import eval_mode, forward_logits, get_hook_point, not_reached
from tl_distill_floor.measuring.replacement import check_same_activation, replacing_hooks

Positions: TypeAlias = slice | Int64[Tensor, " some_position"]
"""Some positions of every sequence."""
ALL_POSITIONS = slice(None)
END_OF_BLOCK = ("hook_resid_post", "hook_out")
"""Names, within a block, of the hook point of its output."""


class Rerunner:
    """A teacher that runs a batch of sequences, then runs it again with other activations at one hook point.

    Blocks before the one with the hook point run once per batch: in a rerun they return their first output. If the hook
    point is the output of its block, this block need not run again either.
    """

    def __init__(self, model: HookedModel, hook_name: str) -> None:
        """Find the blocks before the hook point.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            hook_name: the hook point.
        """
        self._model, self._hook_name = model, hook_name
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        # The blocks up to that of the hook point.
        self._blocks: list[nn.Module] = list(getattr(model, "blocks", ()))[: int(match[1]) + 1] if match else []
        self._may_end_block = match is not None and match[2] in END_OF_BLOCK
        self._activation: Tensor | None = None
        self._outputs: dict[nn.Module, object] = {}
        self._replacement: Tensor | None = None
        self.logits, self._tokens = torch.empty(0), torch.empty(0)

    @property
    def activation(self) -> Float[Tensor, "batch position *d_model"]:
        """Activation at the hook point in the last `run`."""
        assert self._activation is not None
        return self._activation

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position *d_model"]:
        """Run a batch, store its logits in `logits`, and return the activation at the hook point.

        Raises:
            InputError: the model returns no logits, or the forward pass does not reach the hook point, or reaches it
                with several activations.
        """
        self._activation, self._tokens = None, tokens
        self.logits = forward_logits(self._model, tokens)
        if self._activation is None:
            raise not_reached([self._hook_name], {})
        return self.activation

    @torch.no_grad()
    def rerun(
        self,
        activation: Float[Tensor, "row position *d_model"],
        rows: Int[Tensor, " row"] | None = None,
        positions: Positions = ALL_POSITIONS,
    ) -> Float[Tensor, "row some_position vocabulary"]:
        """Run sequences of the last batch with another activation at the hook point.

        Args:
            activation: the activation that replaces the teacher's.
            rows: indices of the sequences in the batch, repeats allowed; None runs all of them in order.
            positions: positions whose logits are computed.

        Returns:
            The logits at these positions.
        """
        selected = slice(None) if rows is None else rows
        finished, output = self._finished_blocks(activation, selected)
        self._replacement = activation
        try:
            with _constant_output(finished, output), self._unembedding_only(positions):
                logits = forward_logits(self._model, self._tokens[selected])
        finally:
            self._replacement = None
        n_positions = self._tokens.shape[1]
        # A model may compute all logits nevertheless.
        return logits[:, positions] if logits.shape[1] == n_positions else logits

    def at_hook_point(self, name: str, output: Tensor) -> Tensor | None:
        """Capture the activation in a first run, or replace it in a rerun."""
        if self._replacement is not None:
            return self._replacement.to(output.dtype).view_as(output)
        if self._activation is None:
            self._activation = output
        else:
            check_same_activation(name, self._activation, output)
        return None

    def _finished_blocks(self, activation: Tensor, rows: slice | Tensor) -> tuple[list[nn.Module], object]:
        """Return the blocks that a rerun does not compute, and the output of the last of them for some sequences."""
        if self._may_end_block and self._blocks:
            output = self._outputs[self._blocks[-1]]
            parts = output if isinstance(output, tuple) else (output,)
            tensor = parts[0]
            if isinstance(tensor, Tensor) and (tensor is self.activation or torch.equal(tensor, self.activation)):
                replaced = activation.to(tensor.dtype).view(-1, *tensor.shape[1:])
                others = (_select_rows(part, rows) for part in parts[1:])
                return self._blocks, (replaced, *others) if isinstance(output, tuple) else replaced
        earlier = self._blocks[:-1]
        return earlier, _select_rows(self._outputs[earlier[-1]], rows) if earlier else None

    @contextmanager
    def _unembedding_only(self, positions: Positions) -> Iterator[None]:
        """Give the unembedding some positions only during the context, if the model has one."""
        unembed = getattr(self._model, "unembed", None)
        if not isinstance(unembed, nn.Module):
            yield
            return

        def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][:, positions], *inputs[1:]) if inputs else inputs

        handle = unembed.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the outputs of the hook point's block and of the one before it during the context."""

        def record(block: nn.Module, _inputs: object, output: object) -> None:
            if self._replacement is None:
                self._outputs[block] = output

        handles = [block.register_forward_hook(record) for block in self._blocks[-2:]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._activation = None
            self._outputs.clear()


@contextmanager
def rerunner(model: HookedModel, hook_name: str) -> Iterator[Rerunner]:
    """Yield a teacher that can be run again from a hook point.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        hook_name: the hook point.

    Raises:
        InputError: see `get_hook_point`.
    """
    get_hook_point(model, hook_name)
    teacher = Rerunner(model, hook_name)
    with eval_mode(model), replacing_hooks(model, [hook_name], teacher.at_hook_point), teacher.recording():
        yield teacher


def _select_rows(output: object, rows: slice | Tensor) -> object:
    """Select sequences from a block's output: a tensor, or a tuple that may hold tensors."""
    if isinstance(output, Tensor):
        return output[rows]
    return tuple(_select_rows(part, rows) for part in output) if isinstance(output, tuple) else output


@contextmanager
def _constant_output(blocks: list[nn.Module], output: object) -> Iterator[None]:
    """Make blocks return a given output without computing anything during the context."""
    forward: Callable[..., object] = lambda *_inputs, **_options: output  # noqa: E731
    original = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block, own_forward in zip(blocks, original, strict=True):
            if own_forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = own_forward
