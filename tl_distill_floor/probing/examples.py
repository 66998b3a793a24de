"""Labelled examples for probes: which token of which text carries which label."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from tl_distill_floor.annotations import LabelLevel, Pooling, Tokenizer
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.duplicates import group_documents
from tl_distill_floor.sources.labels import LabelledText, LabelTask

MIN_DOCUMENTS_PER_CLASS = 5
"""Documents in which a class must occur: one for each of the five parts that documents are split into."""
MEAN_POSITION = -1
"""Position that means: the mean over all tokens of a text except the first and special tokens."""
TEXTS_PER_TOKENIZER_CALL = 1000
"""Texts that are tokenized together."""


@dataclass(frozen=True, eq=False)
class TaskExamples:
    """The labelled examples of one task."""

    task: str
    level: LabelLevel
    """Whether a label belongs to a "text" or to a "word"."""
    pool: Pooling | Literal["word"]
    """Which activation is probed: "mean" or "last" of a text, or "word" for the last token of a word."""
    classes: tuple[str, ...]
    text: Int64[np.ndarray, " example"]
    """Index of the text."""
    position: Int64[np.ndarray, " example"]
    """Position of the token in its text, the beginning-of-sequence token included; or `MEAN_POSITION`."""
    label: Int64[np.ndarray, " example"]
    """Index of the class."""
    document: Int64[np.ndarray, " example"]
    """Number of the document that the text belongs to; documents that share a text have one number."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.label)


@dataclass(frozen=True)
class TokenizedExamples:
    """Tokenized texts and the labelled examples in them, for one or more tasks."""

    ids: tuple[Tensor, ...]
    """Token ids [text][position]. The first position is never probed, whether or not it is a BOS token."""
    counted: tuple[Int64[np.ndarray, " _"], ...]
    """Positions [text] that a mean is taken over: all but the first and special tokens, as in measurements."""
    tasks: tuple[TaskExamples, ...]
    warnings: tuple[str, ...]


class _LabelledToken(NamedTuple):
    text: int
    position: int
    label: str


def tokenize_examples(
    labelled: LabelledText,
    tokenizer: Tokenizer | None,
    *,
    pool: Pooling = "mean",
    context_size: int = 256,
    prepend_bos: bool = True,
    per_class: int = 1000,
    seed: int = 0,
) -> TokenizedExamples:
    """Tokenize labelled texts and select the examples of each task.

    Args:
        labelled: texts with their labels.
        tokenizer: the teacher's tokenizer; a fast one, which knows the character span of each token.
        pool: for labels of texts, the "mean" over all tokens that are not special, or the "last" token.
        context_size: tokens per text; longer texts are truncated, with a warning.
        prepend_bos: begin each text with the beginning-of-sequence token, if the tokenizer has one.
        per_class: largest number of examples per class; more are sampled down at random.
        seed: seed of that sample.

    Returns:
        TokenizedExamples: one `TaskExamples` per task of `labelled`.

    Raises:
        InputError: the tokenizer is not a fast one, or fewer than two classes of a task occur in 5 documents.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise InputError("probing needs a teacher with a fast tokenizer, which knows the character span of each token")
    bos_id = tokenizer.bos_token_id if prepend_bos else None
    prefix = [] if bos_id is None else [int(bos_id)]
    tokenized = _tokenize_texts(labelled, tokenizer, prefix, context_size)
    ids, warnings = (
        tokenized.ids,
        [*labelled.warnings, *_tokenization_warnings(labelled.tasks, tokenized, context_size)],
    )
    groups = group_documents(labelled.texts, ids, labelled.documents)
    if groups.n_shared:
        warnings.append(
            f"texts that several documents share: {groups.n_shared:,}; these documents are on one side of every split"
        )
    counted = _counted_positions(ids, tokenizer)
    random = np.random.default_rng(seed)
    tasks = []
    for task in labelled.tasks:
        if task.level == "word":
            candidates = _word_candidates(task, tokenized.last_tokens, ids, len(prefix))
        else:
            candidates = _text_candidates(task, ids, counted, pool)
        examples, notes = _select_examples(task, pool, candidates, groups.group, per_class, random)
        tasks.append(examples)
        warnings += notes
    return TokenizedExamples(tuple(ids), tuple(counted), tuple(tasks), tuple(warnings))


class _TokenizedTexts(NamedTuple):
    ids: list[Tensor]
    """Token ids [text][position], truncated to the context."""
    last_tokens: list[list[int | None]]
    """Index of each word's last token [text][word], without the prefix; see `_last_token_of_words`."""
    n_truncated: int
    """Number of texts that were truncated."""


