"""Train bottleneck students on the codes of an SAE, to predict what a student of each width can hold."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.removal import RestoreCodes
from tl_distill_floor.predicting.bottleneck import n_steps_per_width
from tl_distill_floor.predicting.bottleneck_task import (
    EXTRAPOLATION_ERROR,
    BottleneckTask,
    HiddenStates,
    TrainedBottleneck,
    extrapolate_loss,
)
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import ratio_standard_error

TOKENS_PER_STEP = 1024
"""Default tokens of a training step."""


class RestoredLoss(NamedTuple):
    """Losses of the teacher with the codes that students restore, nats summed over the tokens of each sequence."""

    all_steps: Float64[np.ndarray, "student sequence"]
    """Loss of every student after all of its training steps."""
    half_of_steps: Float64[np.ndarray, "student measured_twice"]
    """Loss after half of the steps, on some of the sequences."""
    is_measured_twice: Bool[np.ndarray, " sequence"]
    """Which sequences these are."""
    n_tokens: Int64[np.ndarray, " sequence"]
    """Measured tokens of each sequence."""


@dataclass(frozen=True, eq=False)
class TrainedBottlenecks:
    """Bottleneck students of several widths, trained on the same codes."""

    task: BottleneckTask
    stats: FeatureStats
    widths: Int64[np.ndarray, " width"]
    steps: int
    students: list[TrainedBottleneck]
    """A student of each width."""

    def hidden_states(self) -> list[HiddenStates]:
        """Return the function of each student from an SAE's codes [token, feature] to hidden states [token, width]."""
        return [self.task.hidden_states(student.models[1]) for student in self.students]

    def restore_functions(self, *, after_half: bool = False) -> list[RestoreCodes]:
        """Return the function of each student that restores an SAE's codes, for `measure_restored_loss`.

        Args:
            after_half: students after half of the steps instead of all of them.
        """
        return [self.task.restore_codes(student.models[0 if after_half else 1]) for student in self.students]

    def simulation(self, restored_loss: RestoredLoss | None = None) -> Simulation:
        """Return the losses of the students.

        Args:
            restored_loss: losses in nats of the teacher with the codes that the students restore; None if they were
                not measured.

        Returns:
            Floors in the unit of the costs, and in nats if `restored_loss` is given.
        """
        floor, cost = self._column("floor"), self.stats.cost
        lost_cost = np.zeros((len(self.widths), len(cost)))
        lost_cost[:, self.task.alive] = self._column("lost_share") * cost[self.task.alive]
        summed = lost_cost.sum(1)
        lost_cost *= np.divide(floor, summed, out=np.zeros_like(summed), where=summed > 0)[:, None]
        return Simulation(
            widths=self.widths,
            floor=floor[:, None],
            reached=self._column("reached")[:, None],
            standard_error=self._column("standard_error"),
            lost_cost=lost_cost,
            on_training_text=self._column("on_training_text")[:, None],
            held_out_sequences=float(self.task.heldout_sequences),
            steps=self.steps,
            **({} if restored_loss is None else self._losses_in_nats(restored_loss)),
        )

    def _column(self, field: str) -> np.ndarray:
        """Return a field of every student, [width, ...]."""
        return np.array([getattr(student, field) for student in self.students])

    def _losses_in_nats(self, loss: RestoredLoss) -> dict[str, np.ndarray]:
        """Compute the fields of `Simulation` in nats; losses are extrapolated as `floor` is."""
        measured_twice = loss.all_steps[:, loss.is_measured_twice]
        gain = (loss.half_of_steps - measured_twice).sum(1) / loss.n_tokens[loss.is_measured_twice].sum()
        longer = loss.all_steps.sum(1) / loss.n_tokens.sum()
        floors = np.array([extrapolate_loss(*pair) for pair in zip(longer + gain, longer, strict=True)])
        sampling_error = ratio_standard_error(loss.all_steps, loss.n_tokens)
        errors = np.hypot(sampling_error, EXTRAPOLATION_ERROR * np.maximum(gain, 0.0))
        return {"kl": floors[:, None], "kl_reached": longer[:, None], "kl_error": errors}


def train_bottlenecks(
    stats: FeatureStats,
    widths: Int64[np.ndarray, " width"],
    *,
    steps: int,
    min_count: int = 1,
    batch_size: int = TOKENS_PER_STEP,
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> TrainedBottlenecks:
    """Train bottleneck students of some widths on the kept codes.

    Every student is trained twice, for half of the steps and for all of them, to extrapolate its loss to the end of
    training; see `extrapolate_loss`. Where a CPU has units for bf16 (AMX, AVX512-BF16), gradients of inactive
    features are in bf16; losses are computed in fp32.

    Args:
        stats: measured statistics with codes.
        widths: [width] dimensions, rising.
        steps: steps of the longer training of each width, at least 2.
        min_count: a feature is alive if it fired on at least this many tokens; other features are left out.
        batch_size: tokens per step.
        seed: seed of the weights, of the order of the tokens, and of the choice of the held-out sequences.
        device: torch device.
        progress: called at every hundredth step with the steps done and the total.

    Returns:
        The students and their task. Their floors, `.simulation()`, are the held-out loss relative to the cost of the
        held-out tokens, times the cost of all measured tokens.

    Raises:
        InputError: there are no codes, some codes are negative, there are too few sequences to hold some out, or
            training diverged.

    Example:
        >>> students = train_bottlenecks(stats, np.array([16, 64]), steps=1000)  # doctest: +SKIP
        >>> students.simulation().floor[:, 0]  # doctest: +SKIP
    """
    # Apple's GPUs have no compressed sparse rows.
    device = "cpu" if device.startswith("mps") else device
    task = BottleneckTask.from_stats(stats, stats.alive(min_count), seed, device)
    counter = StepCounter(progress, len(widths) * n_steps_per_width(steps))
    students = task.train(widths.tolist(), steps, batch_size, seed, counter)
    return TrainedBottlenecks(task, stats, widths, steps, students)


def train_if_possible(
    stats: FeatureStats,
    widths: Int64[np.ndarray, " width"],
    *,
    steps: int,
    min_count: int = 1,
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
) -> tuple[TrainedBottlenecks | None, tuple[str, ...]]:
    """Train bottleneck students, or return a warning that says why they cannot be trained.

    No students are trained, without a warning, for 0 steps, for no widths, or without codes.

    Args:
        stats: measured statistics.
        widths: see `train_bottlenecks`.
        steps: see `train_bottlenecks`; 0 trains none.
        min_count: see `train_bottlenecks`.
        seed: see `train_bottlenecks`.
        device: see `train_bottlenecks`.
        progress: see `train_bottlenecks`.

    Returns:
        (the students or None, warnings).
    """
    if not steps or not len(widths) or stats.codes is None:
        return None, ()
    try:
        trained = train_bottlenecks(
            stats, widths, steps=steps, min_count=min_count, seed=seed, device=device, progress=progress
        )
    except InputError as error:
        return None, (f"nothing was simulated: {error}",)
    return trained, ()
