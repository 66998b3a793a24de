"""Check the options of a prediction, and write its warnings."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from tl_distill_floor.annotations import WidthsLike
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.results.feature_stats import WARN_FVU, FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.theory.floors import independent_floor

MIN_ALPHA = 1 - 1 / np.e
"""Below this sparsity the capacity function g(α) rises again, and Theorem 1 does not apply."""
MENTIONED_FVU = 0.3
"""Fraction of variance unexplained above which a prediction says so; above `WARN_FVU` the measurement itself warns."""
WARN_L0_RATIO = 2.0
"""Ratio of the measured and the published L0, in either direction, above which a prediction warns."""
MAX_CORRELATION_OF_BLOCKS = 0.4
"""Correlation of neighbouring blocks of text above which a prediction warns: they could not be joined any further."""
MIN_TRAINING_GAIN = 0.1
"""If the loss on training text is lower than the held-out loss by more than this share, a prediction warns."""
MIN_HELDOUT_SEQUENCES = 10
"""Effective number of held-out sequences below which a prediction warns."""
MAX_SIMULATED_RATIO = 1.1
"""Ratio of the simulated and the independent floor above which a prediction warns."""
MIN_TOKENS_PER_DIMENSION = 50
"""Training tokens per dimension of the widest student below which a head floor warns."""
MAX_TRAINING_LEFT = 0.03
"""Share of the head floor that the second half of the training removed, above which a head floor warns."""


def check_steps(steps: int) -> int:
    """Return the steps of bottleneck students as an integer of at least 2, or 0.

    Raises:
        InputError: they are something else.

    Example:
        >>> check_steps(1000)
        1000
    """
    n_steps = as_integer("steps", steps)
    if n_steps < 0 or n_steps == 1:
        raise InputError(f"the steps must be at least 2, or 0 to simulate nothing, got {steps}")
    return n_steps


def integer_widths(widths: WidthsLike) -> Int64[np.ndarray, " width"]:
    """Return the widths as integers in rising order, each once.

    Raises:
        InputError: there are no widths, or one is not an integer above 0.

    Example:
        >>> integer_widths([64, 16, 64])
        array([16, 64])
    """
    try:
        # As a list: NumPy does not read tensors of a GPU, or with a gradient.
        sizes = np.unique(np.asarray(widths.tolist() if hasattr(widths, "tolist") else widths, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"widths must be integers above 0, in dimensions, got {widths!r:.60}") from error
    if not len(sizes) or not ((sizes >= 1) & (sizes < 2**63) & (sizes == np.floor(sizes))).all():
        raise InputError(f"widths must be integers above 0, in dimensions, got {widths}; try --widths 64,128,256")
    return sizes.astype(np.int64)


def check_alive(stats: FeatureStats, min_count: int) -> Bool[np.ndarray, " feature"]:
    """Return which features are alive.

    Args:
        stats: measured statistics.
        min_count: a feature is alive if it fired on at least this many tokens.

    Raises:
        InputError: no feature is alive, or every alive feature fires on every token.
    """
    alive = stats.alive(min_count)
    if not alive.any():
        raise InputError(
            f"none of the {len(alive):,} features fired {min_count:,} times on {stats.n_tokens:,} tokens;"
            f" measure more tokens{', lower --min-count,' if min_count > 1 else ''} or name another SAE with --sae"
        )
    if stats.firing_count[alive].min() == stats.n_tokens:
        raise InputError("every feature fires on every token, so they are not sparse; name another SAE with --sae")
    return alive


def measurement_warnings(stats: FeatureStats, alpha: float, has_tail_loss: bool) -> list[str]:
    """Return warnings about the measured statistics.

    Args:
        stats: measured statistics.
        alpha: sparsity of the alive features.
        has_tail_loss: whether the tail loss was measured.
    """
    warnings = []
    if len(stats.blocks.n_tokens) < 2:
        warnings.append("one block of text gives no intervals: measure more tokens, or smaller batches")
    correlation = stats.independent_blocks.neighbour_correlation()
    if correlation > MAX_CORRELATION_OF_BLOCKS:
        warnings.append(
            f"neighbouring parts of the text are alike (correlation {correlation:.2f}), so that intervals may be too"
            " narrow for other documents: measure more documents"
        )
    if stats.cost_unit == "nats" and not has_tail_loss:
        warnings.append(
            "costs in nats do not add up to the loss of removing many features, which is larger; give a teacher"
            " (predict_floor) to measure it"
        )
    if alpha < MIN_ALPHA:
        warnings.append(f"sparsity {alpha:.3f} is below 0.632, where Theorem 1's capacity function has no meaning")
    if MENTIONED_FVU < stats.fvu <= WARN_FVU:
        warnings.append(f"the SAE leaves {stats.fvu:.0%} of the variance unexplained: that part is not in the floor")
    if stats.expected_l0 and not 1 / WARN_L0_RATIO <= stats.l0 / stats.expected_l0 <= WARN_L0_RATIO:
        warnings.append(
            f"L0 is {stats.l0:.1f}, the published L0 is {stats.expected_l0:.1f}: the text or the processing of the"
            " teacher differs, or the SAE was not loaded correctly"
        )
    return warnings


def head_warnings(widths: Sequence[int], floor: np.ndarray, gain: np.ndarray, n_train: int) -> list[str]:
    """Return warnings about the training of a head floor.

    Args:
        widths: widths below the teacher's, rising.
        floor: head floor at each of them.
        gain: what the second half of the training removed.
        n_train: training tokens.
    """
    warnings = []
    if n_train < MIN_TOKENS_PER_DIMENSION * max(widths, default=0):
        warnings.append(
            f"the head floor was trained on {n_train:,} tokens, fewer than {MIN_TOKENS_PER_DIMENSION} per dimension of"
            " the widest student, so it may be too high; give more text"
        )
    left = max((g / f for f, g in zip(floor.tolist(), gain.tolist(), strict=True) if f > 0), default=0.0)
    if left > MAX_TRAINING_LEFT:
        warnings.append(
            f"the second half of the training lowered the head floor by up to {left:.0%}, so more steps would lower it"
            " further"
        )
    if len(widths) == 1:
        warnings.append(
            f"the head floor was computed at one width, {widths[0]}, so it can be off by a factor of 2.6 at wider ones;"
            " give several widths"
        )
    return warnings


def simulation_warnings(
    stats: FeatureStats, alive: Bool[np.ndarray, " feature"], simulation: Simulation | None
) -> list[str]:
    """Return warnings about the training and the evaluation of the bottleneck students.

    Args:
        stats: measured statistics.
        alive: which features are alive.
        simulation: the losses of the students; None if none were trained.
    """
    if simulation is None:
        return []
    warnings = []
    independent = independent_floor(*stats.costs_and_rates(alive), simulation.widths)
    undertrained = simulation.floor.mean(1) > MAX_SIMULATED_RATIO * independent
    if undertrained.any():
        warnings.append(
            f"simulated is above independent at width {_join(simulation.widths[undertrained])}: its students were not"
            " trained long enough; raise the steps, or measure more tokens"
        )
    heldout, on_training_text = simulation.reached.mean(1), simulation.on_training_text.mean(1)
    ratio = np.divide(on_training_text, heldout, out=np.ones_like(heldout), where=heldout > 0)
    overfitted = ratio < 1.0 - MIN_TRAINING_GAIN
    if overfitted.any():
        warnings.append(
            f"simulated students of width {_join(simulation.widths[overfitted])} lost less on their training text"
            f" (down to {ratio.min():.0%} of the held-out loss): more tokens would lower simulated there"
        )
    if simulation.held_out_sequences < MIN_HELDOUT_SEQUENCES:
        warnings.append(
            "the held-out cost is concentrated in few sequences (equivalent to"
            f" {simulation.held_out_sequences:.1f} of equal cost): simulated and its interval depend on them; measure"
            " more tokens"
        )
    return warnings


def _join(widths: Int64[np.ndarray, " width"]) -> str:
    """Join widths with commas."""
    return ", ".join(str(width) for width in widths)
