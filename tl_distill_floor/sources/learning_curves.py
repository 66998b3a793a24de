"""`load_learning_curve`: the tokens and the losses of a training, from the log of its trainer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from tl_distill_floor.annotations import LossUnit
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.sources.curve_columns import (
    check_numbers,
    check_one_training,
    check_single_tokens,
    columns_of_run,
    is_tensorboard,
    listed,
    loss_column,
    may_count_others,
    rate_column,
    step_column,
    token_column,
    tokens_by_step,
)
from tl_distill_floor.sources.loss_names import words
from tl_distill_floor.sources.training_logs import (
    CONFIG,
    TRAINER_STATE,
    Row,
    TrainingLog,
    read_training_log,
    width_next_to,
)
from tl_distill_floor.theory.capacity import Number

SAME_LOSS = 1e-3
"""Losses at the same tokens are one evaluation that was done twice if they differ by at most this share."""

FEWEST_TOKENS = 1000
"""A training on fewer tokens gives a warning, since they may be millions."""


@dataclass(frozen=True)
class LearningCurve:
    """The tokens and the losses of one training; any sequences of numbers, such as arrays, become tuples.

    Example:
        >>> curve = LearningCurve(tokens=(1e6, 2e6, 4e6), losses=(0.9, 0.7, 0.6), width=64)
        >>> curve.losses[-1]
        0.6
    """

    tokens: tuple[float, ...]
    """Tokens trained on at each point, rising."""
    losses: tuple[float, ...]
    """Loss at each point, nats per token."""
    name: str = "the curve"
    """Name of the training, for messages."""
    column: str = ""
    """Name of the loss in the file; empty if it has none."""
    width: int | None = None
    """Width of the student, dimensions; None if it is not known."""
    width_file: str = ""
    """File that the width was read from if it may be that of another model; empty if the width is certain."""
    learning_rates: tuple[float, ...] | None = None
    """Learning rate at each point; None if it is not known."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind about the losses and the tokens."""

    def __post_init__(self) -> None:
        """Check that the points are those of one training.

        Raises:
            InputError: there is no point, a loss is negative or not finite, the tokens do not rise, or there is not one
                learning rate for each point.
        """
        for name in ("tokens", "losses", "learning_rates"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_floats(name, getattr(self, name)))
        if not self.losses or len(self.tokens) != len(self.losses):
            raise InputError(f"{self.name} needs one loss for each number of tokens, and at least one point")
        self._check_rates()
        for tokens, loss in zip(self.tokens, self.losses, strict=True):
            if not math.isfinite(tokens):
                raise InputError(f"{self.name} has a loss after {tokens} tokens; remove the point")
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss of {self.name} is {loss} after {tokens:,.0f} tokens, so the training diverged there;"
                    " remove the points from there on, or train again with a lower learning rate"
                )
            if loss < 0:
                raise InputError(
                    f"the loss of {self.name} is {loss:.4g} after {tokens:,.0f} tokens, but KL(teacher ‖ student) is"
                    " never negative; log it over the full vocabulary, without terms of another kind"
                )
        if not self.tokens[0] > 0:
            raise InputError(
                f"the tokens of {self.name} start at {self.tokens[0]:,.0f}; remove the points before training"
            )
        for point, (before, after) in enumerate(pairwise(self.tokens), start=1):
            if not after >= before:
                raise InputError(
                    f"the tokens of {self.name} fall from {before:,.0f} to {after:,.0f} after point {point}, so the"
                    " training was restarted there; keep the points of one training, in their order"
                )
            if after == before:
                raise InputError(f"{self.name} has two losses at {after:,.0f} tokens; keep one of them")

    def _check_rates(self) -> None:
        """Raise an InputError unless there is one learning rate for each loss, or none at all."""
        rates = self.learning_rates
        if rates is None:
            return
        if len(rates) != len(self.losses):
            raise InputError(f"{self.name} has {len(rates)} learning rates and {len(self.losses)} losses; give as many")
        wrong = next((rate for rate in rates if not (math.isfinite(rate) and rate >= 0)), None)
        if wrong is not None:
            raise InputError(f"a learning rate of {self.name} is {wrong}; give numbers from 0, or no learning rates")


