"""From measured features to the floor of every student width, by every predictor, with intervals."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FloorPrediction, Interval
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss, rank_grid
from tl_distill_floor.theory.bootstrap import UNKNOWN, Z_95, block_bootstrap
from tl_distill_floor.theory.capacity import Number, capacity, critical_width
from tl_distill_floor.theory.floors import _held, _theorem, independent_floor

if TYPE_CHECKING:
    from tl_distill_floor.predicting.simulation import Judge

SHARES_OF_TEACHER = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
NUMBERS_AT_ONCE = 2**22
"""Numbers that are held at once beside the blocks."""
STEPS, MOST_WIDTHS = 1000, 8
"""Of the bottleneck students' longer training, and how many of the widths are trained; the others lie between."""
SEEN_BETTER = 0.1
"""A loss on training text lower by this share than on held-out text is called so."""
FEW_SEQUENCES, WORSE = 10, 1.1
"""Held-out sequences of equal cost below which it is said, and simulated ÷ independent above which it is."""
DENSE = 1 - 1 / np.e
"""Below this sparsity g(α) rises again and Theorem 1 says nothing."""


class Redrawn(NamedTuple):
    """What is predicted from each of some redrawn texts."""

    n_features: Float64[np.ndarray, " draw"]
    alpha: Float64[np.ndarray, " draw"]
    critical_width: Float64[np.ndarray, " draw"]
    floor: Float64[np.ndarray, "draw width"]
    """Summed costs of what is lost."""


