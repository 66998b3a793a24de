"""`check_causal`: refuse models whose predictions depend on later tokens, or on padding after them.

The padding of a batch follows its rows without being masked. So a model of another kind would have other losses in a
batch than alone. It could also read the tokens that it is to predict.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teacher_checks import ROUNDING_TOLERANCE, TOLERANCE, relative_difference

SEQUENCES, KEPT, CHANGED, PADDING = 4, 8, 4, 4
"""Sequences of a check, and of each the tokens that stay, the tokens that are changed, and the padding."""
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
    ids = torch.randint(
        0, vocabulary, (SEQUENCES, KEPT + CHANGED + PADDING), generator=torch.Generator().manual_seed(0)
    ).to(device_of(model))
    expected = _log_probabilities(logits_of(ids))
    if expected.isnan().any():
        return  # the loss will be NaN too, which ends the training
    changed = torch.cat([ids[:, :KEPT], (ids[:, KEPT:] + 1) % vocabulary], dim=1)
    for other, reason, rounding in (
        (changed, "later tokens", SAME_SHAPE_ROUNDING),
        (ids[:, : KEPT + CHANGED], "padding after a sequence", ROUNDING_TOLERANCE),
    ):
        logits = logits_of(other)
        tolerance = TOLERANCE if logits.dtype in (torch.float32, torch.float64) else rounding
        if relative_difference(expected, _log_probabilities(logits)) > tolerance:
            name = type(vars(model).get("original_model") or model).__name__
            raise InputError(
                f"the predictions of the {what} {name} depend on {reason}, so it is not a causal language model; give"
                " one that predicts each token from those before it, for BERT with is_decoder=True in its configuration"
            )


def _log_probabilities(logits: Float[Tensor, "batch position vocabulary"]) -> Float[Tensor, "token vocabulary"]:
    """Return the log probabilities at the positions of the tokens that stay."""
    return logits[:, :KEPT].flatten(0, 1).float().log_softmax(-1)