def load_learning_curve(
    path: str | Path,
    *,
    loss: str | None = None,
    tokens: str | None = None,
    tokens_per_step: Number | None = None,
    unit: LossUnit = "nats",
) -> LearningCurve:
    """Load the learning curve of a training from the log of its trainer.

    Args:
        path: a `trainer_state.json` of the Hugging Face Trainer, the directory of its run or of a checkpoint, or a CSV
            or JSON Lines file with one row per point, such as Weights & Biases and TensorBoard export.
        loss: column of the loss. If None, it is the only loss on held-out text; without one, the only loss. Losses
            that are another one by their names, such as `ce_loss`, are then left out.
        tokens: column of the tokens trained on. If None, it is the only column of such a name.
        tokens_per_step: tokens per step, for a file that has no tokens: the sequence length times the sequences per
            step of all processes.
        unit: unit of the loss, per token.

    Returns:
        The curve, in nats per token.

    Raises:
        InputError: the file cannot be read, several columns can be the loss or the tokens, or none, or the points are
            not those of one training, also where a column such as `run` shows that.

    Example:
        >>> curve = load_learning_curve("outputs/student", loss="eval_kl")  # doctest: +SKIP
        >>> curve.tokens[-1], curve.losses[-1]  # doctest: +SKIP
    """
    check_choice("unit", unit, LossUnit)
    if not isinstance(path, str | Path):
        raise InputError(
            f"a learning curve is read from a file, got {type(path).__name__}; give a path, or"
            " LearningCurve(tokens, losses) for numbers in memory"
        )
    if tokens_per_step is not None and not 0 < tokens_per_step < math.inf:
        raise InputError(f"the tokens per step must be above 0, got {tokens_per_step}; set --tokens-per-step")
    log = read_training_log(Path(path))
    column = loss_column(log, loss, unit)
    check_one_training(log, column)
    log = columns_of_run(log, column, tokens)
    check_numbers(log, column)
    rows = _with_loss(log, column)
    positions = _Positions.of(log, tokens, tokens_per_step, rows)
    trained = [(count, row) for row in rows if (count := positions.tokens(row)) != 0]  # one can be before training
    points = _without_repeats(trained, column)
    width = width_next_to(log.file)
    scale = math.log(2) if unit == "bits" else 1.0
    return LearningCurve(
        tokens=tuple(position for position, _ in points),
        losses=tuple(scale * row[column] for _, row in points),
        name=str(log.file),
        column=column,
        width=width,
        width_file="" if width is None or log.file.name == TRAINER_STATE else str(log.file.with_name(CONFIG)),
        learning_rates=_learning_rates(log, positions, [position for position, _ in points]),
        warnings=(*positions.warnings, *_loss_warnings(log, column)),
    )


