"""Read activations that SAELens's `CacheActivationsRunner` saved."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError

CachedSequence = tuple[Int[Tensor, " position"] | None, Float[Tensor, "position *d_model"]]
"""Token ids, if they were saved, and activations of one sequence."""


@dataclass(frozen=True)
class CachedActivations:
    """A directory of cached activations, read from the start by every call of `read`."""

    name: str
    fingerprint: str
    """A string that differs if the activations do."""
    context_size: int
    """Tokens per sequence."""
    read: Callable[[str], Iterator[CachedSequence]]
    """Iterate over the sequences at a hook point; raises an InputError if it was not cached or is damaged."""


def is_cached_activations(path: Path) -> bool:
    """Return whether a path is a directory of cached activations, or of another saved dataset."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def open_cached_activations(path: Path) -> CachedActivations:
    """Open a directory of cached activations.

    Raises:
        InputError: the directory is damaged.
    """
    from datasets import load_from_disk

    with _report_damage(path):
        state = json.loads((path / "state.json").read_bytes())
        file_names = [entry["filename"] for entry in state["_data_files"]]
        if any(Path(name).name != name for name in file_names):
            raise ValueError("it names files outside the directory")
        dataset = load_from_disk(str(path)).with_format("torch")
        hook_names = [column for column in dataset.column_names if column != "token_ids"]
        context_size = len(dataset[0][hook_names[0]])

    def read(hook_name: str) -> Iterator[CachedSequence]:
        if hook_name not in hook_names:
            raise InputError(
                f"{path} caches {', '.join(hook_names)}, not {hook_name}; give another directory with --text"
            )
        with _report_damage(path):
            for row in dataset:
                activation = row[hook_name]
                if not activation.is_floating_point() or activation.ndim < 2 or len(activation) != context_size:
                    raise ValueError(f"a sequence of it has the shape {tuple(activation.shape)}")
                yield row.get("token_ids"), activation

    return CachedActivations(path.name, str(dataset._fingerprint), context_size, read)


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Turn the errors that damaged files cause into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the errors of pyarrow and datasets have no common base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} does not hold complete cached activations ({reason}); cache them again") from error
