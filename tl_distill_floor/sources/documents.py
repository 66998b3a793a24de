"""Read documents from files, datasets, objects in memory and the embedded text.

A document is a text, a conversation, or a row of token ids.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.items import FIRST_ITEMS, Replayed, is_split_dataset, items_digest, open_items
from tl_distill_floor.sources.packed_rows import IDS, TOKEN_COLUMNS, documents_of_token_rows
from tl_distill_floor.sources.tables import (
    FILE_KINDS,
    TEXT,
    Table,
    dataset_rows,
    file_fingerprint,
    is_dataset_name,
    is_saved_dataset,
    open_saved_dataset,
    open_table_file,
    split_of_path,
)
from tl_distill_floor.sources.text_files import COMPRESSED, check_text, jsonl_rows, plain_chunks, text_suffix
from tl_distill_floor.sources.token_rows import IDS_EXPECTED, TokenRow, is_token_ids, refuse_mask_among_rows, rows_of

EMBEDDED_TEXT = "embedded text"
"""Name of the text that comes with the package."""
CHAT_COLUMNS = ("messages", "conversations", "conversation")
"""Columns of conversations."""
COLUMNS = (TEXT, *CHAT_COLUMNS, *TOKEN_COLUMNS)
"""Columns that a row's document is read from: the first that it has."""
ROW_EXAMPLE = '{"text": "..."}'
PATH_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", COMPRESSED)
"""Endings by which a string is taken for a path."""
OTHER_COMPRESSION = (".zst", ".xz", ".bz2", ".zip", ".lz4", ".7z")
"""Endings of compressed files that are not read."""
LONGEST_PATH = 1024
"""Characters; a longer string is a text."""


@dataclass(frozen=True)
class Chat:
    """A conversation."""

    messages: tuple[Mapping[str, Any], ...]
    """Messages, each with a role and a content, as chat templates read them."""
    location: str


Document: TypeAlias = str | Chat | TokenRow


@dataclass(frozen=True)
class DocumentSource:
    """A source of documents, read from the start by every call of `read`."""

    name: str
    fingerprint: str
    """A string that differs if the documents do."""
    read: Callable[[], Iterator[Document]]
    """Iterate over the documents; raises an InputError where they cannot be read."""
    holds_rows: bool = True
    """Whether the documents may be rows of token ids; False for plain text."""


def open_documents(text: object) -> DocumentSource:
    """Return the documents of a file, a dataset, an object in memory, or of the embedded text if None.

    Args:
        text: see `load_text`.

    Raises:
        InputError: there is no such file, or it has another suffix. Reading the documents raises it where a file or
            dataset cannot be read as text.
    """
    if text is None:
        embedded = Path(str(files("tl_distill_floor") / "assets" / "heldout.jsonl.gz"))
        return DocumentSource(EMBEDDED_TEXT, EMBEDDED_TEXT, lambda: _documents_of_rows(jsonl_rows(embedded)))
    if isinstance(text, str | Path):
        return _open_named(text)
    return _open_in_memory(text)


def path_of(text: str | Path) -> Path | None:
    """Return a string as the path of a file or directory; None if it is a text or the name of a dataset.

    Raises:
        InputError: it looks like a path, and there is no such file or directory.
    """
    is_text = isinstance(text, str) and not text.strip()
    try:
        path, _ = split_of_path(text)
        exists = not is_text and path.exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL byte
        path, exists = Path(text), False
    if exists:
        return path
    if isinstance(text, Path) or _looks_like_path(text):
        raise InputError(f"there is no text file at {text}; give {FILE_KINDS}, or a dataset's name")
    return None


