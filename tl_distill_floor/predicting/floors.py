"""Compute the floor of every student width from measured statistics, by every predictor, with intervals."""

import numpy as np
from jaxtyping import Int64

from tl_distill_floor.annotations import ProgressCallback, WidthsLike
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.predicting.checks import (
    check_alive,
    check_steps,
    integer_widths,
    measurement_warnings,
    simulation_warnings,
)
from tl_distill_floor.predicting.config import STEPS
from tl_distill_floor.predicting.intervals import add_intervals
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_curve import FloorCurve
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.theory.allocation import rank_by_cost
from tl_distill_floor.theory.bootstrap import UNKNOWN
from tl_distill_floor.theory.capacity import capacity, critical_width
from tl_distill_floor.theory.floors import independent_floor, ranked_theorem_floor

SHARES_OF_TEACHER_WIDTH = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Default student widths, as shares of the teacher's."""
MAX_TRAINED_WIDTHS = 8
"""Widths of which bottleneck students are trained; others are interpolated."""


@neutral_torch_state()
def floor_from_stats(
    stats: FeatureStats,
    widths: WidthsLike | None = None,
    *,
    min_count: int = 1,
    steps: int = STEPS,
    simulation: Simulation | None = None,
    tail: TailLoss | None = None,
    n_bootstrap: int = 400,
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> FeatureFloorPrediction:
    """Predict the floor of every student width from measured statistics.

    Sources: Sarkar and Deka 2026 (arXiv 2604.04037), Theorem 1, for `theorem`; Scherlis et al. 2022, section 2, for
    `independent`; Elhage et al. 2022, for the bottleneck students of `simulated`.

    Args:
        stats: statistics that `measure` returned.
        widths: [width] student widths in dimensions, integers; shares of the teacher's width if None.
        min_count: a feature is alive if it fired on at least this many tokens.
        steps: training steps of the bottleneck students for `simulated`. They are trained if the statistics have codes
            and `simulation` is None, at 8 of the widths at most. 0 trains none.
        simulation: losses of bottleneck students that were trained before.
        tail: tail loss of the teacher (`measure_tail_loss`). With it, floors in nats are measured losses instead of
            summed costs.
        n_bootstrap: resamples of the blocks of text for the 95 % intervals.
        seed: seed of the resampling and of the training.
        device: torch device of the training.
        progress: called at every hundredth training step with the steps done and the total.

    Returns:
        FeatureFloorPrediction: floors [width] in the unit of the costs.

    Raises:
        InputError: no feature is alive, every feature fires on every token, a width is not an integer above 0, another
            option is out of its range, or a tail loss is given for costs in squared error.

    Example:
        >>> stats = measure("tiny-prose")  # doctest: +SKIP
        >>> floor_from_stats(stats, widths=[16, 64]).feature_floor  # doctest: +SKIP
    """
    sizes = student_widths(widths, stats.width)
    min_count, seed = as_integer("min_count", min_count, 1), as_integer("seed", seed, 0)
    n_bootstrap = as_integer("n_bootstrap", n_bootstrap, 1)
    if tail is not None and stats.cost_unit != "nats":
        raise InputError(
            'a tail loss converts costs in nats, and these are in squared error; measure with cost="fisher"'
        )
    alive = check_alive(stats, min_count)
    steps = check_steps(steps)
    training_warnings: tuple[str, ...] = ()
    if simulation is None and steps and stats.codes is not None:
        from tl_distill_floor.predicting.simulation import train_if_possible  # imports torch

        trained, training_warnings = train_if_possible(
            stats,
            widths_to_train(stats, sizes, min_count),
            steps=steps,
            min_count=min_count,
            seed=seed,
            device=device,
            progress=progress,
        )
        simulation = None if trained is None else trained.simulation()
    n_features, alpha = int(alive.sum()), 1.0 - float(stats.firing_rate[alive].mean())
    ranked = rank_by_cost(stats.cost, alive)
    theorem_cost = ranked_theorem_floor(stats.cost[ranked], stats.firing_rate[ranked], sizes)
    curve = FloorCurve(stats, min_count, capacity(alpha), simulation, tail)
    independent_cost = independent_floor(*stats.costs_and_rates(alive), sizes)
    prediction = FeatureFloorPrediction(
        stats=stats,
        min_count=min_count,
        n_features=n_features,
        alpha=alpha,
        capacity=capacity(alpha),
        critical_width=critical_width(n_features, alpha),
        n_features_interval=UNKNOWN,
        alpha_interval=UNKNOWN,
        critical_width_interval=UNKNOWN,
        widths=sizes,
        theorem=np.array([curve.theorem_at(int(width)) for width in sizes]),
        independent=curve.loss_of_cost(independent_cost),
        additive=theorem_cost,
        sampling_interval=np.full((len(sizes), 2), np.nan),
        theorem_interval=np.full((len(sizes), 2), np.nan),
        independent_interval=np.full((len(sizes), 2), np.nan),
        simulation=simulation,
        tail=tail,
        warnings=(
            *stats.warnings,
            *measurement_warnings(stats, alpha, tail is not None),
            *training_warnings,
            *simulation_warnings(stats, alive, simulation),
        ),
    )
    return add_intervals(prediction, n_bootstrap, seed)


def student_widths(widths: WidthsLike | None, d_model: int) -> Int64[np.ndarray, " width"]:
    """Return the widths in rising order, each once; shares of the teacher's width if None.

    Raises:
        InputError: a width is not an integer above 0.

    Example:
        >>> student_widths(None, 64)
        array([ 4,  8, 16, 24, 32, 48, 64])
    """
    if widths is not None:
        return integer_widths(widths)
    return np.unique([max(1, round(d_model * share)) for share in SHARES_OF_TEACHER_WIDTH]).astype(np.int64)


def widths_to_train(
    stats: FeatureStats, widths: Int64[np.ndarray, " width"], min_count: int
) -> Int64[np.ndarray, " trained"]:
    """Return the widths at which bottleneck students are trained.

    These are at most 8 of the widths below the number of alive features of cost above 0, with the narrowest and the
    widest of them. A student as wide as this number loses nothing.

    Args:
        stats: measured statistics.
        widths: [width] student widths, rising.
        min_count: a feature is alive if it fired on at least this many tokens.
    """
    narrow = widths[widths < (stats.alive(min_count) & (stats.cost > 0)).sum()]
    positions = np.linspace(0, len(narrow) - 1, min(len(narrow), MAX_TRAINED_WIDTHS))
    chosen: np.ndarray = narrow[np.round(positions).astype(np.int64)]
    return chosen
