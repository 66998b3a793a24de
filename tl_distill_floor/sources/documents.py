"""TODO."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError

PIECE = 1_000_000
"""Characters of a plain text file that are tokenized as one document."""

EMBEDDED = "embedded text"


def read_documents(text: str | Path | None) -> Iterator[str]:
    """The documents of a file, a dataset, or (None) the embedded text.

    Raises:
        InputError: see `load_text`.
    """
    return _documents(text)[2]()


def _documents(text: str | Path | None) -> tuple[str, str, Callable[[], Iterator[str]]]:
    """(name, fingerprint, reader) of a source of documents."""
    if text is None:
        embedded = Path(str(files("tl_distill_floor") / "assets" / "heldout.jsonl.gz"))
        return EMBEDDED, EMBEDDED, lambda: _jsonl(embedded)
    path = Path(text)
    if not path.is_file():
        if path.exists() or path.suffix in (".txt", ".jsonl", ".gz"):
            raise InputError(f"no text file at {path}; --text takes .txt or .jsonl (also .gz), or a dataset's name")
        return str(text), str(text), lambda: _dataset(str(text))
    readers = {".txt": _plain, ".jsonl": _jsonl}
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in readers:
        raise InputError(f"{path} is neither .txt nor .jsonl (also .gz); rename it if it holds text")
    stat = path.stat()
    return path.name, f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}", lambda: readers[suffix](path)


def _open(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One sentence for a file that turns out not to be text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason}); name a .txt or .jsonl file") from error
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); name another file") from error


def _guarded(path: Path, documents: Iterator[str]) -> Iterator[str]:
    """The documents, none of which a tokenizer would not take."""
    with _readable(path):
        for document in documents:
            check_text(document, str(path))
            yield document


def check_text(text: str, place: str) -> None:
    """Raise an InputError where a text holds what no tokenizer takes."""
    if "\0" in text:
        raise InputError(f"{place} holds NUL bytes, so it is no text; name a .txt or .jsonl file")
    try:
        text.encode()  # lone surrogates, which JSON can hold
    except UnicodeEncodeError as error:
        raise InputError(f"{place} holds half a surrogate pair, so it is no text; name another file") from error


def _plain(path: Path) -> Iterator[str]:
    def pieces() -> Iterator[str]:
        with _open(path) as file:
            while piece := file.read(PIECE):
                yield piece + file.readline(PIECE)

    return _guarded(path, pieces())


def _jsonl(path: Path) -> Iterator[str]:
    return _guarded(path, (_text_of(row, place) for place, row in jsonl_rows(path)))


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, to be named in an error; row) of every line that is not empty.

    Raises:
        InputError: a line holds no JSON object, or the file cannot be read.
    """
    with _readable(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", _row_of(line, f"{path}, line {number}")


def _row_of(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{place} is no JSON ({reason}); every line must be an object with a text") from error
    if not isinstance(row, dict):
        raise InputError(f'{place} is no object; every line must look like {{"text": "..."}}')
    return row


def _text_of(row: dict[str, Any], place: str) -> str:
    if not isinstance(row.get("text"), str):
        raise InputError(f'{place} has no text; every line must look like {{"text": "..."}}')
    text: str = row["text"]
    return text


def _dataset(name: str) -> Iterator[str]:
    """The texts of a Hugging Face dataset."""
    for row in dataset_rows(name):
        if "text" not in row:
            raise InputError(f"dataset {name} has no column 'text'; name a dataset with texts, or a file")
        yield row["text"]


def dataset_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a Hugging Face dataset's training split, streamed, no code of its own run.

    Raises:
        InputError: it cannot be read.
    """
    from datasets import load_dataset

    repository, _, config = name.partition(":")
    try:
        yield from load_dataset(repository, config or None, split="train", streaming=True)
    except Exception as error:  # every failure of a remote dataset, of which there are many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"no text file and no Hugging Face dataset {name} can be read ({reason}); check the name and the network"
        ) from error
