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
from tl_distill_floor.sources.context_lengths import cut_to_context
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
    n_tokens = cut_to_context(TOKENS, model)
    n_kept = -(-n_tokens // 2)
    n_changed = -(-(n_tokens - n_kept) // 2)
    ids = torch.randint(0, vocabulary, (SEQUENCES, n_tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device_of(model))
    expected = _log_probabilities(logits_of(ids), n_kept)
    if expected.isnan().any():
        return  # the loss will be NaN too, which ends the training
    changed = torch.cat([ids[:, :n_kept], (ids[:, n_kept:] + 1) % vocabulary], dim=1)
    for other, reason, rounding in (
        (changed, "later tokens", SAME_SHAPE_ROUNDING),
        (ids[:, : n_kept + n_changed], "padding after a sequence", ROUNDING_TOLERANCE),
    ):
        logits = logits_of(other)
        tolerance = TOLERANCE if logits.dtype in (torch.float32, torch.float64) else rounding
        if relative_difference(expected, _log_probabilities(logits, n_kept)) > tolerance:
            name = type(vars(model).get("original_model") or model).__name__
            raise InputError(
                f"the predictions of the {what} {name} depend on {reason}, so it is not a causal language model; give"
                " one that predicts each token from those before it, for BERT with is_decoder=True in its configuration"
            )


def _log_probabilities(
    logits: Float[Tensor, "batch position vocabulary"], n_kept: int
) -> Float[Tensor, "token vocabulary"]:
    """Return the log probabilities at the positions of the tokens that stay."""
    return logits[:, :n_kept].flatten(0, 1).float().log_softmax(-1)
