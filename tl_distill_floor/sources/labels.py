"""Load labelled text for probes from files of rows, datasets and rows in memory.

Each row is an object. Either the text has a label, `{"text": "...", "label": "..."}`, or its words have,
`{"words": ["...", ...], "label": ["...", ...]}`, with one label per word: null, or -100 as in transformers, for a word
without a label. A row of words may hold `text` too, which keeps the original spaces between the words and holds
no other words. Labels may have other field names.

The classes of a dataset (`ClassLabel` of `datasets`) are read by their names, and -1 there is no label.

Labels that differ only in the spaces around them, or in how accents are encoded, are one class; an empty label is none.

`document`, or else `id`, names the document that a row is a part of. All rows of a document are put on the same side of
a train-test split. A row with neither field is a document of its own.
"""

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from tl_distill_floor.annotations import LabelLevel, LabelsLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.items import open_items
from tl_distill_floor.sources.tables import (
    Table,
    dataset_rows,
    is_dataset_name,
    is_saved_dataset,
    open_saved_dataset,
    open_table_file,
    split_of_path,
)
from tl_distill_floor.sources.text_files import LocatedRow, check_text, jsonl_rows

EMBEDDED = "embedded labelled text"
EMBEDDED_LABELS = ("author", "word_class", "next_word_class")
"""Name of the labelled text that comes with the package, and its labels."""
MAX_ROWS = 100_000
"""Rows that are read at most."""
LABEL_FILES = "a .jsonl, .json or .csv file (also .gz), a .parquet or an .arrow file"
LABEL_SUFFIXES = (".jsonl", ".gz", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""Endings by which a string is taken for a path."""
IGNORED_LABEL = -100
"""Label of what has no label, in data that was prepared for transformers."""
ROW_EXAMPLE = "{'text': '...', 'label': '...'}"
FIELDS_WITHOUT_LABELS = ("text", "words", "document", "id")
"""Fields of a row that hold no label."""
NO_SPACE_BEFORE = (*".,;:!?)]}%", "''", "'s", "'S", "n't", "N'T", "'ll", "'re", "'ve", "'m", "'d")
NO_SPACE_AFTER = (*"([{$", "``")
"""Words that are joined to the word before them, or to the word after them, in a text made of words."""

Label = str | None


@dataclass(frozen=True)
class LabelTask:
    """Labels of one kind: of texts or of words."""

    name: str
    of_text: tuple[Label, ...] | None
    """Labels [text]; None if words are labelled."""
    of_words: tuple[tuple[Label, ...] | None, ...] | None
    """Labels [text][word], None for a text without labels; None if texts are labelled."""

    @property
    def level(self) -> LabelLevel:
        """What is labelled: "text" or "word"."""
        return "text" if self.of_words is None else "word"


@dataclass(frozen=True)
class LabelledText:
    """Texts, the documents that they are parts of, and their labels."""

    name: str
    texts: tuple[str, ...]
    documents: tuple[str, ...]
    """Name of the document of each text [text]."""
    ends: tuple[tuple[int, ...], ...]
    """Number of characters up to the end of each word [text][word]; empty for a row without words."""
    tasks: tuple[LabelTask, ...]
    warnings: tuple[str, ...] = ()
    """What to keep in mind about the texts."""


def load_labels(source: LabelsLike | None = None, labels: Sequence[str] | None = None) -> LabelledText:
    """Load labelled text for probes.

    Args:
        source: one of

            - None, the embedded passages of public-domain prose;
            - a `.jsonl`, `.json` or `.csv` file (also `.gz`), a `.parquet` or an `.arrow` file;
            - a directory that `save_to_disk` of `datasets` wrote, with `:split` if it has several splits;
            - the name of a Hugging Face dataset, `owner/name`, `owner/name:config` or `owner/name:config:split`;
            - rows in memory, see the module's docstring for their form: a `datasets` dataset (also streamed), a data
              frame, a list or a generator;
            - a `LabelledText`, which is returned with the chosen labels.

            At most the first 100,000 rows are read, with a warning.
        labels: names of the fields that hold labels, or one of them; "label" if None, and of the embedded passages all
            three.

    Returns:
        The texts and, for each field, their labels.

    Raises:
        InputError: the source cannot be read, a row lacks a text or a label, or its labels do not fit its words.

    Example:
        >>> rows = [{"text": "Call me Ishmael.", "label": "Melville"}, {"text": "Emma was rich.", "label": "Austen"}]
        >>> load_labels(rows).tasks[0].of_text
        ('Melville', 'Austen')
    """
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(source, LabelledText):
        return source if labels is None else _select_labels(source, labels)
    label_names = tuple(dict.fromkeys(labels or (EMBEDDED_LABELS if source is None else ("label",))))
    name, rows = _open_rows(source, label_names)
    texts, documents, ends, row_labels, n_empty = [], [], [], [], 0
    for number, (location, row) in enumerate(islice(rows, MAX_ROWS), start=1):
        if _has_empty_text(row):
            n_empty += 1
            continue
        text, word_ends = _parse_text(row, location)
        texts.append(text)
        ends.append(word_ends)
        document_names = (row.get(field) for field in ("document", "id"))
        documents.append(str(next((name for name in document_names if not _is_missing(name)), f"row {number}")))
        row_labels.append([_parse_label(row, label_name, len(word_ends), location) for label_name in label_names])
    if not texts:
        raise InputError(f"{name} holds no rows; every row must look like {ROW_EXAMPLE}")
    tasks = tuple(
        _make_task(label_name, [row[column] for row in row_labels], name)
        for column, label_name in enumerate(label_names)
    )
    warnings = []
    if n_empty:
        warnings.append(f"{n_empty:,} rows of {name} have an empty text and were left out")
    if next(rows, None) is not None:
        warnings.append(f"only the first {MAX_ROWS:,} rows of {name} were read; classes that come later are missing")
    return LabelledText(name, tuple(texts), tuple(documents), tuple(ends), tasks, tuple(warnings))


def join_words(words: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Join words to a text with the spaces of English prose.

    Returns:
        The text, and for each word the number of characters up to its end.
    """
    text, ends, no_space = "", [], True
    for word in words:
        no_space = no_space or word.startswith(NO_SPACE_BEFORE)
        text += word if no_space else f" {word}"
        ends.append(len(text))
        no_space = word in NO_SPACE_AFTER
    return text, tuple(ends)


def _select_labels(source: LabelledText, labels: Sequence[str]) -> LabelledText:
    tasks = {task.name: task for task in source.tasks}
    for label in labels:
        if label not in tasks:
            raise InputError(f"{source.name} has no label {label!r}; choose from {', '.join(tasks)}")
    return dataclasses.replace(source, tasks=tuple(tasks[label] for label in dict.fromkeys(labels)))


def _open_rows(source: LabelsLike | None, labels: Sequence[str]) -> tuple[str, Iterator[LocatedRow]]:
    """Return the name of a source, and its rows."""
    columns = (*FIELDS_WITHOUT_LABELS, *labels)
    if source is None:
        embedded = Path(str(files("tl_distill_floor") / "assets" / "labelled.jsonl.gz"))
        return EMBEDDED, jsonl_rows(embedded)
    if not isinstance(source, str | Path):
        items = None if isinstance(source, bytes) else open_items(source, columns, "labels")
        if items is None:
            raise InputError(
                f"labelled text must be a file, a dataset's name or rows, got {type(source).__name__};"
                f" give rows such as {ROW_EXAMPLE}"
            )
        rows = enumerate(items.read(), start=1)
        return "rows in memory", ((f"row {number}", _check_row(row, number)) for number, row in rows)
    table = _open_table(source)
    if table is not None:
        return table.name, table.read(columns)
    if isinstance(source, Path) or not is_dataset_name(source):
        raise InputError(f"there is no labelled text at {source}; give {LABEL_FILES}, or a Hugging Face dataset's name")
    return source, ((f"{source}, row {number}", row) for number, row in enumerate(dataset_rows(source), 1))


def _open_table(source: str | Path) -> Table | None:
    """Open a file or a saved dataset; None if there is neither."""
    try:
        path, split = split_of_path(source)
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL byte
        return None
    if is_saved_dataset(path):
        return open_saved_dataset(path, split)
    table = open_table_file(path) if is_file else None
    if table is None and (exists or path.suffix.lower() in LABEL_SUFFIXES):
        raise InputError(f"there is no labelled text at {path}; give {LABEL_FILES}, or a Hugging Face dataset's name")
    return table


def _check_row(row: object, number: int) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"row {number} is {type(row).__name__}, not an object; it must look like {ROW_EXAMPLE}")
    return row


