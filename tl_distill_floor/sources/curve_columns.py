"""Choose the columns of a training's log that hold the loss, the tokens, the steps and the learning rate."""

import dataclasses
import math
import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from tl_distill_floor.annotations import LossUnit
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.loss_names import (
    LOSS_WORDS,
    RUN_SEPARATOR,
    check_unit_of_name,
    other_loss,
    own_name,
    words,
)
from tl_distill_floor.sources.training_logs import Row, TrainingLog

TENSORBOARD = ("Wall time", "Step", "Value")
"""Columns of a CSV file that TensorBoard exported."""
TOKEN_NAMES = {
    "tokens", "n_tokens", "num_tokens", "tokens_seen", "num_tokens_seen", "num_input_tokens_seen", "total_tokens",
    "training_tokens", "tokens_trained", "consumed_tokens",
}  # fmt: skip
"""Names of columns that count the tokens trained on, after `train/`, `eval_` and the like."""
STEP_NAMES = ("global_step", "step", "steps", "current_steps", "iteration", "iter", "_step")
"""Names of columns that count steps; the first that exists is taken."""
HELDOUT_WORDS = {"eval", "evaluation", "val", "valid", "validation", "test", "heldout", "held", "dev"}
"""A loss whose name has one of these words was measured on held-out text."""
RANGE_SUFFIXES = ("__MIN", "__MAX")
"""Ends of the names of columns in which Weights & Biases exports the range of a smoothed value."""
RATE_NAMES = ("learning_rate", "lr")
"""Names of columns of the learning rate."""
RATE = r"(^|[^a-z])lr([^a-z]|$)|learning.?rate"
"""Names of columns that may be a learning rate, such as that of one group of weights."""
RATE_SETTINGS = {
    "base", "initial", "init", "max", "min", "peak", "decay", "mult", "scale", "ratio", "warmup", "momentum", "step",
    "steps", "epoch",
}  # fmt: skip
"""A column whose name has one of these words is another setting or number of the optimizer or its schedule."""
SAME_RATE = 1e-3
"""Learning rates have one schedule if they differ by at most this share of the highest, after scaling."""
TOKEN_UNITS = {
    "k", "thousand", "thousands", "m", "mm", "million", "millions", "b", "bn", "billion", "billions", "g", "t",
}  # fmt: skip
"""A column of tokens whose name has one of these words does not count single tokens."""
PART_WORDS = {"per", "rank", "local", "device", "gpu", "worker", "process", "replica", "shard", "node"}
"""A column of tokens whose name has one of these words counts those of one device, or of one step or second."""
OTHER_COUNTS = {
    "step", "steps", "iter", "iters", "iteration", "iterations", "update", "updates", "batch", "batches", "epoch",
    "epochs", "sample", "samples", "example", "examples", "sequence", "sequences", "time", "seconds", "hours",
}  # fmt: skip
"""A column whose name has such a word, and not "tokens", may count something else than tokens."""
TRAINING_WORDS = {
    "run", "name", "id", "experiment", "trial", "job", "model", "student", "teacher", "width", "seed", "config",
    "dataset", "split",
}  # fmt: skip
"""A column whose name has only such words, after groups, tells the rows of several trainings apart."""
SAME_TOKENS = 0.01
"""Columns that are never in the same row count the same tokens if they differ by at most this share at each step."""
N_LISTED = 12
"""Columns that a message lists at most."""


def loss_column(log: TrainingLog, loss: str | None, unit: LossUnit) -> str:
    """Return the column of the loss.

    Args:
        log: the log.
        loss: its name; None for the only loss on held-out text, or the only loss.
        unit: the unit that the loss is taken to be in.

    Raises:
        InputError: there is none, or several can be meant, or its name says that it is something else.
    """
    column = _only_loss(log, unit) if loss is None else _column_named(log, loss, "--loss")
    check_unit_of_name(column, unit)
    return column


def _only_loss(log: TrainingLog, unit: LossUnit) -> str:
    """Return the only loss on held-out text; without one, the only loss."""
    if is_tensorboard(log):
        return TENSORBOARD[-1]
    losses = [name for name in log.columns if words(name) & LOSS_WORDS and not name.endswith(RANGE_SUFFIXES)]
    if not losses:
        raise InputError(f"no column of {log.file} is called a loss; name it with --loss: {listed(log.columns)}")
    possible = [name for name in losses if other_loss(name) is None]
    if not possible:
        check_unit_of_name(losses[0], unit)
        raise InputError(
            f"{losses[0]!r} of {log.file} is {other_loss(losses[0])} by its name; add KL(teacher ‖ student) per token,"
            f" or name it with --loss: {listed(log.columns)}"
        )
    chosen = [name for name in possible if words(name) & HELDOUT_WORDS] or possible
    if len(chosen) > 1:
        raise InputError(f"{log.file} has several losses; name KL(teacher ‖ student) with --loss: {listed(chosen)}")
    return chosen[0]


