"""Rows of numbers from the logs of other trainers: the Hugging Face Trainer, Weights & Biases, TensorBoard."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.tables import open_table_file
from tl_distill_floor.sources.text_files import open_text, report_read_errors, text_suffix

TRAINER_STATE = "trainer_state.json"
"""File that the Hugging Face Trainer writes into each checkpoint."""
CONFIG = "config.json"
"""File of a model's configuration."""
KINDS = (
    f"a {TRAINER_STATE} of the Hugging Face Trainer, or a .csv or .jsonl file with a column of tokens or steps and one"
    " of losses"
)
"""What can be read, for messages."""
SUMMARY = {"train_loss", "train_runtime"}
"""Fields of the last entry of a Trainer's log, which sums up the training and is no point of it."""
WIDTH_NAMES = ("hidden_size", "n_embd", "d_model")
"""Names of the width in a Hugging Face configuration."""
GENERAL_ADVICE = "the sequence length times the sequences per step of all processes"
"""How many tokens a step has."""

NUMBER_LIKE = re.compile(r"[+-]?\d[\d.,'_\s]*(e[+-]?\d+)?\s*[%a-z]?", re.IGNORECASE)
"""A number as people write it: with separators of thousands, a decimal comma, a percent sign or a letter as unit."""

Row = Mapping[str, float]
"""Numbers of one row by column; empty cells, and cells that are not a number, are left out."""


@dataclass(frozen=True)
class TrainingLog:
    """The rows of a log in the order of the file."""

    file: Path
    """The file."""
    rows: tuple[Row, ...]
    """Its rows."""
    cells: tuple[Mapping[str, Any], ...]
    """All cells of these rows, texts included."""
    tokens_advice: str = GENERAL_ADVICE
    """How to find the tokens per step, for messages."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that hold a number, or a text that looks like one."""
        return tuple(dict.fromkeys([*(name for row in self.rows for name in row), *self.number_like]))

    @cached_property
    def number_like(self) -> dict[str, str]:
        """First text of each column that looks like a number but cannot be read as one, such as "1,200.0"."""
        texts = {
            name: cell
            for cells in reversed(self.cells)
            for name, cell in cells.items()
            if isinstance(cell, str) and _number(cell) is None and NUMBER_LIKE.fullmatch(cell.strip())
        }
        return {name: texts[name] for cells in self.cells for name in cells if name in texts}


def read_training_log(path: Path) -> TrainingLog:
    """Read the log of a training.

    Args:
        path: a `trainer_state.json`, the directory of a Trainer's run or of a checkpoint, or a `.csv`, `.tsv` or
            `.jsonl` file.

    Raises:
        InputError: there is no log, or it cannot be read, or it has no rows.
    """
    file = _log_file(path)
    if text_suffix(file) == ".json":
        log = _read_trainer_state(file)
    elif text_suffix(file) in (".csv", ".tsv", ".jsonl"):
        log = _read_table(file)
    else:
        raise InputError(f"{file} is not a log that can be read; give {KINDS}")
    if not log.columns:
        raise InputError(f"{file} holds no numbers; give {KINDS}")
    return log


def width_next_to(file: Path) -> int | None:
    """Return the width in the `config.json` next to a file, dimensions; None if there is none."""
    try:
        config = json.loads((file.parent / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    widths = [config.get(name) for name in WIDTH_NAMES] if isinstance(config, dict) else []
    return next((width for width in widths if type(width) is int and width > 0), None)


def _log_file(path: Path) -> Path:
    """Return the file of a log: the path itself, or the state of a directory's last checkpoint."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"there is no learning curve at {path}; give {KINDS}")
    if (path / TRAINER_STATE).is_file():
        return path / TRAINER_STATE
    checkpoints = {
        int(match[1]): file
        for file in path.glob(f"checkpoint-*/{TRAINER_STATE}")
        if (match := re.fullmatch(r"checkpoint-(\d{1,12})", file.parent.name))
    }
    if not checkpoints:
        raise InputError(f"{path} holds neither a {TRAINER_STATE} nor students; give {KINDS}")
    return checkpoints[max(checkpoints)]


def _read_trainer_state(file: Path) -> TrainingLog:
    """Read the `log_history` of a Trainer's state."""
    with report_read_errors(file), open_text(file) as stream:
        try:
            state = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON ({error}); give {KINDS}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise InputError(f"{file} has no log_history; give {KINDS}")
    entries = tuple(entry for entry in history if not entry.keys() >= SUMMARY)
    if not entries:
        raise InputError(
            f"the log_history of {file} is empty; train with eval_strategy='steps' or a smaller logging_steps"
        )
    batch = state.get("train_batch_size")
    per_process = f"{batch} sequences" if type(batch) is int else "the batch size"
    advice = f"{per_process} per process × sequence length × processes × gradient_accumulation_steps"
    return TrainingLog(file, tuple(map(_numbers, entries)), entries, advice)


def _read_table(file: Path) -> TrainingLog:
    """Read the rows of a `.csv`, `.tsv` or `.jsonl` file."""
    table = open_table_file(file)
    assert table is not None
    cells = tuple(row for _, row in table.read(()))
    if not cells:
        raise InputError(f"{file} has no rows; give {KINDS}")
    return TrainingLog(file, tuple(map(_numbers, cells)), cells)


def _numbers(row: Mapping[str, Any]) -> Row:
    """Return the cells of a row that are numbers, NaN included."""
    return {name: number for name, cell in row.items() if (number := _number(cell)) is not None}


def _number(cell: Any) -> float | None:
    """Return a cell as a number; None if it is empty or not a number."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
