"""Read rows of `.jsonl`, `.json`, `.csv`, `.parquet` and `.arrow` files, saved datasets and datasets of the Hub."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Any

from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.class_names import columns_of_dataset, columns_of_schema, with_class_names
from tl_distill_floor.sources.text_files import (
    LocatedRow,
    jsonl_rows,
    open_text,
    report_read_errors,
    text_suffix,
)

FILE_KINDS = ".txt, .jsonl, .json or .csv (also .gz), .parquet or .arrow"
"""Files that are read, for messages."""
SAVED_DATASET = ("dataset_info.json", "state.json")
"""Files of a directory that `Dataset.save_to_disk` wrote."""
SAVED_SPLITS = "dataset_dict.json"
"""File of a directory that `DatasetDict.save_to_disk` wrote."""
ROWS_AT_ONCE = 1000
"""Rows of a file that are read together."""
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas"}
"""Names of what can be between the columns of a table."""
TEXT = "text"
"""Column of texts."""
LONGEST_CELL = 2**31 - 1
"""Characters of a cell in a table of text; the library `csv` has a limit of its own, which is lower."""
LONGEST_NAME = 250
"""Characters of a dataset's name, its configuration and split included."""
DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]*){0,2}", re.ASCII)
"""Name of a dataset on the Hub, with a configuration and a split if they are given."""


@dataclass(frozen=True)
class Table:
    """A source of rows, read from the start by every call of `read`."""

    name: str
    fingerprint: str
    """A string that differs if the rows do."""
    read: Callable[[Sequence[str]], Iterator[LocatedRow]]
    """Iterate over (location, row), given the columns of interest. Other columns may be left out where one of these
    exists. Raises an InputError where the rows cannot be read."""


def open_table_file(path: Path) -> Table | None:
    """Open a file of rows; None if its suffix is not that of a table."""
    readers = {
        ".jsonl": jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".arrow": _arrow_rows
    }  # fmt: skip
    suffix = text_suffix(path)
    if suffix == ".parquet":
        return Table(path.name, file_fingerprint(path), partial(_parquet_rows, path))
    reader = readers.get(suffix)
    return None if reader is None else Table(path.name, file_fingerprint(path), lambda _columns: reader(path))


def file_fingerprint(path: Path) -> str:
    """Return a string that differs if a file was changed."""
    stat = path.stat()
    return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"


def is_saved_dataset(path: Path) -> bool:
    """Return whether a path is a directory that `save_to_disk` wrote, of one dataset or of several splits."""
    return all((path / name).is_file() for name in SAVED_DATASET) or (path / SAVED_SPLITS).is_file()


def split_of_path(text: str | Path) -> tuple[Path, str | None]:
    """Split "directory:split" into its parts; a path that exists has no split."""
    path = Path(text)
    directory, separator, split = str(text).rpartition(":")
    if separator and split and not path.exists() and is_saved_dataset(Path(directory)):
        return Path(directory), split
    return path, None


def open_saved_dataset(path: Path, split: str | None = None) -> Table:
    """Open a directory that `save_to_disk` wrote.

    Args:
        path: the directory.
        split: name of the split; needed where the directory has several.

    Raises:
        InputError: the directory is damaged, or it has other splits.
    """
    directory = path
    if (path / SAVED_SPLITS).is_file():
        with report_damaged_dataset(path):
            splits = json.loads((path / SAVED_SPLITS).read_bytes())["splits"]
            if not isinstance(splits, list):
                raise TypeError("its splits are not a list")
            if not all(isinstance(name, str) and Path(name).name == name for name in splits):
                raise ValueError("it names splits outside the directory")
        name = choose_split(str(path), splits, split, quote(f"{path}:SPLIT"))
        directory = path / name
    elif split is not None:
        raise InputError(f"{path} holds one dataset without splits, not {split!r}; leave out ':{split}'")
    dataset = load_saved_dataset(directory)

    def read(columns: Sequence[str]) -> Iterator[LocatedRow]:
        with report_damaged_dataset(directory):
            batches = select_columns(dataset, columns).with_format("arrow").iter(ROWS_AT_ONCE)
            yield from _located(directory, batches, columns_of_dataset(dataset))

    return Table(directory.name if split is None else f"{path.name}:{split}", str(dataset._fingerprint), read)


def load_saved_dataset(path: Path) -> Any:
    """Load one dataset that `save_to_disk` wrote; nothing outside its directory is read.

    Raises:
        InputError: the directory is damaged.
    """
    from datasets import load_from_disk

    with report_damaged_dataset(path):
        state = json.loads((path / "state.json").read_bytes())
        if any(Path(entry["filename"]).name != entry["filename"] for entry in state["_data_files"]):
            raise ValueError("it names files outside the directory")
        return load_from_disk(str(path)).with_format(None)