def check_one_training(log: TrainingLog, loss: str) -> None:
    """Raise an InputError if a column such as `run` shows that the losses are those of several trainings.

    A column that has another value in each row, such as the number of the row, tells no trainings apart.
    """
    rows = [cells for cells, row in zip(log.cells, log.rows, strict=True) if not math.isnan(row.get(loss, math.nan))]
    names = dict.fromkeys(name for cells in rows for name in cells)
    for name in (name for name in names if name != loss and _names_training(name)):
        values = [str(cells[name]) for cells in rows if cells.get(name) not in (None, "")]
        distinct = list(dict.fromkeys(values))
        if 1 < len(distinct) < len(values):
            raise InputError(
                f"{log.file} has the losses of several trainings, as {name!r} is {listed(distinct)}; keep the rows of"
                f" one of them in a file, or leave out {name!r} if they are parts of one training"
            )


def columns_of_run(log: TrainingLog, loss: str, tokens: str | None) -> TrainingLog:
    """Return a log with only the columns of the run that a loss belongs to, and those without the name of a run.

    Numbers that are not finite are left out, except losses: NaN stands for an empty cell.

    Args:
        log: the log, which may hold several runs, as an export of Weights & Biases does.
        loss: column of the loss.
        tokens: column of the tokens that the user named, if any.

    Raises:
        InputError: the tokens belong to another run.
    """
    names = [name for name in log.columns if _run_of(name) in ("", _run_of(loss))]
    if tokens in log.columns and tokens not in names:
        raise InputError(
            f"{tokens!r} is of another run than the loss {loss!r}; set --tokens COLUMN to one of the same run"
        )
    rows = tuple(
        {name: row[name] for name in names if name in row and (name == loss or math.isfinite(row[name]))}
        for row in log.rows
    )
    cells = tuple({name: cells[name] for name in names if name in cells} for cells in log.cells)
    return dataclasses.replace(log, rows=rows, cells=cells)


def token_column(log: TrainingLog, tokens: str | None, loss_rows: Sequence[Row]) -> str | None:
    """Return the column of the tokens, None if there is none.

    Args:
        log: the log of one run.
        tokens: its name; None for the one that most rows with a loss have, if all columns of tokens agree.
        loss_rows: the rows with a loss.

    Raises:
        InputError: there is no column of that name, or several columns count tokens and do not agree.
    """
    if tokens is not None:
        return _column_named(log, tokens, "--tokens COLUMN")
    names = [name for name in log.columns if _last_part(name) in TOKEN_NAMES]
    if not all(_agree(log, first, second) for first, second in combinations(names, 2)):
        raise InputError(f"{log.file} counts tokens in several columns; name one with --tokens COLUMN: {listed(names)}")
    return max(names, key=lambda name: (_count(loss_rows, name), _count(log.rows, name)), default=None)