def _tokenize_texts(
    labelled: LabelledText, tokenizer: Tokenizer, prefix: list[int], context_size: int
) -> _TokenizedTexts:
    """Tokenize texts after a prefix, many at a time."""
    ids: list[Tensor] = []
    last_tokens: list[list[int | None]] = []
    n_truncated = 0
    for first in range(0, len(labelled.texts), TEXTS_PER_TOKENIZER_CALL):
        chunk = slice(first, first + TEXTS_PER_TOKENIZER_CALL)
        encodings = tokenizer(list(labelled.texts[chunk]), add_special_tokens=False, verbose=False).encodings
        for text, encoding, word_ends in zip(labelled.texts[chunk], encodings, labelled.ends[chunk], strict=True):
            all_ids = prefix + list(encoding.ids)
            ids.append(torch.tensor(all_ids[:context_size]))
            n_truncated += len(all_ids) > context_size
            last_tokens.append(_last_token_of_words(encoding.offsets, word_ends, text))
    return _TokenizedTexts(ids, last_tokens, n_truncated)


def _tokenization_warnings(tasks: Sequence[LabelTask], tokenized: _TokenizedTexts, context_size: int) -> list[str]:
    """Return what was left out because of how the texts were tokenized."""
    warnings = []
    if tokenized.n_truncated:
        warnings.append(f"texts truncated to {context_size} tokens: {tokenized.n_truncated:,}")
    n_shared = sum(
        last_token is None and any(_has_label(task, text, word) for task in tasks)
        for text, of_text in enumerate(tokenized.last_tokens)
        for word, last_token in enumerate(of_text)
    )
    if n_shared:
        warnings.append(f"words left out because no token ends with them alone: {n_shared:,}")
    return warnings


def _has_label(task: LabelTask, text: int, word: int) -> bool:
    """Return whether a task has a label for a word."""
    labels = None if task.of_words is None else task.of_words[text]
    return labels is not None and labels[word] is not None


def _last_token_of_words(offsets: Sequence[tuple[int, int]], word_ends: tuple[int, ...], text: str) -> list[int | None]:
    """Return the index of each word's last token; None if that token also holds a part of the next word.

    None too for a word that has no token, since the tokenizer removes its characters.

    A byte-level tokenizer may encode one character as several tokens, which all have the span of that character.
    """
    starts = [start for start, _ in offsets]
    last_tokens: list[int | None] = []
    for end_before, end in pairwise((0, *word_ends)):
        token = bisect_left(starts, end) - 1
        ends_with_word = token >= 0 and offsets[token][1] > end_before and not text[end : offsets[token][1]].strip()
        last_tokens.append(token if ends_with_word else None)
    return last_tokens


def _counted_positions(ids: list[Tensor], tokenizer: Tokenizer) -> list[Int64[np.ndarray, " _"]]:
    """Return the positions of each text that a mean is taken over."""
    from sae_lens.util import get_special_token_ids

    special_ids = get_special_token_ids(tokenizer)
    return [1 + np.flatnonzero(~np.isin(text_ids[1:].numpy(), special_ids)) for text_ids in ids]


