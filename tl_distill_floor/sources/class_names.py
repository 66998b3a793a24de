"""Replace the numbers of classes in the rows of a dataset by the classes' names.

The library `datasets` stores a class as a number (`ClassLabel`), and the names with the columns; -1 is no class.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])
SCHEMA_KEY = b"huggingface"
"""Key under which `datasets` describes its columns in the schema of an Arrow or a Parquet file."""


def columns_of_dataset(dataset: object) -> Mapping[str, object]:
    """Return the description of each column of a dataset; empty if a stream does not know its columns."""
    features = getattr(dataset, "features", None)
    return {} if features is None else dict(features.to_dict())


def columns_of_schema(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, object]:
    """Return the description that `datasets` wrote of each column of a file; empty for files of other programs.

    Args:
        metadata: metadata of the file's Arrow schema.
    """
    try:
        columns = json.loads((metadata or {}).get(SCHEMA_KEY, b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return columns if isinstance(columns, dict) else {}


def with_class_names(rows: Iterable[Row], columns: Mapping[str, object]) -> Iterator[Row | dict[str, Any]]:
    """Yield rows with the names of classes instead of their numbers, and None instead of -1.

    Args:
        rows: the rows.
        columns: description of each column, as `Features.to_dict` of `datasets` returns it.

    Example:
        >>> columns = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}}
        >>> list(with_class_names([{"label": 1}, {"label": -1}], columns))
        [{'label': 'positive'}, {'label': None}]
    """
    names = {column: of_column for column, kind in columns.items() if (of_column := _class_names(kind))}
    for row in rows:
        yield {**row, **{column: _named(row[column], names[column]) for column in names if column in row}}


def _class_names(kind: object) -> Sequence[str] | None:
    """Return the names of the classes of a column of classes, or of lists of classes; None for other columns."""
    if isinstance(kind, list) and len(kind) == 1:  # lists in earlier versions of `datasets`
        return _class_names(kind[0])
    if not isinstance(kind, Mapping):
        return None
    return kind.get("names") if kind.get("_type") == "ClassLabel" else _class_names(kind.get("feature"))


def _named(value: object, names: Sequence[str]) -> object:
    """Return the name of a class, or those of a list of classes; what is no number of a class as it is."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None
