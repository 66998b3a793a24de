"""Read documents from text files, Hugging Face datasets and the embedded text."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError

CHUNK_CHARACTERS = 1_000_000
"""Characters of a plain text file that are read as one document."""
EMBEDDED_TEXT = "embedded text"


@dataclass(frozen=True)
class DocumentSource:
    """A source of documents, read from the start by every call of `read`."""

    name: str
    fingerprint: str
    """A string that differs if the documents do."""
    read: Callable[[], Iterator[str]]
    """Iterate over the documents; raises an InputError where they cannot be read."""


def open_documents(text: str | Path | None) -> DocumentSource:
    """Return the documents of a file, of a dataset, or of the embedded text if None.

    Args:
        text: a `.txt` or `.jsonl` file (also `.gz`), or a Hugging Face dataset, `owner/name` or `owner/name:config`.

    Raises:
        InputError: there is no such file, or it has another suffix. Reading the documents raises it where a file or
            dataset cannot be read as text.
    """
    if text is None:
        embedded = Path(str(files("tl_distill_floor") / "assets" / "heldout.jsonl.gz"))
        return DocumentSource(EMBEDDED_TEXT, EMBEDDED_TEXT, lambda: _read_jsonl(embedded))
    path = Path(text)
    if not path.is_file():
        if path.exists() or path.suffix in (".txt", ".jsonl", ".gz"):
            raise InputError(
                f"there is no text file at {path}; --text takes .txt or .jsonl (also .gz), or a dataset's name"
            )
        return DocumentSource(str(text), str(text), lambda: _read_dataset(str(text)))
    readers = {".txt": _read_plain, ".jsonl": _read_jsonl}
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in readers:
        raise InputError(f"{path} is neither .txt nor .jsonl (also .gz); rename it if it holds text")
    stat = path.stat()
    fingerprint = f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
    return DocumentSource(path.name, fingerprint, lambda: readers[suffix](path))


def check_text(text: str, location: str) -> None:
    """Raise an InputError if a text holds characters that tokenizers do not accept.

    Args:
        text: the text.
        location: its file, with line or row, for the message.
    """
    if "\0" in text:
        raise InputError(f"{location} holds NUL bytes, so it is not text; give a .txt or .jsonl file")
    try:
        text.encode()  # fails on lone surrogates, which JSON can hold
    except UnicodeEncodeError as error:
        raise InputError(f"{location} holds half a surrogate pair, so it is not text; give another file") from error


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location for error messages, JSON object) for each line of a `.jsonl` file that is not empty.

    Raises:
        InputError: a line does not hold a JSON object, or the file cannot be read.
    """
    with _report_read_errors(path), _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                location = f"{path}, line {number}"
                yield location, _parse_row(line, location)


def dataset_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the training split of a Hugging Face dataset, streamed, without running its code.

    Args:
        name: `owner/name` or `owner/name:config`.

    Raises:
        InputError: the dataset cannot be read.
    """
    from datasets import load_dataset

    repository, _, config = name.partition(":")
    try:
        yield from load_dataset(repository, config or None, split="train", streaming=True)
    except Exception as error:  # a remote dataset can fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name} is neither a text file nor a Hugging Face dataset that can be read ({reason});"
            " check the name and the network"
        ) from error


def _read_plain(path: Path) -> Iterator[str]:
    """Yield a plain text in chunks that end at the end of a line."""

    def chunks() -> Iterator[str]:
        with _open_text(path) as file:
            while chunk := file.read(CHUNK_CHARACTERS):
                yield chunk + file.readline(CHUNK_CHARACTERS)

    return _checked_documents(path, chunks())


def _read_jsonl(path: Path) -> Iterator[str]:
    return _checked_documents(path, (_text_field(row, location) for location, row in jsonl_rows(path)))


def _read_dataset(name: str) -> Iterator[str]:
    for row in dataset_rows(name):
        if "text" not in row:
            raise InputError(f"dataset {name} has no column 'text'; give a dataset that has one, or a file")
        yield row["text"]


def _checked_documents(path: Path, documents: Iterator[str]) -> Iterator[str]:
    with _report_read_errors(path):
        for document in documents:
            check_text(document, str(path))
            yield document


def _open_text(path: Path) -> TextIOWrapper:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


@contextmanager
def _report_read_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file that is not text into an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); give a .txt or .jsonl file") from error
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); give another file") from error


def _parse_row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{location} is not JSON ({reason}); every line must be an object with a text") from error
    if not isinstance(row, dict):
        raise InputError(f'{location} is not a JSON object; every line must look like {{"text": "..."}}')
    return row


def _text_field(row: dict[str, Any], location: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f'{location} has no text; every line must look like {{"text": "..."}}')
    return text
