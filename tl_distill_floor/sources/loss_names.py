"""Tell from its name whether a column of a log is KL(teacher ‖ student) in nats per token, or something else."""

import re
from collections.abc import Mapping

from tl_distill_floor.annotations import LossUnit
from tl_distill_floor.errors import InputError

KL_WORDS = {"kl", "kld", "kldiv", "divergence"}
"""A column whose name has one of these words is a divergence."""
LOSS_WORDS = {"loss", *KL_WORDS}
"""A column whose name has one of these words may be the loss."""
OTHER_SCALES: Mapping[str, str] = {
    "ppl": "a perplexity", "perplexity": "a perplexity", "bpb": "in bits per byte", "bpc": "in bits per character",
}  # fmt: skip
"""What a column with such a word is: never a loss in nats or bits per token."""
OTHER_DIVERGENCES: Mapping[str, str] = {
    "reverse": "a reverse KL", "rkl": "a reverse KL", "jsd": "a Jensen–Shannon divergence",
}  # fmt: skip
"""What a divergence with such a word is."""
OTHER_LOSSES: Mapping[str, str] = {
    "ce": "a cross-entropy", "xent": "a cross-entropy", "entropy": "a cross-entropy",
    "crossentropy": "a cross-entropy", "nll": "a cross-entropy", "lm": "a cross-entropy", "mse": "a squared error",
    "cosine": "a cosine distance", "cos": "a cosine distance", "aux": "an auxiliary loss",
}  # fmt: skip
"""What a loss with such a word is, unless it is called a KL too."""
RUN_SEPARATOR = " - "
"""What Weights & Biases puts between the name of a run and that of a column."""


def words(name: str) -> set[str]:
    """Return the words of a column's name, without the name of the run.

    Example:
        >>> sorted(words("test run - eval/kl_loss"))
        ['eval', 'kl', 'loss']
    """
    return set(re.findall(r"[a-z]+", name.lower().split(RUN_SEPARATOR)[-1]))


def other_loss(name: str) -> str | None:
    """Return what a column is by its name, if that is not KL(teacher ‖ student) per token; None if it may be that.

    Example:
        >>> other_loss("eval/ce_loss"), other_loss("eval_loss"), other_loss("lm_kl")
        ('a cross-entropy', None, None)
    """
    kinds = {**OTHER_SCALES, **OTHER_DIVERGENCES, **({} if words(name) & KL_WORDS else OTHER_LOSSES)}
    return next((kind for word, kind in kinds.items() if word in words(name)), None)


def check_unit_of_name(name: str, unit: LossUnit) -> None:
    """Raise an InputError if the name of a loss says that it is not in a unit per token.

    Args:
        name: name of the column.
        unit: the unit that the loss is taken to be in.
    """
    scale = next((what for word, what in OTHER_SCALES.items() if word in words(name)), None)
    if scale is not None:
        raise InputError(
            f"{name!r} is {scale} by its name; set --loss to a column of KL(teacher ‖ student) per token, or add one"
        )
    named = words(name) & {"bits", "nats"}
    if named and unit not in named:
        advice = "set --unit bits" if unit == "nats" else "leave out --unit"
        raise InputError(f"{name!r} is in {named.pop()} by its name; {advice}, or rename the column")
