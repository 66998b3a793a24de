"""What probes are fitted to: which tokens of which texts carry which label."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.labels import LabelledText, LabelTask

POOLS = ("mean", "last")
LEAST_DOCUMENTS = 5
"""Documents that a class must stand in, one for each part that the splits cut."""
MEAN = -1
READ_AT_ONCE = 1000
"""Texts that are tokenized at once."""


@dataclass(frozen=True, eq=False)
class Items:
    """The labelled places for one task."""

    task: str
    level: str
    pool: str
    classes: tuple[str, ...]
    text: Int64[np.ndarray, " item"]
    position: Int64[np.ndarray, " item"]
    """Place of the token in its sequence, the beginning-of-text token counted; `MEAN` for the mean of all but the
    first."""
    label: Int64[np.ndarray, " item"]
    document: Int64[np.ndarray, " item"]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Sequences:
    """Texts as token ids, and what of them is labelled."""

    ids: tuple[Tensor, ...]
    """[text][position]; what stands at the first position is not probed, be it a beginning-of-text token or not."""
    items: tuple[Items, ...]
    warnings: tuple[str, ...]


def sequences_of(
    labelled: LabelledText,
    tokenizer: Any,
    *,
    pool: str = "mean",
    context_size: int = 256,
    prepend_bos: bool = True,
    per_class: int = 1000,
    seed: int = 0,
) -> Sequences:
    """Tokenize labelled texts and choose what is probed.

    Args:
        labelled: the texts.
        tokenizer: the teacher's; a fast one, which knows where its tokens stand in the text.
        pool: for labels of texts, "mean" of all tokens or the "last" one.
        context_size: tokens of a sequence at the most; what is longer is cut, with a warning.
        prepend_bos: lead every text with the beginning-of-text token, where there is one.
        per_class: items of a class at the most, drawn at random.
        seed: of the drawing.

    Raises:
        InputError: no fast tokenizer, an unknown pool, or a task with fewer than two classes that stand in 5 documents.
    """
    if pool not in POOLS:
        raise InputError(f"texts are probed at their {' or '.join(POOLS)}, got {pool!r}; set --pool")
    if per_class < 2:
        raise InputError(f"a class needs at least 2 items, got {per_class}; set --per-class")
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise InputError("probing needs a teacher with a fast tokenizer, which knows where its tokens stand in a text")
    bos = tokenizer.bos_token_id if prepend_bos else None
    leading = [] if bos is None else [int(bos)]
    ids, ends, n_cut, n_shared = [], [], 0, 0
    for first in range(0, len(labelled.texts), READ_AT_ONCE):
        texts = slice(first, first + READ_AT_ONCE)
        encoded = tokenizer(list(labelled.texts[texts]), add_special_tokens=False, verbose=False)
        for text, found, word_ends in zip(labelled.texts[texts], encoded.encodings, labelled.ends[texts], strict=True):
            whole = leading + list(found.ids)
            ids.append(torch.tensor(whole[:context_size]))
            n_cut += len(whole) > context_size
            ends.append(_tokens_at(found.offsets, word_ends, text))
            n_shared += ends[-1].count(None)
    warnings = [f"texts longer than {context_size} tokens, which were cut: {n_cut:,}"] if n_cut else []
    if n_shared:
        warnings.append(f"words that end in a token with a part of the next one, left out: {n_shared:,}")
    random = np.random.default_rng(seed)
    items = []
    for task in labelled.tasks:
        of_words = task.level == "word"
        places = _word_places(task, ends, ids, len(leading)) if of_words else _text_places(task, ids, pool)
        chosen, notes = _items(task, pool, places, labelled.documents, per_class, random)
        items.append(chosen)
        warnings += notes
    return Sequences(tuple(ids), tuple(items), tuple(warnings))


def _tokens_at(offsets: list[tuple[int, int]], ends: tuple[int, ...], text: str) -> list[int | None]:
    """For each word the last token that holds a part of it; None where that token holds a part of the next word too.

    A character of several bytes may be several tokens, all of which a byte-level tokenizer places at that character.
    """
    starts, found = [start for start, _ in offsets], []
    for end in ends:
        token = bisect_left(starts, end) - 1
        alone = token >= 0 and not text[end : offsets[token][1]].strip()
        found.append(token if alone else None)
    return found


Place = tuple[int, int, str]
"""(text, position, label)"""


def _text_places(task: LabelTask, ids: list[Tensor], pool: str) -> list[Place]:
    assert task.of_text is not None
    return [
        (text, MEAN if pool == "mean" else len(ids[text]) - 1, label)
        for text, label in enumerate(task.of_text)
        if label is not None and len(ids[text]) > 1
    ]


def _word_places(task: LabelTask, ends: list[list[int | None]], ids: list[Tensor], leading: int) -> list[Place]:
    assert task.of_words is not None
    return [
        (text, token + leading, label)
        for text, labels in enumerate(task.of_words)
        for token, label in zip(ends[text], labels or (), strict=bool(labels))
        if token is not None and label is not None and 0 < token + leading < len(ids[text])
    ]


def _items(
    task: LabelTask,
    pool: str,
    places: list[Place],
    documents: tuple[str, ...],
    per_class: int,
    random: np.random.Generator,
) -> tuple[Items, list[str]]:
    """At most `per_class` places of each class that stands in enough documents, and what was left out."""
    standing: dict[str, set[str]] = {}
    for i, _, label in places:
        standing.setdefault(label, set()).add(documents[i])
    classes = tuple(sorted(label for label, of in standing.items() if len(of) >= LEAST_DOCUMENTS))
    rare = sorted(set(standing) - set(classes))
    if len(classes) < 2:
        counts = ", ".join(f"{label!r} in {len(of)}" for label, of in sorted(standing.items())[:6]) or "none"
        raise InputError(
            f"probing {task.name!r} needs two classes that stand in {LEAST_DOCUMENTS} documents or more; found"
            f" {counts}; give more labelled text, or name another label with --label"
        )
    notes = []
    if rare:
        named = ", ".join(rare[:6]) + (", ..." if len(rare) > 6 else "")
        notes.append(
            f"{task.name}: {len(rare)} of {len(standing)} classes stand in fewer than {LEAST_DOCUMENTS} documents and"
            f" were left out ({named})"
        )
    by_class = [[place for place in places if place[2] == label] for label in classes]
    chosen = [rows if len(rows) <= per_class else _drawn(rows, per_class, random) for rows in by_class]
    number = {document: i for i, document in enumerate(dict.fromkeys(documents))}
    kind, rows = "word" if task.level == "word" else pool, [place for of in chosen for place in of]
    text, position = (np.array([place[i] for place in rows], dtype=np.int64) for i in (0, 1))
    of_class = np.repeat(np.arange(len(classes)), [len(of) for of in chosen])
    of_document = np.array([number[documents[i]] for i, *_ in rows], dtype=np.int64)
    return Items(task.name, task.level, kind, classes, text, position, of_class, of_document), notes


def _drawn(rows: list[Place], n: int, random: np.random.Generator) -> list[Place]:
    return [rows[i] for i in np.sort(random.choice(len(rows), n, replace=False))]