def _open_named(text: str | Path) -> DocumentSource:
    """Return the documents of a file, a directory, a dataset's name or one text."""
    path = path_of(text)
    if path is None:
        name = str(text)
        if is_dataset_name(name):
            return DocumentSource(
                name, name, lambda: _documents_of_rows((f"dataset {name}", row) for row in dataset_rows(name))
            )
        document = check_text(name, "the text")
        if not document.strip():
            raise InputError(f"the text is empty; give {FILE_KINDS}, or a dataset's name")
        return DocumentSource("a text", items_digest([document]), lambda: iter([document]), holds_rows=False)
    path, split = split_of_path(text)
    if is_saved_dataset(path):
        return _from_table(open_saved_dataset(path, split))
    if not path.is_file():
        raise InputError(
            f"there is no text file at {path}, but a directory without a saved dataset; give {FILE_KINDS}, or a"
            " directory that save_to_disk wrote"
        )
    if text_suffix(path) == ".txt":
        return DocumentSource(path.name, file_fingerprint(path), lambda: plain_chunks(path), holds_rows=False)
    if path.suffix.lower() in OTHER_COMPRESSION:
        raise InputError(f"{path} is compressed, and only .gz is read; decompress it, or compress it with gzip")
    table = open_table_file(path)
    if table is None:
        raise InputError(
            f"{path} is neither .txt nor .jsonl (also .gz), .json, .csv, .parquet or .arrow; rename it if it is"
        )
    return _from_table(table)


