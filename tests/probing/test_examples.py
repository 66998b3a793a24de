"""Labelled examples: tokens of words and texts, truncation, and rare classes."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.probes import labelled_rows
from tl_distill_floor.errors import InputError
from tl_distill_floor.probing.examples import MEAN_POSITION, tokenize_examples
from tl_distill_floor.sources.labels import load_labels


def test_words_are_probed_at_their_last_token(tokenizer: Any) -> None:
    labelled = load_labels(labelled_rows(), ["length", "half"])
    examples = tokenize_examples(labelled, tokenizer, context_size=64)
    length, half = examples.tasks
    assert examples.warnings == ()
    assert (length.level, half.level, length.classes, half.classes) == ("word", "text", ("long", "short"), ("0", "1"))
    for text, position, label in zip(length.text, length.position, length.label, strict=True):
        # Tokens that begin with a space begin a word: the last word up to the token must be a labelled word.
        word = tokenizer.decode(examples.ids[text][1 : int(position) + 1]).split(" ")[-1]
        row = labelled_rows()[text]
        assert word in row["words"]
        assert row["length"][row["words"].index(word)] == length.classes[label]
    assert len(length) == sum(label is not None for row in labelled_rows() for label in row["length"])
    assert (half.position == MEAN_POSITION).all()


def test_words_end_at_their_last_byte_and_share_no_token() -> None:
    """Use a tokenizer of bytes with one token for a full stop and a quotation mark together."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(['."'] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    words = ["日本", "café", "a", ".", '"', "b"]
    # The number at the end makes the texts different: documents that share a text count as one.
    rows = [
        {"text": f'日本 café a." b {row}', "words": words, "label": [str(i) for i in range(6)], "kind": str(row % 2)}
        for row in range(12)
    ]
    examples = tokenize_examples(load_labels(rows), tokenizer)
    (ids,) = {tuple(text_ids.tolist()[:18]) for text_ids in examples.ids}
    # <s>, 2 · 3 bytes, a space and 5 bytes, a space and "a", '."', a space and "b".
    assert len(ids) == 1 + 6 + 6 + 2 + 1 + 2
    (task,) = examples.tasks
    assert task.classes == ("0", "1", "2", "4", "5")
    assert sorted(set(task.position.tolist())) == [6, 12, 14, 15, 17]
    assert examples.warnings == ("words left out because no token ends with them alone: 12",)
    # Where texts are labelled, no word is left out.
    assert tokenize_examples(load_labels(rows, ["kind"]), tokenizer).warnings == ()


def test_a_word_that_the_tokenizer_removes_gives_its_label_to_no_other() -> None:
    model = models.WordLevel({"<s>": 0, "a": 1, "b": 2, **{str(row): 3 + row for row in range(6)}}, unk_token="<s>")
    removing = Tokenizer(model)
    removing.normalizer = normalizers.Replace("\u200b", "")
    removing.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=removing, bos_token="<s>")
    rows = [{"words": ["a", "\u200b", "b", str(row)], "label": ["x", "y", "z", None]} for row in range(6)]
    examples = tokenize_examples(load_labels(rows), tokenizer)
    (task,) = examples.tasks
    assert set(zip(task.position.tolist(), task.label.tolist(), strict=True)) == {(1, 0), (2, 1)}
    assert task.classes == ("x", "z")
    assert examples.warnings == ("words left out because no token ends with them alone: 6",)


def test_texts_without_bos_are_one_token_shorter(tokenizer: Any) -> None:
    labelled = load_labels(labelled_rows(), ["length", "half"])
    without_bos = tokenize_examples(labelled, tokenizer, prepend_bos=False)
    with_bos = tokenize_examples(labelled, tokenizer)
    assert [len(ids) + 1 for ids in without_bos.ids] == [len(ids) for ids in with_bos.ids]
    assert without_bos.tasks[0].position.min() > 0


def test_long_texts_are_truncated_and_rare_classes_left_out(tokenizer: Any) -> None:
    rows = labelled_rows()
    rows[0]["length"] = ["once", *rows[0]["length"][1:]]
    examples = tokenize_examples(load_labels(rows, ["length"]), tokenizer, context_size=14)
    assert any("texts truncated to 14 tokens: " in warning for warning in examples.warnings)
    rare = "length: 1 of 3 classes were left out, since they occur in fewer than 5 documents (once)"
    assert rare in examples.warnings
    (task,) = examples.tasks
    assert task.classes == ("long", "short")
    assert task.position.max() < 14
    (sampled,) = tokenize_examples(load_labels(rows, ["length"]), tokenizer, per_class=3).tasks
    assert np.bincount(sampled.label).tolist() == [3, 3]


def test_rejects_a_model_without_a_fast_tokenizer() -> None:
    with pytest.raises(InputError, match="needs a teacher with a fast tokenizer"):
        tokenize_examples(load_labels(labelled_rows(), ["half"]), None)