def tokens_by_step(log: TrainingLog, tokens: str, step: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps above 0 at which the tokens are known, rising, and the tokens at them."""
    known = {row[step]: row[tokens] for row in log.rows if step is not None and step in row and tokens in row}
    steps = sorted(at for at in known if at > 0)
    return np.array(steps), np.array([known[at] for at in steps])


def may_count_others(tokens: str) -> bool:
    """Return whether a column that the user named as that of the tokens counts something else by its name.

    Example:
        >>> may_count_others("consumed_samples"), may_count_others("step_tokens")
        (True, False)
    """
    return bool(words(tokens) & OTHER_COUNTS) and not words(tokens) & {"token", "tokens"}


def step_column(log: TrainingLog) -> str | None:
    """Return the column of the steps, None if there is none."""
    return next((name for wanted in STEP_NAMES for name in log.columns if _last_part(name) == wanted), None)


def check_single_tokens(log: TrainingLog, tokens: str | None, step: str | None) -> None:
    """Raise an InputError if a column counts tokens in thousands, millions or the like, or a part of the tokens.

    Args:
        log: the log of one run.
        tokens: column of the tokens; None if there is none.
        step: column of the steps, which have at least one token each; None if there is none.
    """
    if tokens is None:
        return
    if words(tokens) & PART_WORDS:
        raise InputError(
            f"{tokens!r} of {log.file} counts the tokens of one device, step or second by its name; write how many"
            " tokens all devices have trained on so far into a column tokens"
        )
    rows = [row for row in log.rows if tokens in row]
    too_few = next((row[tokens] for row in rows if 0 < row[tokens] < max(1, row.get(step or "", 1))), None)
    if too_few is not None or words(_last_part(tokens)) & TOKEN_UNITS:
        example = max((row[tokens] for row in rows), default=0.0) if too_few is None else too_few
        raise InputError(
            f"{tokens!r} of {log.file} does not count single tokens, by its name or its values (such as {example:g});"
            " multiply it in the file and name it tokens"
        )


def rate_column(log: TrainingLog) -> str | None:
    """Return the column of the learning rate, None if there is none.

    Of several, as of groups of weights, it is the one with the highest rate.

    Raises:
        InputError: there are several, and they have different schedules.
    """
    exact = [name for name in log.columns if _last_part(name) in RATE_NAMES]
    names = exact or [name for name in log.columns if _may_be_rate(name)]
    check_numbers(log, *names)
    for first, second in combinations(names, 2):
        if not _have_one_schedule(log, first, second):
            raise InputError(
                f"{log.file} has learning rates of different schedules, {first} and {second}; keep one of them"
            )
    return max(names, key=lambda name: max((row[name] for row in log.rows if name in row), default=0.0), default=None)


def check_numbers(log: TrainingLog, *columns: str | None) -> None:
    """Raise an InputError if a column has numbers that cannot be read, and would be left out.

    Args:
        log: the log.
        columns: columns that are used; None for one that is not.
    """
    for name in columns:
        if name is not None and name in log.number_like:
            raise InputError(
                f"{log.file} has {log.number_like[name]!r} in column {name!r}; write numbers without separators of"
                " thousands, units and decimal commas, such as 1200.5"
            )


def is_tensorboard(log: TrainingLog) -> bool:
    """Return whether a log was exported by TensorBoard."""
    return set(log.columns) == set(TENSORBOARD)


def listed(names: Sequence[str]) -> str:
    """Return names for a message."""
    return ", ".join(names[:N_LISTED]) + (", …" if len(names) > N_LISTED else "")


def _column_named(log: TrainingLog, name: str, option: str) -> str:
    """Return the column of a name; the name of the run, which Weights & Biases puts before it, can be left out.

    Raises:
        InputError: there is no such column, or it belongs to several runs.
    """
    matches = [column for column in log.columns if column.endswith(f"{RUN_SEPARATOR}{name}")]
    matches = [name] if name in log.columns else matches
    if not matches:
        raise InputError(f"{log.file} has no column {name!r} of numbers; name one with {option}: {listed(log.columns)}")
    if len(matches) > 1:
        raise InputError(f"{log.file} has {name!r} of several runs; name one with {option}: {listed(matches)}")
    return matches[0]


def _agree(log: TrainingLog, first: str, second: str) -> bool:
    """Return whether two columns count the same tokens: in the rows that have both, or else at the same steps."""
    both = [row for row in log.rows if first in row and second in row]
    if both:
        return all(row[first] == row[second] for row in both)
    step = step_column(log)
    steps, counts = zip(*(tokens_by_step(log, name, step) for name in (first, second)), strict=True)
    if not all(map(len, steps)):
        return False
    in_both = np.union1d(*steps)
    in_both = in_both[(in_both >= max(s[0] for s in steps)) & (in_both <= min(s[-1] for s in steps))]
    one, other = (np.interp(in_both, known, count) for known, count in zip(steps, counts, strict=True))
    return len(in_both) > 0 and np.allclose(one, other, rtol=SAME_TOKENS, atol=0)


def _may_be_rate(name: str) -> bool:
    """Return whether a column may be a learning rate by its name, which can be that of a group: lr/group0."""
    return bool(re.search(RATE, own_name(name))) and not words(name) & RATE_SETTINGS


def _have_one_schedule(log: TrainingLog, first: str, second: str) -> bool:
    """Return whether two learning rates are multiples of each other in the rows that have both, if there are any."""
    both = [(row[first], row[second]) for row in log.rows if first in row and second in row]
    if not both:  # such as those of the lines of training and evaluation
        return True
    one, other = (np.array(rates) for rates in zip(*both, strict=True))
    scale = float(one.max() * other.max())
    return bool((np.abs(one * other.max() - other * one.max()) <= SAME_RATE * scale).all())


def _count(rows: Sequence[Row], name: str) -> int:
    """Return how many rows have a column."""
    return sum(name in row for row in rows)


def _names_training(name: str) -> bool:
    """Return whether the values of a column name the training that a row is of."""
    return bool(name_words := words(_last_part(name))) and name_words <= TRAINING_WORDS


def _run_of(name: str) -> str:
    """Return the name of the run that a column belongs to; empty if it has none.

    Example:
        >>> _run_of("run 3 - train/global_step"), _run_of("Step")
        ('run 3', '')
    """
    return name.rpartition(RUN_SEPARATOR)[0]


def _last_part(name: str) -> str:
    """Return the name of a column without the run, the group and the prefix of an evaluation.

    Example:
        >>> _last_part("run 3 - train/global_step"), _last_part("eval_num_tokens")
        ('global_step', 'num_tokens')
    """
    return re.split(rf"{RUN_SEPARATOR}|/", name.lower())[-1].removeprefix("eval_").removeprefix("train_")
