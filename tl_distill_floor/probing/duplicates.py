"""Join documents that share a text, so that no split has copies of a text on two sides."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


class DocumentGroups(NamedTuple):
    """Documents, where those that share a text are one."""

    group: tuple[int, ...]
    """Number of each text's group of documents, in the order of the texts."""
    n_shared: int
    """Number of different texts that occur in several documents."""


def group_documents(texts: Sequence[str], ids: Sequence[Tensor], documents: Sequence[str]) -> DocumentGroups:
    """Join documents that share a text, directly or through other documents.

    Texts are equal if they differ only in case, punctuation and white space, or if their tokens are equal: long texts
    are truncated.

    Args:
        texts: the texts.
        ids: token ids of each text.
        documents: name of the document of each text.

    Returns:
        The groups, numbered in the order of their first text.

    Example:
        >>> import torch
        >>> group_documents(["a b", "c", "A  b."], [torch.tensor([i]) for i in range(3)], ["x", "y", "z"]).group
        (0, 1, 0)
    """
    document = _numbers(documents)
    content = _join(
        _numbers([_normalised(text) for text in texts]), _numbers([text_ids.numpy().tobytes() for text_ids in ids])
    )
    pairs = np.unique(np.stack([content, document]), axis=1)
    n_shared = int((np.bincount(pairs[0]) > 1).sum())
    return DocumentGroups(tuple(_join(document, content).tolist()), n_shared)


def _normalised(text: str) -> str:
    """Return the words of a text in lower case; without words, its characters other than white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded) or folded.split())


def _join(first: Int64[np.ndarray, " text"], second: Int64[np.ndarray, " text"]) -> Int64[np.ndarray, " text"]:
    """Return groups of texts that are joined by an equal number in either array, numbered in their order."""
    n_first = int(first.max()) + 1
    n_nodes = n_first + int(second.max()) + 1
    graph = coo_array((np.ones(len(first)), (first, n_first + second)), shape=(n_nodes, n_nodes))
    component = connected_components(graph, directed=False)[1]
    return _numbers(component[first].tolist())


def _numbers(values: Sequence[str | bytes | int]) -> Int64[np.ndarray, " text"]:
    """Return the number of each value, in the order in which the values first occur."""
    numbers: dict[str | bytes | int, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
