"""`SequenceLimits`: how many tokens a model reads, for rows of a data set that are of any length."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError

CONTEXT_FIELDS = (
    "n_positions",
    "max_position_embeddings",
    "max_context_length",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
)
"""Fields of a Hugging Face configuration that may have the largest number of tokens of a sequence."""


@dataclass(frozen=True)
class SequenceLimits:
    """Lengths of sequences that a model reads."""

    longest: int | None
    """Tokens of the longest sequence; None if the configuration has no limit."""


def sequence_limits(model: nn.Module) -> SequenceLimits:
    """Return the lengths of sequences that a model reads, by its configuration.

    Args:
        model: a `transformers` model, or a model with hook points.
    """
    if isinstance(model, HookedModel):
        hooked: HookedModel = model
        return SequenceLimits(int(hooked.cfg.n_ctx))
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    lengths = [getattr(config, name, None) for name in CONTEXT_FIELDS]
    return SequenceLimits(next((length for length in lengths if isinstance(length, int) and length > 1), None))


def check_lengths(limits: Mapping[str, SequenceLimits], lengths: list[int]) -> None:
    """Check that models can read the rows of a batch.

    Args:
        limits: limits of the models, by their names in the message.
        lengths: tokens of each row.

    Raises:
        InputError: a row is too long.
    """
    longest = max(lengths, default=0)
    for name, limit in limits.items():
        if limit.longest is not None and longest > limit.longest:
            raise InputError(
                f"the {name} reads sequences of 2 to {limit.longest} tokens, got {longest} in a row of the dataset; cut"
                " its rows"
            )
