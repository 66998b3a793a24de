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
    "mnats": "in thousandths of nats", "millinats": "in thousandths of nats",
}  # fmt: skip
"""What a column with such a word is: never a loss in nats or bits per token."""
OTHER_DIVERGENCES: Mapping[str, str] = {
    "reverse": "a reverse KL", "rkl": "a reverse KL", "jsd": "a Jensen–Shannon divergence",
    "js": "a Jensen–Shannon divergence", "temperature": "at some temperature", "temp": "at some temperature",
    "top": "of the most likely tokens only", "topk": "of the most likely tokens only",
    "sum": "a sum", "summed": "a sum",
}  # fmt: skip
"""What a divergence or a loss with such a word is."""
OTHER_FORMS: Mapping[str, str] = {
    r"(?:^|[^a-z])(?:log|ln)[ _-]?(?:2|10)?[ _-]?(?:kl|loss)|kl[ _-]log": "a logarithm or a cross-entropy",
    r"per[ _-]?(?:seq|sample|example|doc|batch|word|char|byte|sentence)": "not per token",
    r"kl.*student.*teacher": "a reverse KL",
}
"""What a loss is whose name has such a part."""
UNIT_WORDS: Mapping[str, LossUnit] = {"bits": "bits", "bit": "bits", "bpt": "bits", "nats": "nats", "nat": "nats"}
"""Unit that such a word says."""
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
    return set(re.findall(r"[a-z]+", own_name(name)))


def own_name(name: str) -> str:
    """Return a column's name in lower case, without the name of the run."""
    return name.lower().split(RUN_SEPARATOR)[-1]


def other_loss(name: str) -> str | None:
    """Return what a column is by its name, if that is not KL(teacher ‖ student) per token; None if it may be that.

    Example:
        >>> other_loss("eval/ce_loss"), other_loss("eval_loss"), other_loss("lm_kl")
        ('a cross-entropy', None, None)
    """
    kinds = {**OTHER_SCALES, **OTHER_DIVERGENCES, **({} if words(name) & KL_WORDS else OTHER_LOSSES)}
    of_word = next((kind for word, kind in kinds.items() if word in words(name)), None)
    return of_word or next((kind for form, kind in OTHER_FORMS.items() if re.search(form, own_name(name))), None)


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
    named = {stated for word, stated in UNIT_WORDS.items() if word in words(name)}
    if named and unit not in named:
        advice = "set --unit bits" if unit == "nats" else "leave out --unit"
        raise InputError(f"{name!r} is in {named.pop()} by its name; {advice}, or rename the column")
