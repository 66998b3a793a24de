"""Read activations that SAELens's `CacheActivationsRunner` saved."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.documents import COLUMNS
from tl_distill_floor.sources.tables import (
    SAVED_DATASET,
    is_saved_dataset,
    load_saved_dataset,
    report_damaged_dataset,
    select_columns,
)

CachedSequence = tuple[Int[Tensor, " position"] | None, Float[Tensor, "position *d_model"]]
"""Token ids, if they were saved, and activations of one sequence."""
TOKEN_COLUMN = "token_ids"  # noqa: S105 - not a password
"""Column with the token ids of a sequence, if they were saved."""
LIST_TYPES = ("List", "LargeList", "Sequence", "LargeSequence")
"""Types of a column of sequences, in several versions of `datasets`."""


@dataclass(frozen=True)
class CachedActivations:
    """A directory of cached activations, read from the start by every call of `read`."""

    name: str
    fingerprint: str
    """A string that differs if the activations do."""
    context_size: int
    """Tokens per sequence."""
    hook_names: tuple[str, ...]
    """Hook points that were cached, by the names that they had then."""
    first_token: int | None
    """Token id that begins every sequence; None if token ids were not saved, or sequences begin differently."""
    has_token_ids: bool
    read: Callable[[str], Iterator[CachedSequence]]
    """Iterate over the sequences at a hook point; raises an InputError if it was not cached or is damaged."""


def is_cached_activations(path: Path) -> bool:
    """Return whether a path is a directory of activations, rather than of text, that `save_to_disk` wrote.

    Activations are columns of arrays of floating-point numbers, with at least two axes. A dataset with a column of
    texts, conversations or `input_ids` is text, whatever its other columns are, such as a teacher's log-probabilities.
    """
    try:
        if not (is_saved_dataset(path) and all((path / name).is_file() for name in SAVED_DATASET)):
            return False
        features = json.loads((path / "dataset_info.json").read_bytes())["features"]
        return not set(COLUMNS) & set(features) and any(_is_activation(feature) for feature in features.values())
    except (OSError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return False


def open_cached_activations(path: Path) -> CachedActivations:
    """Open a directory of cached activations.

    Raises:
        InputError: the directory is damaged.
    """
    stored = load_saved_dataset(path)
    with report_damaged_dataset(path):
        dataset = stored.with_format("torch")
        hook_names = [column for column in dataset.column_names if column != TOKEN_COLUMN]
        has_token_ids = TOKEN_COLUMN in dataset.column_names
        context_size = len(dataset[0][hook_names[0]])
        first_token = _first_token(stored) if has_token_ids else None

    def read(hook_name: str) -> Iterator[CachedSequence]:
        if hook_name not in hook_names:
            raise InputError(
                f"{path} caches {', '.join(hook_names)}, not {hook_name}; give another directory with --text"
            )
        with report_damaged_dataset(path):
            for row in select_columns(dataset, (hook_name, TOKEN_COLUMN)):
                activation, ids = row[hook_name], row.get(TOKEN_COLUMN)
                if not activation.is_floating_point() or activation.ndim < 2 or len(activation) != context_size:
                    raise ValueError(f"a sequence of it has the shape {tuple(activation.shape)}")
                if ids is not None and tuple(ids.shape) != (context_size,):
                    raise ValueError(f"its {TOKEN_COLUMN} have the shape {tuple(ids.shape)}, not ({context_size},)")
                yield ids, activation

    fingerprint = str(dataset._fingerprint)
    return CachedActivations(path.name, fingerprint, context_size, tuple(hook_names), first_token, has_token_ids, read)


def _first_token(dataset: Any) -> int | None:
    """Return the token id that begins every sequence, of at least two; None if they begin differently."""
    tokens = (int(row[TOKEN_COLUMN][0]) for row in dataset.select_columns([TOKEN_COLUMN]))
    first = next(tokens)
    return first if len(dataset) > 1 and all(token == first for token in tokens) else None


def _is_activation(feature: object, n_axes: int = 0) -> bool:
    """Return whether a column's description is that of an array of floating-point numbers with two axes or more."""
    if isinstance(feature, list) and len(feature) == 1:
        return _is_activation(feature[0], n_axes + 1)
    if not isinstance(feature, Mapping):
        return False
    kind, dtype = feature.get("_type"), str(feature.get("dtype", ""))
    if kind in LIST_TYPES:
        return _is_activation(feature.get("feature"), n_axes + 1)
    if kind in ("Array2D", "Array3D", "Array4D", "Array5D"):
        return "float" in dtype
    return kind == "Value" and "float" in dtype and n_axes > 1