def _looks_like_path(text: str) -> bool:
    if len(text) > LONGEST_PATH or "\n" in text.strip():
        return False
    if re.match(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\|\w+://\S+$)", text) or text.lower().endswith(PATH_SUFFIXES):
        return True
    first, separator, _ = text.replace("\\", "/").partition("/")
    return bool(separator) and Path(first).is_dir() and not is_dataset_name(text)


def _open_in_memory(text: object) -> DocumentSource:
    """Return the documents of an object in memory."""
    name = type(text).__name__
    if _is_chat(text) or (isinstance(text, Mapping) and not is_split_dataset(text)):
        documents = tuple(_documents_of_item(text, f"the {name}"))
        return DocumentSource(name, items_digest(documents), lambda: iter(documents))
    if isinstance(text, list | tuple) and (paths := _paths_of(text)):
        return _open_files(paths)
    refuse_mask_among_rows(text, f"the {name}")
    items = open_items(text, COLUMNS, "text")
    if items is None or isinstance(text, bytes):
        raise InputError(f"{IDS_EXPECTED}, or texts, rows or a dataset, got {name}")

    def read() -> Iterator[Document]:
        for number, item in enumerate(items.read(), start=1):
            yield from _documents_of_item(item, f"{items.name}, row {number}")

    if items.fingerprint is not None:
        return DocumentSource(items.name, items.fingerprint, read)
    stream = Replayed(read())
    first = stream.first(FIRST_ITEMS)
    if not first:
        raise InputError(f"the {items.name} holds nothing, or it was read before; give a list, or a new {items.name}")
    return DocumentSource(items.name, items_digest(first), lambda: iter(stream))


def _paths_of(items: Sequence[object]) -> list[str | Path]:
    """Return the names of files that a list holds; empty if its first item is none.

    Raises:
        InputError: only some of the items are names of files.
    """
    if not items or not _names_file(items[0]):
        return []
    paths = [item for item in items if isinstance(item, str | Path) and _names_file(item)]
    if len(paths) < len(items):
        raise InputError("the list holds names of files and other items; give files alone, or texts alone")
    return paths


def _names_file(item: object) -> bool:
    """Return whether an item of a list is a path, the name of an existing file, or one word with a file's ending."""
    if isinstance(item, Path):
        return True
    if not isinstance(item, str) or len(item) > LONGEST_PATH:
        return False
    try:
        is_file = Path(item).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL byte
        is_file = False
    return is_file or (item.lower().endswith(PATH_SUFFIXES) and not re.search(r"\s", item))


def _open_files(paths: Sequence[str | Path]) -> DocumentSource:
    """Return the documents of several files, one file after the other."""
    sources = [_open_named(path) for path in paths]

    def read() -> Iterator[Document]:
        for source in sources:
            yield from source.read()

    name = sources[0].name if len(sources) == 1 else f"{len(sources)} files, {sources[0].name} to {sources[-1].name}"
    return DocumentSource(
        name,
        items_digest([source.fingerprint for source in sources]),
        read,
        holds_rows=any(source.holds_rows for source in sources),
    )


def _from_table(table: Table) -> DocumentSource:
    return DocumentSource(table.name, table.fingerprint, lambda: _documents_of_rows(table.read(COLUMNS)))


def _documents_of_rows(rows: Iterator[tuple[str, Any]]) -> Iterator[Document]:
    for location, row in rows:
        yield from _documents_of_item(row, location)


def _documents_of_item(item: Any, location: str) -> Iterator[Document]:
    """Yield the documents of a text, a row, a conversation, token ids, or a batch of one of these."""
    if isinstance(item, str):
        yield check_text(item, location)
    elif _is_chat(item):
        yield _chat(item, location)
    elif isinstance(item, Mapping):
        yield from _documents_of_row(item, location)
    elif isinstance(item, tuple) and len(item) > 1 and not all(isinstance(part, int) for part in item):
        raise InputError(
            f"{location} is a tuple, whose parts have no names; give the texts alone, or rows with names, such as"
            f' {ROW_EXAMPLE} or {{"input_ids": ..., "attention_mask": ...}}'
        )
    elif isinstance(item, list | tuple) and len(item) == 1 and getattr(item[0], "ndim", 0) == 2:
        yield from _documents_of_item(item[0], location)  # a batch of a TensorDataset
    elif is_token_ids(item):
        refuse_mask_among_rows(item, location)
        yield from rows_of(item, location=location)
    elif hasattr(item, "ids") and hasattr(item, "attention_mask"):  # an encoding of the library `tokenizers`
        yield from rows_of(item.ids, item.attention_mask, location)
    elif isinstance(item, Sequence) and len(item) and all(isinstance(text, str) for text in item):
        yield from (check_text(text, location) for text in item)
    else:
        raise InputError(f"{location} is {type(item).__name__}, not a text; every row must look like {ROW_EXAMPLE}")


def _documents_of_row(row: Mapping[str, Any], location: str) -> Iterator[Document]:
    text: Any = row.get(TEXT)
    text = text.tolist() if hasattr(text, "tolist") else text  # a column of a data frame, or an array
    if isinstance(text, str) or (isinstance(text, list | tuple) and text):
        yield from _documents_of_item(text if isinstance(text, str) else list(text), location)
        return
    chat = next((row[column] for column in CHAT_COLUMNS if row.get(column) is not None), None)
    if chat is not None:
        chat = chat.tolist() if hasattr(chat, "tolist") else chat  # a cell of a data frame that was read from Parquet
        if not _is_chat(chat):
            raise InputError(
                f"{location} holds a conversation whose messages are not of the form"
                ' {"role": "...", "content": "..."}; rename their fields'
            )
        yield _chat(chat, location)
    elif row.get(IDS) is not None:
        yield from documents_of_token_rows(row, location)
    elif not (TEXT in row and (text is None or text != text)):  # NaN; a text that is missing counts as an empty one
        columns = ", ".join(map(str, row)) or "none"
        raise InputError(
            f"{location} has no text (its columns are {columns}); every row must look like {ROW_EXAMPLE}, or rename the"
            " column that holds it"
        )


def _chat(messages: Sequence[Mapping[str, Any]], location: str) -> Chat:
    """Return a conversation, or raise an InputError if a message holds something else than text.

    A content is a string, or a list of parts of the form {"type": "text", "text": "..."}. One of None stands for a call
    of a tool.
    """
    for message in messages:
        content = message["content"]
        parts = content.tolist() if hasattr(content, "tolist") else content
        if isinstance(parts, list):
            is_text = all(
                isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"
                for part in parts
            )
        else:
            is_text = isinstance(parts, str) or (parts is None and bool(message.get("tool_calls")))
        if not is_text:
            raise InputError(
                f"{location} holds a message of the role {message['role']!r:.20} whose content is not text; leave such"
                " conversations out"
            )
    return Chat(tuple(messages), location)


def _is_chat(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in value)
    )
