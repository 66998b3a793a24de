"""LabelledText text for probes: rows of a `.jsonl` file, of a Hugging Face dataset, or in memory.

A row is `{"text": "...", "label": "..."}`, or `{"words": ["...", ...], "label": ["...", ...]}` with a label for every
word (null where a word has none), and a `text` too where their spacing is to be the original's. Fields of any name
serve as labels. `document` (else `id`) says which rows belong to one document, which stands on one side of a split; a
row without either is a document of its own.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.documents import check_text, dataset_rows, jsonl_rows

EMBEDDED = "embedded labelled text"
EMBEDDED_LABELS = ("author", "word_class", "next_word_class")
MOST_ROWS = 100_000
NO_SPACE_BEFORE = (*".,;:!?)]}%", "''", "'s", "'S", "n't", "N'T", "'ll", "'re", "'ve", "'m", "'d")
NO_SPACE_AFTER = (*"([{$", "``")

Label = str | None


@dataclass(frozen=True)
class LabelTask:
    """One kind of label."""

    name: str
    of_text: tuple[Label, ...] | None
    """[text], where texts have labels."""
    of_words: tuple[tuple[Label, ...] | None, ...] | None
    """[text][word], where words have."""

    @property
    def level(self) -> str:
        return "text" if self.of_words is None else "word"


@dataclass(frozen=True)
class LabelledText:
    """Texts, the documents that they are parts of, and their labels."""

    name: str
    texts: tuple[str, ...]
    documents: tuple[str, ...]
    """[text]"""
    ends: tuple[tuple[int, ...], ...]
    """[text][word]: the place after the word's last character; none where the row had no words."""
    tasks: tuple[LabelTask, ...]


def load_labels(source: Any = None, labels: Sequence[str] | None = None) -> LabelledText:
    """LabelledText text.

    Args:
        source: None (the embedded passages of public-domain prose), a `.jsonl` file (also `.gz`), a Hugging Face
            dataset (`owner/name` or `owner/name:config`), rows in memory, or a `LabelledText`; the first 100,000 rows.
        labels: fields that are labels; "label" when left out.

    Raises:
        InputError: it cannot be read, a row has no text or no such label, or a label does not fit its words.
    """
    if isinstance(source, LabelledText):
        return source if labels is None else _chosen(source, labels)
    asked = tuple(dict.fromkeys(labels or (EMBEDDED_LABELS if source is None else ("label",))))
    name, rows = _rows(source)
    texts, documents, ends, found = [], [], [], []
    for number, (place, row) in enumerate(islice(rows, MOST_ROWS), start=1):
        text, word_ends = _text(row, place)
        texts.append(text)
        ends.append(word_ends)
        named = (row.get(field) for field in ("document", "id"))
        documents.append(str(next((value for value in named if value is not None), f"row {number}")))
        found.append([_label(row, label, len(word_ends), place) for label in asked])
    if not texts:
        raise InputError(f"{name} holds no rows; every row must look like {{'text': '...', 'label': '...'}}")
    tasks = tuple(_task(label, [row[i] for row in found], name) for i, label in enumerate(asked))
    return LabelledText(name, tuple(texts), tuple(documents), tuple(ends), tasks)


def _chosen(source: LabelledText, labels: Sequence[str]) -> LabelledText:
    """Some of its labels."""
    there = {task.name: task for task in source.tasks}
    for label in labels:
        if label not in there:
            raise InputError(f"{source.name} has no {label!r}; name one of its labels: {', '.join(there)}")
    return dataclasses.replace(source, tasks=tuple(there[label] for label in dict.fromkeys(labels)))


def join_words(words: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """(text, place after each word) of words with the spaces of English prose between them."""
    text, ends, glued = "", [], True
    for word in words:
        glued = glued or word.startswith(NO_SPACE_BEFORE)
        text += word if glued else f" {word}"
        ends.append(len(text))
        glued = word in NO_SPACE_AFTER
    return text, tuple(ends)


def _rows(source: Any) -> tuple[str, Iterator[tuple[str, Mapping[str, Any]]]]:
    """(name, (place, row) of every row)."""
    if source is None:
        embedded = Path(str(files("tl_distill_floor") / "assets" / "labelled.jsonl.gz"))
        return EMBEDDED, jsonl_rows(embedded)
    if not isinstance(source, str | Path):
        if not isinstance(source, Iterable):
            raise InputError(f"labelled text is a file, a dataset's name or rows, got {type(source).__name__}")
        return "rows in memory", ((f"row {number}", _object(row, number)) for number, row in enumerate(source, 1))
    path = Path(source)
    if path.is_file():
        return path.name, jsonl_rows(path)
    if path.exists() or path.suffix in (".jsonl", ".gz", ".json", ".csv"):
        raise InputError(f"no labelled text at {path}; give a .jsonl file (also .gz), or a Hugging Face dataset's name")
    return str(source), ((f"{source}, row {number}", row) for number, row in enumerate(dataset_rows(str(source)), 1))


def _object(row: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"row {number} is {type(row).__name__}, not an object with a text and a label")
    return row


def _text(row: Mapping[str, Any], place: str) -> tuple[str, tuple[int, ...]]:
    words = row.get("words")
    if isinstance(words, Sequence) and not isinstance(words, str):
        if not words or not all(isinstance(word, str) and word for word in words):
            raise InputError(f"{place}: words must be a list of strings that are not empty")
        text, ends = join_words(words) if row.get("text") is None else _located(words, row["text"], place)
    elif isinstance(row.get("text"), str) and row["text"]:
        text, ends = row["text"], ()
    else:
        raise InputError(f"{place} has no text; every row must look like {{'text': '...', 'label': '...'}}")
    check_text(text, place)
    return text, ends


def _located(words: Sequence[str], text: Any, place: str) -> tuple[str, tuple[int, ...]]:
    """(text, place after each word), the words found in it one after the other."""
    ends, end = [], 0
    for word in words:
        start = text.find(word, end) if isinstance(text, str) else -1
        if start < 0:
            raise InputError(f"{place}: the word {word!r} does not follow in the text; give words alone, or in order")
        end = start + len(word)
        ends.append(end)
    return text, tuple(ends)


def _label(row: Mapping[str, Any], name: str, n_words: int, place: str) -> Label | tuple[Label, ...]:
    if name not in row:
        there = ", ".join(str(field) for field in row if field not in ("text", "words", "document", "id"))
        raise InputError(f"{place} has no {name!r}; name one of its labels with --label: {there or 'it has none'}")
    value = row[name]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != n_words:
            raise InputError(
                f"{place}: {len(value)} labels {name!r} for {n_words} words; every word takes one, or null"
            )
        return tuple(_one(label, name, place) for label in value)
    return _one(value, name, place)


def _one(value: Any, name: str, place: str) -> Label:
    if value is None:
        return None
    if not isinstance(value, str | Integral):
        raise InputError(
            f"{place}: the label {name!r} is {type(value).__name__}; a class is a string or a whole number"
        )
    return str(value)


def _task(name: str, found: list[Label | tuple[Label, ...]], source: str) -> LabelTask:
    of_words = [isinstance(label, tuple) for label in found if label is not None]
    if any(of_words) and not all(of_words):
        raise InputError(f"{source}: {name!r} is of texts in some rows and of words in others; give it two names")
    if any(of_words):
        return LabelTask(name, None, tuple(label if isinstance(label, tuple) else None for label in found))
    return LabelTask(name, tuple(label if isinstance(label, str) else None for label in found), None)
