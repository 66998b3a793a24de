"""`SequenceLimits`: how many tokens a model reads, for rows of a data set that are of any length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.context_lengths import longest_sequence


@dataclass(frozen=True)
class SequenceLimits:
    """Lengths of sequences that a model reads."""

    longest: int | None
    """Tokens of the longest sequence; None if the configuration has no limit."""
    switches: tuple[int, ...] = ()
    """Tokens above which a batch is run with other rotary frequencies, all of its rows (`rope_type` "longrope")."""


def sequence_limits(model: nn.Module) -> SequenceLimits:
    """Return the lengths of sequences that a model reads, by its configuration.

    Args:
        model: a `transformers` model, or a model with hook points.
    """
    if isinstance(model, HookedModel):
        plain = vars(model).get("original_model")
        return SequenceLimits(longest_sequence(model), () if plain is None else sequence_limits(plain).switches)
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return SequenceLimits(longest_sequence(model), _switches(getattr(config, "rope_parameters", None) or {}))


def check_lengths(limits: Mapping[str, SequenceLimits], lengths: list[int]) -> None:
    """Check that models can read the rows of a batch.

    Args:
        limits: limits of the models, by their names in the message.
        lengths: tokens of each row.

    Raises:
        InputError: a row is too long, or a model would read shorter rows in another way next to it than alone.
    """
    longest, shortest = max(lengths, default=0), min(lengths, default=0)
    for name, limit in limits.items():
        if limit.longest is not None and longest > limit.longest:
            raise InputError(
                f"the {name} reads sequences of 2 to {limit.longest} tokens, got {longest} in a row of the dataset; cut"
                " its rows"
            )
        for switch in limit.switches:
            if shortest <= switch < longest:
                raise InputError(
                    f"the {name} reads all rows of a batch with other rotary frequencies if one has more than {switch}"
                    f" tokens, and a batch has rows of {shortest} to {longest}; cut the rows of the dataset to {switch}"
                    " tokens, or set per_device_train_batch_size and per_device_eval_batch_size to 1"
                )


def _switches(rope: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the lengths at which rotary frequencies change, of rope parameters of all layers or of each kind."""
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)]
    lengths = {kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"}
    return tuple(sorted(int(length) for length in lengths))