def _parse_text(row: Mapping[str, Any], location: str) -> tuple[str, tuple[int, ...]]:
    """Return the text of a row, and the end of each word in it."""
    words, given = _as_list(row.get("words")), row.get("text")
    if isinstance(given, str):
        given = check_text(given, location)
    if isinstance(words, Sequence) and not isinstance(words, str):
        if not words or not all(isinstance(word, str) and word for word in words):
            raise InputError(f"{location}: words must be a list of strings that are not empty")
        text, ends = join_words(words) if given is None else _locate_words(words, given, location)
        check_text(text, location)
        return text, ends
    if not isinstance(given, str) or not given:
        raise InputError(f"{location} has no text; every row must look like {ROW_EXAMPLE}")
    return given, ()


def _has_empty_text(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a text that is empty or missing, and no words."""
    return row.get("words") is None and "text" in row and (_is_missing(row["text"]) or row["text"] == "")


def _locate_words(words: Sequence[str], text: object, location: str) -> tuple[str, tuple[int, ...]]:
    """Return the text, and the end of each word in it; between two words there are no letters and digits."""
    end, ends = 0, []
    for word in words:
        start = text.find(word, end) if isinstance(text, str) else -1
        # After other letters, what is found may be a part of another word.
        if start < 0 or any(character.isalnum() for character in str(text)[end:start]):
            raise InputError(
                f"{location}: the word {word!r} does not follow in the text; give the words alone, or all words of the"
                " text in order, with null as the label of those without one"
            )
        end = start + len(word)
        ends.append(end)
    return str(text), tuple(ends)


def _parse_label(row: Mapping[str, Any], name: str, n_words: int, location: str) -> Label | tuple[Label, ...]:
    """Return the label of a row's text, or the labels of its words."""
    if name not in row:
        fields = ", ".join(str(field) for field in row if field not in FIELDS_WITHOUT_LABELS)
        # A dataset is read without the columns that were not asked for, so it may have others.
        advice = "name the field that holds its label with --label"
        advice = f"choose one of its labels with --label: {fields}" if fields else advice
        raise InputError(f"{location} has no {name!r}; {advice}")
    value = _as_list(row[name])
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not n_words:
            raise InputError(
                f"{location}: the text has a list of labels {name!r}, expected one label; give each in a field of its"
                " own, or the labelled words as 'words'"
            )
        if len(value) != n_words:
            raise InputError(
                f"{location}: {len(value)} labels {name!r} for {n_words} words; give one for each word, or null"
            )
        return tuple(_parse_class(label, name, location) for label in value)
    return _parse_class(value, name, location)


def _as_list(value: object) -> object:
    """Return an array as a list: data frames that are read from files hold arrays. Other values are unchanged."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_missing(value: object) -> bool:
    """Return whether a value is None, or NaN, which pandas writes in its place."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _parse_class(value: object, name: str, location: str) -> Label:
    if _is_missing(value):
        return None
    if isinstance(value, float | np.floating) and value.is_integer():  # pandas makes floats if some are missing
        value = int(value)
    if str(value) == str(IGNORED_LABEL):  # a string in a .csv file
        return None
    if not isinstance(value, str | Integral | np.bool_):
        raise InputError(
            f"{location}: the label {name!r} is of type {type(value).__name__}; a label is a string or an integer"
        )
    return unicodedata.normalize("NFC", str(value)).strip() or None


def _make_task(name: str, row_labels: list[Label | tuple[Label, ...]], source: str) -> LabelTask:
    of_words = [isinstance(label, tuple) for label in row_labels if label is not None]
    if any(of_words) and not all(of_words):
        raise InputError(
            f"{source}: {name!r} labels the text in some rows and the words in others; use two field names"
        )
    if any(of_words):
        return LabelTask(name, None, tuple(label if isinstance(label, tuple) else None for label in row_labels))
    return LabelTask(name, tuple(label if isinstance(label, str) else None for label in row_labels), None)