@dataclass(frozen=True)
class _Positions:
    """How the tokens trained on are read from a row."""

    log: TrainingLog
    token_column: str | None
    """Column of the tokens; None if they are counted in steps."""
    step_column: str | None
    """Column of the steps; None if there is none."""
    tokens_per_step: Number | None
    """Tokens per step, if there is no column of tokens."""
    steps: np.ndarray
    """Steps [row] at which the tokens are known."""
    tokens_at_steps: np.ndarray
    """Tokens [row] at these steps."""

    @classmethod
    def of(
        cls, log: TrainingLog, tokens: str | None, tokens_per_step: Number | None, loss_rows: Sequence[Row]
    ) -> "_Positions":
        """Choose the columns of the log of one run.

        Raises:
            InputError: the tokens are not known, or can be read in several ways.
        """
        counted, step = token_column(log, tokens, loss_rows), step_column(log)
        check_numbers(log, counted, step)
        check_single_tokens(log, counted, step)
        known = (np.array([]), np.array([])) if counted is None else tokens_by_step(log, counted, step)
        if counted is not None and not len(known[0]) and _counts_only_steps(loss_rows, counted, step):
            if tokens_per_step is None:
                raise InputError(
                    f"{log.file} has no row with both {counted!r} and {step!r}, so the tokens at a loss are not known;"
                    f" set --tokens-per-step to {log.tokens_advice}"
                )
            counted = None
        if counted is not None and tokens_per_step is not None:
            raise InputError(f"{log.file} counts tokens in {counted!r}; leave out --tokens-per-step")
        if counted is None and step is None:
            raise InputError(
                f"no column of {log.file} counts tokens or steps; name one with --tokens COLUMN: {listed(log.columns)}"
            )
        if counted is None and tokens_per_step is None:
            raise InputError(
                f"{log.file} counts steps ({step!r}) and no tokens; set --tokens-per-step to {log.tokens_advice}"
            )
        return cls(log, counted, step, tokens_per_step, *known)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to keep in mind about the tokens."""
        if self.token_column is not None and may_count_others(self.token_column):
            return (
                f"{self.token_column!r} is taken as the tokens trained on; if it counts something else, as its name"
                " says, so do the tokens that are left",
            )
        counts = [row[name] for row in self.log.rows for name in row if name == self.token_column]
        if counts and max(counts) < FEWEST_TOKENS:
            return (
                f"{self.token_column!r} ends at {max(counts):g}: if these are thousands or millions, multiply them in"
                " the file",
            )
        if self.token_column is None and self.step_column in ("Step", "_step") and not is_tensorboard(self.log):
            return (
                f"{self.step_column!r} of a Weights & Biases export counts calls of wandb.log: check that one call is"
                " one step",
            )
        return ()

    def are_known(self, row: Row) -> bool:
        """Return whether the tokens at a row are known."""
        by_step = self.step_column in row and (self.tokens_per_step is not None or len(self.steps) > 0)
        return by_step or self.token_column in row

    def tokens(self, row: Row) -> float:
        """Return the tokens trained on at a row; where it has none, they are interpolated between other rows.

        Raises:
            InputError: they are not known.
        """
        if not self.are_known(row):
            raise InputError(
                f"{self.log.file} has a loss without {self.token_column or self.step_column!r} in the same row; add it"
            )
        if self.token_column is not None and self.token_column in row:
            return row[self.token_column]
        assert self.step_column is not None
        step = row[self.step_column]
        if self.tokens_per_step is not None:
            return step * float(self.tokens_per_step)
        if step > self.steps[-1]:
            return float(self.tokens_at_steps[-1] * step / self.steps[-1])
        return float(np.interp(step, [0.0, *self.steps], [0.0, *self.tokens_at_steps]))


def _as_floats(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """Return numbers in memory as floats; raise an InputError if they are none."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} of a learning curve must be numbers ({error}); give (0.9, 0.7, 0.6)") from error


def _with_loss(log: TrainingLog, column: str) -> list[Row]:
    """Return the rows with a loss.

    NaN stands for a cell that is empty, as pandas can write it. The training diverged if NaN is at the end, in more
    rows one after the other than earlier in the log.
    """
    rows = [row for row in log.rows if column in row]
    blocks = [(is_nan, list(block)) for is_nan, block in groupby(rows, key=lambda row: math.isnan(row[column]))]
    earlier = max((len(block) for is_nan, block in blocks[:-1] if is_nan), default=0)
    return [row for i, (is_nan, block) in enumerate(blocks) for row in block
            if not is_nan or (i == len(blocks) - 1 and len(block) > earlier)]  # fmt: skip


def _counts_only_steps(rows: Sequence[Row], tokens: str, step: str | None) -> bool:
    """Return whether no row has the tokens, and all have the step."""
    return all(tokens not in row and step in row for row in rows)


def _without_repeats(points: Sequence[tuple[float, Row]], column: str) -> list[tuple[float, Row]]:
    """Return the points without evaluations that were done twice, as the Trainer does at the end of a training."""
    kept = list(points[:1])
    for (before, previous), (tokens, row) in pairwise(points):
        if tokens != before or abs(row[column] - previous[column]) > SAME_LOSS * abs(previous[column]):
            kept.append((tokens, row))
    return kept


def _learning_rates(log: TrainingLog, positions: _Positions, tokens: Sequence[float]) -> tuple[float, ...] | None:
    """Return the learning rate at some numbers of tokens, interpolated; None if the log has none of them."""
    column = rate_column(log)
    if column is None:
        return None
    rows = [row for row in log.rows if column in row and positions.are_known(row)]
    if not rows:
        return None
    known = sorted({positions.tokens(row): row[column] for row in rows}.items())
    rates = np.interp(tokens, [position for position, _ in known], [rate for _, rate in known])
    return tuple(rates.tolist())


def _loss_warnings(log: TrainingLog, column: str) -> tuple[str, ...]:
    """Return what to keep in mind about a loss of this name."""
    is_trained_on = column == "loss" and log.file.suffix == ".json"  # the Trainer's name of its training loss
    if not is_trained_on and not words(column) & {"train", "training"}:
        return ()
    return (f"{column!r} is a loss on training text, which falls below that on held-out text if text is repeated",)
