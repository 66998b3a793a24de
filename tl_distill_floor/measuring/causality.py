"""`check_causal`: refuse models whose predictions depend on later tokens, or on padding after them; and find them.

The padding of a batch follows its rows without being masked. So a model of another kind would have other losses in a
batch than alone. It could also read the tokens that it is to predict.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.hooks import activation_reader, residual_points
from tl_distill_floor.sources.context_lengths import cut_to_context, teacher_vocabulary
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teacher_checks import ROUNDING_TOLERANCE, TOLERANCE, relative_difference

SEQUENCES, TOKENS = 4, 16
"""Sequences of a check, and tokens of each. Half of them stay, a quarter is changed, and a quarter is padding."""
SAME_SHAPE_ROUNDING = 0.05
"""Difference that may be rounding in half precision between batches of one shape. It is 0 for most models, and some
0.1 for a random BERT."""


def check_decoder_only(model: nn.Module | HookedModel, what: str) -> None:
    """Raise an InputError if a model is an encoder-decoder.

    Args:
        model: a `transformers` model, or a model with hook points.
        what: "teacher" or "student", for the message.
    """
    plain = vars(model).get("original_model") or model
    if getattr(getattr(plain, "config", None), "is_encoder_decoder", False):
        raise InputError(
            f"the {what} {type(plain).__name__} is an encoder-decoder, and distillation needs a causal language model;"
            " give one that AutoModelForCausalLM loads"
        )


@torch.no_grad()
def check_causal(
    model: nn.Module | HookedModel,
    what: str,
    vocabulary: int,
    logits_of: Callable[[Int[Tensor, "batch position"]], Float[Tensor, "batch position vocabulary"]],
) -> None:
    """Check that a model's predictions do not depend on later tokens, nor on padding after them.

    Args:
        model: the model, in evaluation mode.
        what: "teacher" or "student", for the message.
        vocabulary: number of tokens of the vocabulary.
        logits_of: returns the model's logits of some token ids.

    Raises:
        InputError: the predictions depend on what follows.
    """
    reason = _dependence(model, vocabulary, logits_of, lambda logits: logits.log_softmax(-1))
    if reason:
        name = type(vars(model).get("original_model") or model).__name__
        raise InputError(
            f"the predictions of the {what} {name} depend on {reason}, so it is not a causal language model; give"
            " one that predicts each token from those before it, for BERT with is_decoder=True in its configuration"
        )


def depends_on_what_follows(model: HookedModel, hook_name: str | None = None) -> bool:
    """Return whether a model's activations depend on later tokens, or on padding after them.

    Args:
        model: a HookedTransformer or a TransformerBridge. A TransformerBridge says of every model that it is causal.
        hook_name: where activations are compared; the last point of the residual stream that a forward pass reaches if
            None. A model without one is taken for causal.

    Example:
        >>> depends_on_what_follows(load_teacher("tiny-prose").model)  # doctest: +SKIP
        False
    """
    points = residual_points(model)[::-1] if hook_name is None else [hook_name]
    for point in points:
        try:
            with activation_reader(model, [point]) as read:
                return bool(_dependence(model, teacher_vocabulary(model), partial(_read_flat, read), lambda x: x))
        except InputError:
            if hook_name is not None:
                raise
    return False


def _read_flat(
    read: Callable[[Int[Tensor, "batch position"]], list[Float[Tensor, "batch position *d_model"]]],
    ids: Int[Tensor, "batch position"],
) -> Float[Tensor, "batch position value"]:
    """Return the activations at the only hook point of a reader, with one vector for each token."""
    return read(ids)[0].flatten(2)


def _dependence(
    model: nn.Module | HookedModel,
    vocabulary: int,
    outputs_of: Callable[[Int[Tensor, "batch position"]], Float[Tensor, "batch position value"]],
    in_fp32: Callable[[Float[Tensor, "token value"]], Float[Tensor, "token value"]],
) -> str:
    """Return what a model's outputs at a token depend on among all that follows; an empty string if on nothing.

    Args:
        model: the model.
        vocabulary: number of tokens of the vocabulary.
        outputs_of: returns the model's outputs for some token ids.
        in_fp32: what is computed from outputs in fp32 before they are compared.
    """
    n_tokens = cut_to_context(TOKENS, model)
    n_kept = -(-n_tokens // 2)
    n_changed = -(-(n_tokens - n_kept) // 2)
    ids = torch.randint(0, vocabulary, (SEQUENCES, n_tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device_of(model))

    def of_kept(outputs: Tensor) -> Tensor:
        return in_fp32(outputs[:, :n_kept].flatten(0, 1).float())

    expected = of_kept(outputs_of(ids))
    if expected.isnan().any():
        return ""  # the loss will be NaN too, which is reported elsewhere
    changed = torch.cat([ids[:, :n_kept], (ids[:, n_kept:] + 1) % vocabulary], dim=1)
    for other, reason, rounding in (
        (changed, "later tokens", SAME_SHAPE_ROUNDING),
        (ids[:, : n_kept + n_changed], "padding after a sequence", ROUNDING_TOLERANCE),
    ):
        outputs = outputs_of(other)
        tolerance = TOLERANCE if outputs.dtype in (torch.float32, torch.float64) else rounding
        if relative_difference(expected, of_kept(outputs)) > tolerance:
            return reason
    return ""
