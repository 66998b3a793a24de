"""Iterate over what a user passes in memory: datasets, their splits, data frames, lists, and streams read once."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from tl_distill_floor.errors import InputError, reason_of
from tl_distill_floor.sources.class_names import columns_of_dataset, with_class_names
from tl_distill_floor.sources.tables import choose_split, select_columns

T = TypeVar("T")
FIRST_ITEMS = 64
"""Items of a stream that its fingerprint is made from."""


@dataclass(frozen=True)
class Items:
    """Rows, texts or token ids in memory."""

    name: str
    """What they are, such as "Dataset"."""
    fingerprint: str | None
    """A string that differs if the items do; None for a stream, which must be read to know."""
    read: Callable[[], Iterator[object]]
    """Iterate over the items. For a stream it may be called only once."""


class Replayed(Generic[T]):
    """A stream that can be read from the start any number of times; what was read is kept in memory."""

    def __init__(self, items: Iterator[T]) -> None:
        """Take an iterator, of which nothing is read yet."""
        self._rest, self._read = items, list[T]()

    def __iter__(self) -> Iterator[T]:
        """Iterate from the first item on, and read further items only when they are requested."""
        number = 0
        while True:
            if number == len(self._read):
                try:
                    self._read.append(next(self._rest))
                except StopIteration:
                    return
                except Exception as error:
                    # A generator that has raised an error just ends when it is asked again.
                    self._rest = _raising(error)
                    raise
            yield self._read[number]
            number += 1

    def first(self, n: int) -> list[T]:
        """Return the first items, at most `n`."""
        return list(islice(self, n))


def _raising(error: Exception) -> Iterator[Any]:
    """Iterate over nothing, and raise an error."""
    raise error
    yield


def open_items(source: object, columns: Sequence[str], what: str) -> Items | None:
    """Return the items of an object in memory; None if it cannot be iterated over.

    Args:
        source: a `datasets` dataset with or without splits, a pandas data frame or column, or any iterable.
        columns: columns of a dataset that are of interest.
        what: what is read, "text" or "labels", for messages.

    Raises:
        InputError: a dataset has several splits.
    """
    name = type(source).__name__
    if is_split_dataset(source):
        assert isinstance(source, Mapping)
        return open_items(source[choose_split(f"the {name}", list(source), None, f"{what}[SPLIT]")], columns, what)
    if _is_of(source, "datasets", "Dataset", "IterableDataset"):
        dataset: Any = source if _has_transform(source) else select_columns(source, columns).with_format(None)
        fingerprint = str(dataset._fingerprint) if _is_of(source, "datasets", "Dataset") else None
        columns_read = columns_of_dataset(dataset)
        return Items(name, fingerprint, lambda: _report_failure(with_class_names(dataset, columns_read), name))
    if _is_of(source, "pandas", "DataFrame"):
        frame: Any = source
        return open_items(frame.astype(object).where(frame.notna(), None).to_dict("records"), columns, what)
    if isinstance(source, Sequence):
        return Items(name, items_digest(source), lambda: iter(source))
    try:
        iterator = iter(source)  # type: ignore[call-overload]
    except TypeError:
        return None
    return Items(name, None, lambda: _report_failure(iterator, name))


def is_split_dataset(value: object) -> bool:
    """Return whether a value is a dataset of the library `datasets` with several splits, or with one that is named."""
    return _is_of(value, "datasets", "DatasetDict", "IterableDatasetDict")


def _has_transform(dataset: Any) -> bool:
    """Return whether the user's own function makes the rows of a dataset (`with_transform`), of whatever columns."""
    return (getattr(dataset, "format", None) or {}).get("type") == "custom"


def items_digest(items: Iterable[object]) -> str:
    """Return a digest of items in memory."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(_plain(item)).encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def _plain(item: object) -> object:
    """Return an item with lists in place of its arrays, whose `repr` leaves numbers out."""
    if is_dataclass(item):
        item = vars(item)
    if isinstance(item, Mapping):
        return [(key, _plain(value)) for key, value in item.items()]
    if isinstance(item, list | tuple):
        return [_plain(value) for value in item]
    return item.tolist() if hasattr(item, "tolist") else item


def _is_of(value: object, module: str, *classes: str) -> bool:
    """Return whether a value is of one of a library's classes, without importing the library."""
    library = sys.modules.get(module)
    return library is not None and isinstance(value, tuple(getattr(library, name) for name in classes))


def _report_failure(items: Iterable[object], name: str) -> Iterator[object]:
    """Yield items, and turn an error of the user's own iterator into an InputError."""
    number = 0
    try:
        for number, item in enumerate(items, start=1):  # noqa: B007 - used in the message
            yield item
    except InputError:
        raise
    except Exception as error:  # a user's generator, or a remote dataset, can raise anything
        reason = reason_of(error)
        raise InputError(f"the {name} fails after {number} items ({reason}); give one that can be read") from error
