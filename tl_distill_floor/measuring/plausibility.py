"""Check whether an SAE can be one of the activations that it reads: its reconstruction error and its L0.

An SAE at another hook point, on another processing of the teacher or with another normalisation still gives numbers.
They are recognised early in a measurement, before most of its work.
"""

import math

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.job import AttachedSae
from tl_distill_floor.results.feature_stats import WARN_FVU
from tl_distill_floor.results.feature_sums import FeatureSums

TOKENS_TO_CHECK = 2_000
"""Counted tokens after which a measurement is checked for the first time. On less text an SAE is not refused: there is
a warning."""
MIN_SAMPLED_TOKENS = 8
"""Fewest sampled tokens on which the unexplained variance is judged."""
REFUSE_FVU = 1.0
"""Fraction of variance unexplained from which on an SAE is refused: the mean activation alone leaves this much."""
REFUSE_L0_RATIO = 4.0
"""Ratio of the measured and the stated L0, in either direction, from which on an SAE is refused."""
CAUSES = (
    "it may be read at another hook point than it was trained on, the teacher may be processed in another way (fold_ln,"
    " centred weights), or a normalisation of the activations may be missing"
)
"""Why an SAE may not fit, for messages."""


def check_plausible(sums: FeatureSums, attached: AttachedSae) -> None:
    """Raise an InputError if an SAE reconstructs no better than the mean, or has another L0 than its publisher states.

    Args:
        sums: sums over the text read so far. Fewer than `TOKENS_TO_CHECK` tokens are not judged.
        attached: the SAE.
    """
    reasons = _refusals(sums, attached)
    if reasons and sums.n_tokens >= TOKENS_TO_CHECK:
        raise InputError(
            f"the SAE {attached.source.name} does not fit the activations at {attached.hook_name}:"
            f" {'; '.join(reasons)}; {CAUSES}; name another SAE with --sae, or add --force to go on"
        )


def plausibility_warnings(sums: FeatureSums, attached: AttachedSae) -> list[str]:
    """Return the warnings about an SAE that is unlikely to fit the activations.

    Args:
        sums: sums over all of the text.
        attached: the SAE.
    """
    if reasons := _refusals(sums, attached):
        return [f"the SAE does not fit the activations: {'; '.join(reasons)}; {CAUSES}"]
    fvu = unbiased_fvu(sums)
    if fvu > WARN_FVU:
        return [
            f"the fraction of variance unexplained is {fvu:.2f}, which is high for an SAE, and that part is not in the"
            f" floor: {CAUSES}"
        ]
    return []


def unbiased_fvu(sums: FeatureSums) -> float:
    """Compute the fraction of variance unexplained, with the unbiased variance; NaN on too few tokens to judge it.

    Args:
        sums: sums over a stretch of text.
    """
    n = sums.sampled_tokens
    if n < MIN_SAMPLED_TOKENS:
        return math.nan
    variance = (sums.sampled_sum_sq - float(sums.sampled_sum @ sums.sampled_sum) / n) / (n - 1)
    return sums.sampled_error_sq / n / variance if variance > 0 else math.nan


def _refusals(sums: FeatureSums, attached: AttachedSae) -> list[str]:
    """Return the reasons why an SAE cannot be one of the activations; empty if it can."""
    reasons = []
    fvu = unbiased_fvu(sums)
    if fvu >= REFUSE_FVU:
        reasons.append(f"the fraction of variance unexplained is {fvu:.2f}, but the mean activation alone leaves 1")
    stated, l0 = attached.source.expected_l0, float(sums.firing_count.sum() / max(sums.n_tokens, 1))
    if stated and sums.n_tokens and not 1 / REFUSE_L0_RATIO < l0 / stated < REFUSE_L0_RATIO:
        reasons.append(f"its L0 is {l0:.1f}, but {stated:.1f} is stated for it")
    return reasons
