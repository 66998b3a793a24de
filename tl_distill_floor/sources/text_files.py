"""Read plain text and JSON lines, and turn the errors of files that hold no text into sentences."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from tl_distill_floor.errors import InputError

CHUNK_CHARACTERS = 1_000_000
"""Characters of a plain text file that are read as one document."""
COMPRESSED = ".gz"
"""Ending of a compressed file."""
BYTE_ORDER_MARK = "\ufeff"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""Marks at the beginning of a file of UTF-8 as text, and of UTF-16 as bytes."""

LocatedRow = tuple[str, Mapping[str, Any]]
"""Location of a row for error messages, and the row."""


def text_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, without that of its compression.

    Example:
        >>> text_suffix(Path("Prose.JSONL.GZ"))
        '.jsonl'
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == COMPRESSED else suffix


def check_text(text: str, location: str) -> str:
    """Return a text without its byte order mark, or raise an InputError if tokenizers do not accept its characters.

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
    return text.removeprefix(BYTE_ORDER_MARK)


def plain_chunks(path: Path) -> Iterator[str]:
    """Yield a plain text in chunks that end at the end of a line.

    Raises:
        InputError: the file is not text, or it cannot be read.
    """
    with report_read_errors(path), open_text(path) as file:
        while chunk := file.read(CHUNK_CHARACTERS):
            yield check_text(chunk + file.readline(CHUNK_CHARACTERS), str(path))


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location for error messages, JSON object) for each line of a `.jsonl` file that is not empty.

    Raises:
        InputError: a line does not hold a JSON object, or the file cannot be read.
    """
    with report_read_errors(path), open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                location = f"{path}, line {number}"
                yield location, _parse_row(line, location)


def open_text(path: Path, newline: str | None = None) -> TextIOWrapper:
    """Open a text file in UTF-8, with or without a byte order mark, compressed or not.

    Args:
        path: the file.
        newline: as of `open`; None makes every end of a line "\\n".

    Raises:
        InputError: the file begins with the byte order mark of UTF-16.
    """
    compressed = path.suffix.lower() == COMPRESSED
    with gzip.open(path) if compressed else path.open("rb") as file:
        if file.read(2) in UTF_16_MARKS:
            raise InputError(f"{path} is not UTF-8 text (it begins as UTF-16 does); save it as UTF-8")
    if compressed:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


@contextmanager
def report_read_errors(path: Path) -> Iterator[None]:
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