def _text_candidates(
    task: LabelTask, ids: list[Tensor], counted: list[Int64[np.ndarray, " _"]], pool: Pooling
) -> list[_LabelledToken]:
    """Return the labelled texts that have a token to probe."""
    assert task.of_text is not None
    if pool == "mean":
        positions = [MEAN_POSITION if len(of_text) else None for of_text in counted]
    else:
        positions = [len(text_ids) - 1 if len(text_ids) > 1 else None for text_ids in ids]
    return [
        _LabelledToken(text, position, label)
        for text, (position, label) in enumerate(zip(positions, task.of_text, strict=True))
        if position is not None and label is not None
    ]


def _word_candidates(
    task: LabelTask, last_tokens: list[list[int | None]], ids: list[Tensor], prefix_length: int
) -> list[_LabelledToken]:
    """Return the last tokens of the labelled words, without the first position and truncated words."""
    assert task.of_words is not None
    return [
        _LabelledToken(text, token + prefix_length, label)
        for text, labels in enumerate(task.of_words)
        for token, label in zip(last_tokens[text], labels or (), strict=bool(labels))
        if token is not None and label is not None and 0 < token + prefix_length < len(ids[text])
    ]


def _select_examples(
    task: LabelTask,
    pool: Pooling,
    candidates: list[_LabelledToken],
    documents: tuple[int, ...],
    per_class: int,
    random: np.random.Generator,
) -> tuple[TaskExamples, list[str]]:
    """Select at most `per_class` examples of each class that occurs in enough documents; return warnings with them.

    Args:
        task: the labels.
        pool: which activation of a text is probed.
        candidates: the labelled tokens.
        documents: number of the document of each text.
        per_class: largest number of examples per class.
        random: source of the sample.
    """
    rows_of: dict[str, list[_LabelledToken]] = {}
    for candidate in candidates:
        rows_of.setdefault(candidate.label, []).append(candidate)
    n_documents = {label: len({documents[row.text] for row in rows_of[label]}) for label in sorted(rows_of)}
    classes = _frequent_classes(task.name, n_documents)
    rare = [label for label, n in n_documents.items() if n < MIN_DOCUMENTS_PER_CLASS]
    notes = [_rare_classes_warning(task.name, rare, len(n_documents))] if rare else []
    sampled = [_sample(rows_of[label], per_class, random) for label in classes]
    rows = [row for class_rows in sampled for row in class_rows]
    examples = TaskExamples(
        task=task.name,
        level=task.level,
        pool="word" if task.level == "word" else pool,
        classes=classes,
        text=np.array([row.text for row in rows], dtype=np.int64),
        position=np.array([row.position for row in rows], dtype=np.int64),
        label=np.repeat(np.arange(len(classes)), [len(class_rows) for class_rows in sampled]),
        document=np.array([documents[row.text] for row in rows], dtype=np.int64),
    )
    return examples, notes


def _frequent_classes(task: str, n_documents: Mapping[str, int]) -> tuple[str, ...]:
    """Return the classes that occur in enough documents.

    Raises:
        InputError: fewer than two do.
    """
    classes = tuple(label for label, n in n_documents.items() if n >= MIN_DOCUMENTS_PER_CLASS)
    if len(classes) < 2:
        counts = [f"{label!r} in {n}" for label, n in islice(n_documents.items(), 6)]
        raise InputError(
            f"probing {task!r} needs two classes that occur in at least {MIN_DOCUMENTS_PER_CLASS} documents, got"
            f" {', '.join(counts) or 'none'} (documents that share a text count as one); give more labelled text, or"
            " name another label with --label"
        )
    return classes


def _rare_classes_warning(task: str, rare: list[str], n_classes: int) -> str:
    names = ", ".join(rare[:6]) + (", ..." if len(rare) > 6 else "")
    return (
        f"{task}: {len(rare)} of {n_classes} classes were left out, since they occur in fewer than"
        f" {MIN_DOCUMENTS_PER_CLASS} documents ({names})"
    )


def _sample(rows: list[_LabelledToken], n: int, random: np.random.Generator) -> list[_LabelledToken]:
    """Sample `n` rows without replacement, in their order; return all if there are not more."""
    if len(rows) <= n:
        return rows
    return [rows[i] for i in np.sort(random.choice(len(rows), n, replace=False))]
