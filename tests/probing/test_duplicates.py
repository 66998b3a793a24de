"""Documents that share a text are on one side of every split."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from tests.helpers.models import PROSE
from tl_distill_floor.probing.decodability import EncodedText, _assign_parts
from tl_distill_floor.probing.duplicates import group_documents
from tl_distill_floor.probing.examples import tokenize_examples
from tl_distill_floor.probing.fitting import fit_probes, split_documents
from tl_distill_floor.probing.probe import probe
from tl_distill_floor.sources.labels import load_labels


def unlike_ids(n: int) -> list[torch.Tensor]:
    """Return token ids of n texts that all differ."""
    return [torch.tensor([number]) for number in range(n)]


def test_documents_are_joined_through_any_number_of_shared_texts() -> None:
    """Documents a and b share "one", b and c share "two"; d shares nothing."""
    texts = ["one", "one", "two", " two\n", "three", "four"]
    groups = group_documents(texts, unlike_ids(6), ["a", "b", "b", "c", "c", "d"])
    assert groups.group == (0, 0, 0, 0, 0, 1)
    assert groups.n_shared == 2


def test_case_punctuation_and_spaces_do_not_make_a_text_another() -> None:
    texts = ["Call me Ishmael.", "call  me\nIshmael", "CALL ME ISHMAEL!", "Call me, Ishmael", "Call me", "...", "?!"]
    groups = group_documents(texts, unlike_ids(7), list("abcdefg"))
    assert groups == ((0, 0, 0, 0, 1, 2, 3), 1)


def test_texts_are_equal_if_their_first_tokens_are() -> None:
    """Long texts that differ only where they are truncated give the same activation."""
    ids = [torch.tensor([1, 2]), torch.tensor([1, 2]), torch.tensor([1, 3])]
    assert group_documents(["a b c", "a b d", "a e"], ids, ["x", "y", "z"]) == ((0, 0, 1), 1)


def test_numbers_of_documents_do_not_change_without_duplicates() -> None:
    groups = group_documents(["a", "b", "c", "a"], unlike_ids(4), ["y", "x", "z", "y"])
    assert groups == ((0, 1, 2, 0), 0)


def sentences() -> list[str]:
    """Return 60 different sentences."""
    words = PROSE.split()
    return [" ".join(words[i % 40 : i % 40 + 8]) + f" {i}." for i in range(60)]


def rows_with_copies(copies: int, seed: int) -> list[dict[str, Any]]:
    """Return rows with random labels; every copy of a text is a document of its own, with its text's label."""
    random = np.random.default_rng(seed)
    rows = [{"text": text, "label": str(random.integers(2))} for text in sentences()]
    return [row for row in rows for _ in range(copies)]


def test_no_copy_of_a_text_is_in_two_parts(tokenizer: Any) -> None:
    examples = tokenize_examples(load_labels(rows_with_copies(4, 0)), tokenizer)
    (task,) = examples.tasks
    assert "texts that several documents share: 60; these documents are on one side" in examples.warnings[0]
    for seed in range(3):
        split = split_documents(task, seed)
        parts = [{tuple(examples.ids[task.text[i]].tolist()) for i in part} for part in split]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


def test_random_labels_of_copied_texts_are_not_decodable(bridge: Any, tokenizer: Any) -> None:
    """With copies in the training part, a probe would recognise each text of the test part."""
    hook = "blocks.1.hook_resid_post"
    auroc = [
        np.mean(probe(bridge, hook, rows_with_copies(6, seed), label="label", context_size=32, seed=seed).auroc)
        for seed in range(4)
    ]
    assert abs(np.mean(auroc) - 0.5) < 0.08
    # Where the documents are not joined, the same probes succeed.
    examples = tokenize_examples(load_labels(rows_with_copies(6, 0)), tokenizer)
    (task,) = examples.tasks
    apart = np.arange(len(task), dtype=np.int64)
    x = np.eye(60)[np.unique(task.document, return_inverse=True)[1]]
    scores = fit_probes(x, type(task)(**{**vars(task), "document": apart}), n_splits=2)
    assert np.mean(scores.auroc) > 0.95


def test_copies_of_a_sequence_are_in_one_part_of_the_text_that_features_are_decoded_from() -> None:
    ids = torch.arange(20).view(10, 2).repeat(3, 1)
    counted = np.tile([False, True], (30, 1))
    part = _assign_parts(EncodedText(ids, counted, csr_array((30, 1)), np.arange(30)), 0)
    assert (part[:10] == part[10:20]).all()
    assert (part[:10] == part[20:]).all()
    assert sorted(set(part.tolist())) == [0, 1, 2, 3, 4]
