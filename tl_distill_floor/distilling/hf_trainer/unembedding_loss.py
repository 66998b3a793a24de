"""Compute a loss at a model's unembedding, inside of the model's own forward pass.

Under FSDP and DeepSpeed, the weights of a module are complete only while its forward pass runs. So a loss that reads
the weights of the unembedding, as one in chunks of tokens does, is computed there.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from tl_distill_floor.distilling.students.layers import capture_residual_stream, replaced_forward
from tl_distill_floor.errors import InputError

HiddenStates: TypeAlias = Float[Tensor, "batch position width"]
UnembeddingLoss: TypeAlias = Callable[[HiddenStates, nn.Module, HiddenStates | None], Tensor]
"""Called with the last hidden states, the unembedding, and the residual stream after a layer; returns the loss."""


class Unembedding(nn.Module):
    """An unembedding without the hooks around its forward pass, which has begun already.

    Args:
        module: the unembedding of a `transformers` model.
        forward: its forward pass without hooks.

    Raises:
        InputError: its weight is not among its parameters.
    """

    def __init__(self, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._module, self._forward = module, forward
        weight = getattr(module, "weight", None)
        if not any(parameter is weight for parameter in module.parameters()):
            raise InputError(
                f"the weight of the student's {type(module).__name__} is not one of its parameters under this version"
                " of FSDP; set fsdp_version to 2"
            )

    def forward(self, hidden: Float[Tensor, "*token width"]) -> Float[Tensor, "*token vocabulary"]:
        """Return the logits, before they are scaled or capped."""
        return self._forward(hidden)


@contextmanager
def loss_at_unembedding(model: nn.Module, loss: UnembeddingLoss, layer: int | None = None) -> Iterator[None]:
    """Make a model's forward pass return a `loss` and no logits during the context.

    Args:
        model: a `transformers` causal language model. What is called may be a wrapper of it, of DDP, FSDP or DeepSpeed.
        loss: computes the loss.
        layer: layer whose residual stream `loss` is given; None for no layer.

    Example:
        >>> with loss_at_unembedding(model, lambda hidden, unembed, _: unembed(hidden[0]).mean()):  # doctest: +SKIP
        ...     model(ids).loss.backward()
    """
    unembed: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    forward = unembed.forward
    losses: list[Tensor] = []
    matched: list[Tensor] = []

    def compute_loss(hidden: Tensor) -> Tensor:
        losses.append(loss(hidden, Unembedding(unembed, forward), matched.pop() if matched else None))
        # One zero per sequence instead of its logits, so that the hooks of wrappers get an output with a gradient.
        return hidden[:, :1, :1] * 0.0

    def return_loss(_module: nn.Module, _inputs: object, output: object) -> CausalLMOutput:
        if not losses:
            raise InputError(f"the forward pass of {type(model).__name__} did not reach its unembedding")
        return CausalLMOutput(loss=losses.pop() + output.logits.sum().float())  # type: ignore[attr-defined]

    with ExitStack() as stack:
        stack.enter_context(capture_residual_stream(model, layer, matched))
        # Before the hook of FSDP, which has to see the output that is differentiated.
        stack.callback(model.register_forward_hook(return_loss, prepend=True).remove)
        stack.enter_context(replaced_forward(unembed, compute_loss))
        yield