@contextmanager
def report_damaged_dataset(path: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged directory into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever their reader raises, plain Exception included
        reason = reason_of(error)
        raise InputError(
            f"{path} is a damaged or incomplete directory of a saved dataset ({reason}); save it again"
        ) from error


def choose_split(name: str, splits: Sequence[str], split: str | None, advice: str) -> str:
    """Return the only split of a dataset, or the one that was asked for.

    Args:
        name: the dataset, for the message.
        splits: its splits.
        split: the split that was asked for.
        advice: what to give instead.

    Raises:
        InputError: there are several splits and none was asked for, or there is no such split.
    """
    if split in splits:
        return str(split)
    if split is None and len(splits) == 1:
        return splits[0]
    has_no = f"no split {split!r}, but" if split is not None else "several splits:" if splits else "no splits:"
    raise InputError(f"{name} has {has_no} {', '.join(splits) or 'none'}; give one of them as {advice}")


def select_columns(dataset: Any, columns: Sequence[str]) -> Any:
    """Return a dataset with only those of the columns that it has, so that no image or sound is decoded."""
    names = dataset.column_names
    wanted = [name for name in columns if name in (names or ())]
    return dataset.select_columns(wanted) if wanted else dataset


def is_dataset_name(name: str) -> bool:
    """Return whether a string can be the name of a Hugging Face dataset: `[owner/]name[:config[:split]]`."""
    return len(name) <= LONGEST_NAME and DATASET_NAME.fullmatch(name) is not None


def dataset_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hugging Face dataset, streamed, without running its code.

    Args:
        name: `owner/name`, `owner/name:config` or `owner/name:config:split`; the split is train if none is named.

    Raises:
        InputError: the dataset cannot be read.
    """
    from datasets import load_dataset

    repository, config, split = (*name.split(":"), "", "")[:3]
    try:
        dataset = load_dataset(repository, config or None, split=split or "train", streaming=True)
        yield from with_class_names(dataset, columns_of_dataset(dataset))
    except Exception as error:  # a remote dataset can fail in many ways
        reason = reason_of(error)
        raise InputError(
            f"{name} is neither a text file nor a Hugging Face dataset that can be read ({reason});"
            " check the name and the network"
        ) from error


def _json_rows(path: Path) -> Iterator[LocatedRow]:
    """Yield the rows of a `.json` file: a list of objects, or one object a line."""
    with report_read_errors(path), open_text(path) as file:
        first = file.read(1)
        while first.isspace():
            first = file.read(1)
        content = f"[{file.read()}" if first == "[" else None
    if content is None:
        yield from jsonl_rows(path)
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{path} is not JSON ({reason}); give a list of objects, or one object a line") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number} is {type(row).__name__}, not an object; give a list of objects")
        yield f"{path}, row {number}", row


def _csv_rows(path: Path) -> Iterator[LocatedRow]:
    """Yield the rows of a `.csv` or `.tsv` file as strings; an empty cell is None, except for an empty text."""
    csv.field_size_limit(LONGEST_CELL)
    separator = "\t" if text_suffix(path) == ".tsv" else ","
    with report_read_errors(path), open_text(path, newline="") as file:  # the ends of lines in a cell are kept
        rows = enumerate(_csv_cells(file, separator, path), start=1)
        _, header = next(rows, (0, None))
        if header is None:
            raise InputError(f"{path} is not a readable {text_suffix(path)} file (it is empty); give another file")
        _check_separator(header, separator, path)
        names = [f"{name}.{n}" if (n := header[:i].count(name)) else name for i, name in enumerate(header)]
        for number, cells in rows:
            if any(cells[len(header) :]):
                raise InputError(
                    f"{path} has rows with more fields than its header; put a text with the separator in it in double"
                    " quotes"
                )
            row = dict(zip_longest(names, cells[: len(names)]))
            yield f"{path}, row {number}", {name: cell if cell or name == TEXT else None for name, cell in row.items()}


def _csv_cells(lines: Iterable[str], separator: str, path: Path) -> Iterator[list[str]]:
    """Yield the cells of each row that is not empty.

    Raises:
        InputError: text follows the quote that ends a cell, or none ends it. Rows could otherwise be read as one text.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise InputError(
            f"{path} is not a readable {text_suffix(path)} file ({error}, up to line {reader.line_num}); put a text"
            " that begins with a double quote in double quotes, and double those in it"
        ) from error


def _check_separator(columns: Sequence[str], separator: str, path: Path) -> None:
    """Raise an InputError if all columns are read as one, because another separator is between them."""
    other = next((sign for sign in SEPARATORS if sign != separator and sign in columns[0]), None)
    if len(columns) == 1 and other is not None:
        raise InputError(
            f"{path} has {SEPARATORS[other]} between its columns; save it with commas as .csv, or with tabs as .tsv"
        )


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[LocatedRow]:
    import pyarrow.parquet as pq

    with report_read_errors(path), _report_bad_table(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = [name for name in columns if name in schema.names]
        batches = file.iter_batches(ROWS_AT_ONCE, columns=wanted or None)
        yield from _located(path, batches, columns_of_schema(schema.metadata))


def _arrow_rows(path: Path) -> Iterator[LocatedRow]:
    """Yield the rows of an Arrow file in either of its two formats, the stream's and the file's."""
    import pyarrow as pa

    with report_read_errors(path), _report_bad_table(path), path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from _located(path, batches, columns_of_schema(reader.schema.metadata))


def _located(path: Path, batches: Iterator[Any], columns: Mapping[str, object]) -> Iterator[LocatedRow]:
    """Yield the rows of Arrow batches, each of which is checked first: damaged offsets would be read as they are."""
    number = 0
    for batch in batches:
        batch.validate(full=True)
        for row in with_class_names(batch.to_pylist(), columns):
            number += 1
            yield f"{path}, row {number}", row


@contextmanager
def _report_bad_table(path: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, UnicodeDecodeError, OSError):
        raise
    except Exception as error:  # Arrow has errors of its own, which are not documented for each damage
        reason = reason_of(error)
        raise InputError(f"{path} is not a readable {text_suffix(path)} file ({reason}); give another file") from error