def floor_from_stats(
    stats: FeatureStats,
    widths: Any = None,
    *,
    min_count: int = 1,
    steps: int = STEPS,
    simulation: Simulation | None = None,
    tail: TailLoss | None = None,
    judge: "Judge | None" = None,
    n_bootstrap: int = 400,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> FloorPrediction:
    """Predict the floor of every student width from measured features.

    Args:
        stats: what `measure` returned.
        widths: [width] student widths in dimensions, whole numbers; shares of the teacher's width when left out.
        min_count: a feature is alive when it fired on at least this many tokens.
        steps: of the bottleneck students that are trained for `simulated` where the statistics carry codes, at the
            widths or, where these are more than 8, at 8 of them; 0 trains none.
        simulation: what such students reached before, instead of training them.
        tail: what the teacher's output really loses without the least costly features (`tail_losses`): losses are then
            measured ones, where costs are in nats.
        judge: of the students, see `theory.simulation.Judge`; None counts what they lose by costs.
        n_bootstrap: resamplings of the blocks of text behind the 95 % intervals.
        seed: of the resampling and of the training.
        device: torch device of the training.
        progress: of the training, called now and then with steps done and steps in all.

    Raises:
        InputError: no feature is alive, every feature fires on every token, or a width is no whole number above 0.
    """
    sizes = _widths(widths, stats.d_model)
    alive = stats.alive(min_count)
    if not alive.any():
        raise InputError(
            f"none of the {len(alive):,} features fired {min_count} times on {stats.n_tokens:,} tokens;"
            " measure more tokens or name another SAE with --sae"
        )
    if stats.firing_count[alive].min() == stats.n_tokens:
        raise InputError("every feature fires on every token, so they are not sparse; name another SAE with --sae")
    check_steps(steps)
    unsimulated: tuple[str, ...] = ()
    if simulation is None and steps:
        options = {"steps": steps, "min_count": min_count, "seed": seed, "device": device, "progress": progress}
        options |= {"judge": judge}
        simulation, unsimulated = _simulated(stats, sizes[sizes < (alive & (stats.cost > 0)).sum()], options)
    alpha = 1.0 - float(stats.firing_rate[alive].mean())
    found = (*stats.warnings, *_warnings(stats, alpha, tail is not None))
    theorem = _theorem(stats.cost, stats.firing_rate, alive, sizes)
    alone = independent_floor(*stats.costs_and_rates(alive), sizes)
    prediction = FloorPrediction(
        stats=stats,
        min_count=min_count,
        n_features=int(alive.sum()),
        alpha=alpha,
        capacity=capacity(alpha),
        critical_width=critical_width(int(alive.sum()), alpha),
        n_features_interval=UNKNOWN,
        alpha_interval=UNKNOWN,
        critical_width_interval=UNKNOWN,
        widths=sizes,
        theorem=theorem if tail is None else tail.of_additive(theorem),
        independent=alone if tail is None else tail.of_additive(alone),
        additive=theorem,
        interval=np.full((len(sizes), 2), np.nan),
        simulation=simulation,
        tail=tail,
        warnings=(*found, *unsimulated, *_doubts(stats, alive, simulation)),
    )
    return _with_intervals(prediction, n_bootstrap, seed)


def check_steps(steps: int) -> None:
    """Raise an InputError unless students can be trained for so many steps, or none are asked for."""
    if steps < 0 or steps == 1:
        raise InputError(f"the steps must be at least 2, or 0 to simulate nothing, got {steps}")


def ranks_to_measure(stats: FeatureStats, widths: Any = None, min_count: int = 1) -> Int64[np.ndarray, " rank"]:
    """Ranks for a tail loss: a grid, and where Theorem 1 cuts at each of the widths, so that it is measured there.

    Raises:
        InputError: a width is no whole number above 0.
    """
    alive = stats.alive(min_count)
    n, sizes = int(alive.sum()), _widths(widths, stats.d_model)
    held = _held(stats.firing_rate[alive], sizes) if n and stats.firing_count[alive].min() < stats.n_tokens else []
    ranks: np.ndarray = np.unique(np.concatenate([rank_grid(n), [rank for rank in held if rank < n]]).astype(np.int64))
    return ranks


def _with_intervals(prediction: FloorPrediction, n_bootstrap: int, seed: int) -> FloorPrediction:
    """95 % bounds: the measured value ± 1.96 standard errors over redrawn blocks of text, at least 0.

    The draws' quantiles would not do. A draw with replacement leaves out a third of the blocks, and with them the
    features that fire in no other, so that F lies below the measured one in every draw, while its spread is right.
    To a redrawn text the student's shares of lost cost stay what they are: they are the best there are, so that the
    floor does not change, to first order, when they adapt.
    """
    stats = prediction.stats
    n_blocks = len(stats.blocks.n_tokens)
    if n_blocks < 2:
        return prediction
    times = block_bootstrap(n_blocks, n_bootstrap, seed)
    lost = np.stack([stats.blocks.cost @ prediction.lost_share(int(width)) for width in prediction.widths], axis=1)
    drawn = _redrawn(stats, lost, prediction.min_count, times)
    floor, summed = prediction.expected, np.maximum(lost.sum(0) / stats.n_tokens, 1e-300)
    floor_error = np.hypot(drawn.floor.std(0) * floor / summed, prediction.measured_error())
    return dataclasses.replace(
        prediction,
        n_features_interval=_around(prediction.n_features, drawn.n_features.std()),
        alpha_interval=_around(prediction.alpha, drawn.alpha.std()),
        critical_width_interval=_around(prediction.critical_width, drawn.critical_width.std()),
        interval=np.stack([np.maximum(floor - Z_95 * floor_error, 0.0), floor + Z_95 * floor_error], axis=1),
    )


def _redrawn(
    stats: FeatureStats,
    lost: Float64[np.ndarray, "block width"],
    min_count: int,
    times: Int64[np.ndarray, "draw block"],
) -> Redrawn:
    """What is predicted from texts in which each block stands so many times.

    Args:
        lost: summed costs of what is lost of each block.
    """
    n_blocks, n = stats.blocks.firing_count.shape
    tokens = times @ stats.blocks.n_tokens
    n_alive, fired = np.zeros(len(times)), np.zeros(len(times))
    at_once = max(1, NUMBERS_AT_ONCE // max(len(times), n_blocks))
    for first in range(0, n, at_once):
        count = times.astype(np.float64) @ stats.blocks.firing_count[:, first : first + at_once]
        alive = count >= min_count
        n_alive += alive.sum(1)
        fired += count.sum(1, where=alive)
    alpha = 1.0 - fired / np.maximum(n_alive, 1.0) / tokens
    # A redrawn text may hold no feature, or only such as always fire: g(α) has no value at the ends.
    within = np.clip(alpha, 1e-12, 1.0 - 1e-12)
    needed = [critical_width(*each) for each in zip(n_alive, within, strict=True)]
    return Redrawn(n_alive, alpha, np.array(needed), times @ lost / tokens[:, None])


def _around(value: Number, error: Any) -> Interval:
    return max(float(value) - Z_95 * float(error), 0.0), float(value) + Z_95 * float(error)


def _widths(widths: Any, d_model: int) -> Int64[np.ndarray, " width"]:
    if widths is None:
        return np.unique([max(1, round(d_model * share)) for share in SHARES_OF_TEACHER]).astype(np.int64)
    sizes = np.unique(np.asarray(widths, dtype=np.float64))
    if not len(sizes) or not ((sizes >= 1) & (sizes == np.floor(sizes))).all():
        raise InputError(f"widths must be whole numbers of dimensions above 0, got {widths}; try --widths 64,128,256")
    return sizes.astype(np.int64)


def _simulated(
    stats: FeatureStats, widths: Int64[np.ndarray, " width"], options: dict[str, Any]
) -> tuple[Simulation | None, tuple[str, ...]]:
    """(what students of some of the widths reach, or None where nothing can be trained, and why)."""
    if stats.codes is None or not len(widths):
        return None, ()
    from tl_distill_floor.predicting.simulation import simulate  # brings torch

    try:
        return simulate(stats, _some(widths), **options), ()
    except InputError as error:
        return None, (f"nothing was simulated: {error}",)


def _some(widths: Int64[np.ndarray, " width"]) -> Int64[np.ndarray, " trained"]:
    """At most 8 of the widths, the narrowest and the widest among them."""
    places = np.linspace(0, len(widths) - 1, min(len(widths), MOST_WIDTHS))
    some: np.ndarray = widths[np.round(places).astype(np.int64)]
    return some


def _doubts(stats: FeatureStats, alive: Bool[np.ndarray, " feature"], simulation: Simulation | None) -> list[str]:
    """What a reader should know about how the students were trained and measured."""
    if simulation is None:
        return []
    found = []
    alone = independent_floor(*stats.costs_and_rates(alive), simulation.widths)
    worse = simulation.floor.mean(1) > WORSE * alone
    if worse.any():
        listed = ", ".join(str(width) for width in simulation.widths[worse])
        found.append(
            f"simulated lies above independent at width {listed}: its students were not trained to their end there;"
            " raise the steps, or measure more tokens"
        )
    reached, seen = simulation.reached.mean(1), simulation.on_training_text.mean(1)
    better = seen < (1.0 - SEEN_BETTER) * reached
    if better.any():
        least = float((seen / np.maximum(reached, 1e-300)).min())
        listed = ", ".join(str(width) for width in simulation.widths[better])
        found.append(
            f"simulated students of width {listed} lost less on text that they were trained on (down to {least:.0%} of"
            " the held-out loss): more tokens would lower simulated there"
        )
    if simulation.held_out_sequences < FEW_SEQUENCES:
        found.append(
            f"the held-out cost stands in few sequences (worth {simulation.held_out_sequences:.1f} of equal cost):"
            " simulated and its interval depend on them; measure more tokens"
        )
    return found


def _warnings(stats: FeatureStats, alpha: float, has_tail: bool) -> list[str]:
    found = []
    if len(stats.blocks.n_tokens) < 2:
        found.append("one block of text gives no intervals: measure more tokens, or smaller batches")
    if stats.cost_unit == "nats" and not has_tail:
        found.append(
            "costs in nats do not add up to the loss of removing many features, which is larger; give a teacher"
            " (predict_floor) to have it measured"
        )
    if alpha < DENSE:
        found.append(f"sparsity {alpha:.3f} is below 0.632, where Theorem 1's capacity function has no meaning")
    if stats.fvu > 0.3:
        found.append(f"the SAE leaves {stats.fvu:.0%} of the variance unexplained: that part is not in the floor")
    if stats.expected_l0 and not 0.5 <= stats.l0 / stats.expected_l0 <= 2.0:
        found.append(
            f"L0 is {stats.l0:.1f} where the SAE's publisher has {stats.expected_l0:.1f}:"
            " another text, another processing of the teacher, or an SAE that was loaded wrongly"
        )
    return found
