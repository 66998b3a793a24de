"""Predict the floors of one SAE whose features were measured, and measure the losses that this needs."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Int64

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.removal import measure_restored_loss, measure_tail_loss
from tl_distill_floor.predicting.bottleneck_task import heldout_sequences
from tl_distill_floor.predicting.checks import check_alive
from tl_distill_floor.predicting.config import PredictConfig
from tl_distill_floor.predicting.floors import floor_from_stats, student_widths, widths_to_train
from tl_distill_floor.predicting.lost_features import features_shown_by_default
from tl_distill_floor.predicting.progress import ProgressBarFactory
from tl_distill_floor.predicting.promoted_tokens import compute_promoted_tokens
from tl_distill_floor.predicting.simulation import RestoredLoss, TrainedBottlenecks, train_if_possible
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.tail_loss import TailLoss, rank_grid
from tl_distill_floor.sources.devices import main_device
from tl_distill_floor.theory.allocation import rank_by_cost, remaining_costs
from tl_distill_floor.theory.floors import held_ranks

HALF_PRECISION_WARNING = (
    "the teacher's logits are rounded to half precision: losses of some 1e-4 nats are rounding; run it in fp32"
)
SEQUENCES_PER_MEASURED_TWICE = 4
"""Held-out sequences of which one is run with the students of half of the training, too."""


def predict_measured(
    job: MeasurementJob,
    stats: FeatureStats,
    widths: Int64[np.ndarray, " width"] | None,
    predicting: PredictConfig,
    *,
    device: str,
    make_bar: ProgressBarFactory,
) -> FeatureFloorPrediction:
    """Predict the floor from a job with one SAE and its measured statistics.

    If costs are in nats, the tail loss and the losses of the bottleneck students are measured with the teacher, on text
    that the students are not trained on.

    Args:
        job: a text, one SAE, and the teacher unless activations are cached.
        stats: its measured statistics.
        widths: student widths in rising order; shares of the teacher's width if None.
        predicting: what is computed; its `head` is not used.
        device: torch device of the training.
        make_bar: makes a progress bar for each stage.

    Raises:
        InputError: see `floor_from_stats`.
    """
    sizes = student_widths(widths, stats.width)
    check_alive(stats, predicting.min_count)
    with make_bar("steps", "simulating") as progress:
        trained, training_warnings = train_if_possible(
            stats,
            widths_to_train(stats, sizes, predicting.min_count),
            steps=predicting.steps,
            min_count=predicting.min_count,
            seed=predicting.seed,
            device=device,
            progress=progress,
        )
    tail, restored_loss = None, None
    if stats.cost_unit == "nats" and job.teacher is not None:
        if torch.finfo(next(job.model.parameters()).dtype).bits < 32:
            stats = dataclasses.replace(stats, warnings=(*stats.warnings, HALF_PRECISION_WARNING))
        sequences = heldout_sequences(stats, predicting.seed)
        with make_bar("sequences", "removing features") as progress:
            tail = _measure_tail(job, stats, sizes, predicting.min_count, sequences, progress)
        if trained is not None:
            restored_loss = _measure_students(job, trained, sequences, make_bar)
    floor = floor_from_stats(
        stats,
        sizes,
        min_count=predicting.min_count,
        steps=0,  # students were trained above
        simulation=None if trained is None else trained.simulation(restored_loss),
        tail=tail,
        seed=predicting.seed,
    )
    floor = dataclasses.replace(floor, warnings=(*floor.warnings, *training_warnings))
    if job.teacher is None:
        return floor
    return compute_promoted_tokens(floor, features_shown_by_default(floor), job.model, job.saes[0].sae.W_dec)


def _measure_tail(
    job: MeasurementJob,
    stats: FeatureStats,
    widths: Int64[np.ndarray, " width"],
    min_count: int,
    sequences: Int64[np.ndarray, " sequence"],
    progress: ProgressCallback | None,
) -> TailLoss:
    """Measure the tail loss at a grid of ranks, and at the numbers of features that each width holds by Theorem 1."""
    alive = stats.alive(min_count)
    n_features = int(alive.sum())
    held = [rank for rank in held_ranks(stats.firing_rate[alive], widths) if rank < n_features]
    ranks: np.ndarray = np.unique(np.concatenate([rank_grid(n_features), held]).astype(np.int64))
    order = rank_by_cost(stats.cost, alive)
    additive = remaining_costs(stats.cost[order])[ranks]
    return measure_tail_loss(job, order, ranks, additive, sequences, progress=progress)


def _measure_students(
    job: MeasurementJob,
    trained: TrainedBottlenecks,
    sequences: Int64[np.ndarray, " sequence"],
    make_bar: ProgressBarFactory,
) -> RestoredLoss:
    """Measure the losses in nats of bottleneck students, and on some of the sequences also after half of the steps.

    Students after half of the steps only serve to extrapolate. The standard error of that is a third of what the second
    half of the training gained, so fewer sequences suffice for them.
    """
    is_measured_twice = np.arange(len(sequences)) % SEQUENCES_PER_MEASURED_TWICE == 0
    total = len(sequences) + int(is_measured_twice.sum())
    with make_bar("sequences", "measuring simulated students") as progress:

        def report_first(done: int, _total: int) -> None:
            if progress:
                progress(done, total)

        def report_second(done: int, _total: int) -> None:
            if progress:
                progress(len(sequences) + done, total)

        all_steps, n_tokens = measure_restored_loss(job, trained.restore_functions(), sequences, report_first)
        half_of_steps, _ = measure_restored_loss(
            job, trained.restore_functions(after_half=True), sequences[is_measured_twice], report_second
        )
    return RestoredLoss(all_steps, half_of_steps, is_measured_twice, n_tokens)


def training_device(attached: AttachedSae, device: str) -> str:
    """Return the device to train bottleneck students on: that of the SAE unless another one is named.

    Args:
        attached: the SAE.
        device: the device that was named; "cpu" if none was.
    """
    return main_device(str(attached.sae.device) if device == "cpu" else device)
