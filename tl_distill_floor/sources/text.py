"""Text in, token sequences out: files, datasets, tensors, SAELens stores and cached activations."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_distill_floor.errors import InputError

PIECE = 1_000_000
"""Characters of a plain text file that are tokenized as one document."""
EMBEDDED = "embedded text"


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
