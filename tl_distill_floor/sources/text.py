"""Text in, token sequences out: files, datasets, tensors, SAELens stores and cached activations."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.documents import _documents


@dataclass(frozen=True)
class TextSource:
    """Sequences of one length, read anew by every call of `read`: token ids, or activations cached beside their ids."""

    name: str
    fingerprint: str
    """Differs when the text does, so that a resumed measurement goes on with what it began."""
    context_size: int
    read: Callable[[], Iterator[Int[Tensor, " position"]]]
    read_cached: Callable[[str], Iterator[tuple[Tensor | None, Float[Tensor, "position d_model"]]]] | None = None
    """From a hook name to (token ids, activation) a sequence; None where a teacher must compute the activation."""


def load_text(text: Any, tokenizer: Any, *, context_size: int | None = None, prepend_bos: bool = True) -> TextSource:
    """Anything that holds text as sequences of tokens.

    Args:
        text: None (the embedded text), a `.txt` or `.jsonl` file, either also `.gz`, a Hugging Face dataset
            (`owner/name` or `owner/name:config`), ids [batch, position], a SAELens `ActivationsStore`, or a directory
            that SAELens's `CacheActivationsRunner` wrote.
        tokenizer: the teacher's; not needed for ids and cached activations.
        context_size: tokens a sequence, the beginning-of-sequence token included.
        prepend_bos: lead every sequence with the beginning-of-sequence token, which also stands between documents.

    Raises:
        InputError: nothing of the kind exists, or it cannot be read as text.
    """
    if isinstance(text, Tensor | np.ndarray | list):
        return _from_ids(text)
    if hasattr(text, "get_batch_tokens"):
        return _from_store(text)
    if text is not None and is_cached_activations(Path(text)):
        return _from_cached_activations(Path(text))
    name, fingerprint, documents = _documents(text)
    if tokenizer is None:
        raise InputError(f"{name} needs a tokenizer, and the model has none; pass token ids [batch, position]")
    size = context_size or 256

    def read() -> Iterator[Tensor]:
        from sae_lens.tokenization_and_batching import concat_and_batch_sequences

        start = tokenizer.bos_token_id
        ids = (torch.tensor(tokenize(tokenizer, document)) for document in documents())
        packed: Iterator[Tensor] = concat_and_batch_sequences(
            (i for i in ids if len(i)),
            size,
            begin_batch_token_id=start if prepend_bos else None,
            sequence_separator_token_id=start,
        )
        return packed

    return TextSource(name, fingerprint, size, read)


def tokenize(tokenizer: Any, document: str) -> list[int]:
    """Ids of a document, without the special tokens that some tokenizers add."""
    ids: list[int] = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def is_cached_activations(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def _from_ids(given: Any) -> TextSource:
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"token ids must be whole numbers [batch, position] ({error})") from error
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise InputError(f"token ids must be whole numbers [batch, position], got {ids.dtype} {tuple(ids.shape)}")
    digest = hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return TextSource("token ids", digest, ids.shape[1], lambda: iter(ids.long()))


def _from_store(store: Any) -> TextSource:
    def read() -> Iterator[Tensor]:
        store.iterable_sequences = store._iterate_tokenized_sequences()  # from the beginning, as every text is read
        while True:
            try:
                batch = store.get_batch_tokens(1, raise_at_epoch_end=True)
            except StopIteration:
                return
            yield batch[0]

    return TextSource("ActivationsStore", "ActivationsStore", store.context_size, read)


def _from_cached_activations(path: Path) -> TextSource:
    from datasets import load_from_disk

    with _complete(path):
        names = [entry["filename"] for entry in json.loads((path / "state.json").read_bytes())["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files that lie elsewhere")
        dataset = load_from_disk(str(path)).with_format("torch")
        columns = [c for c in dataset.column_names if c != "token_ids"]
        size = len(dataset[0][columns[0]])

    def read_cached(hook_name: str) -> Iterator[tuple[Tensor | None, Tensor]]:
        if hook_name not in columns:
            raise InputError(f"{path} caches {', '.join(columns)}, not {hook_name}; name another with --text")
        with _complete(path):
            for row in dataset:
                activation = row[hook_name]
                if not activation.is_floating_point() or activation.ndim < 2 or len(activation) != size:
                    raise ValueError(f"a sequence of it has the shape {tuple(activation.shape)}")
                yield row.get("token_ids"), activation

    def read() -> Iterator[Tensor]:
        raise InputError(f"{path} caches activations, not text; a teacher is not needed to measure them")

    return TextSource(path.name, str(dataset._fingerprint), size, read, read_cached)


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    """One sentence where cached activations are damaged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what pyarrow and datasets raise of damaged files has no common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} holds no complete cached activations ({reason}); cache them again") from error
