"""Tests of batches for a Trainer: where padding is, and which positions are counted."""

import copy
from typing import Any

import pytest
import torch

from tests.helpers.models import VOCABULARY
from tl_distill_floor.distilling.hf_trainer.collator import DistillationCollator, following_tokens
from tl_distill_floor.distilling.hf_trainer.sequence_limits import SequenceLimits
from tl_distill_floor.errors import InputError

ROWS = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]


def test_rows_of_different_lengths_are_padded_and_padding_is_not_counted() -> None:
    batch = DistillationCollator(10)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    # The position of 5 predicts 6, that of 6 predicts 7, that of 8 predicts 9.
    assert following_tokens(batch["labels"]).tolist() == [[6, 7, -100], [9, -100, -100]]


def test_left_padding_is_moved_to_the_right_with_its_labels() -> None:
    rows = [{"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, 5, -100]}]
    batch = DistillationCollator(10)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100]]


def test_labels_of_a_given_collator_are_kept() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([[1, -100, 3, 4]])}
    prepared = DistillationCollator(10, lambda _rows: batch)(ROWS)
    assert prepared["labels"].tolist() == [[-100, -100, 3, 4]]


def test_the_tokenizer_of_a_given_collator_is_kept() -> None:
    """The Trainer saves it with the model."""
    from transformers import DataCollatorForLanguageModeling

    class PaddingTokenizer:
        """A tokenizer with a padding token, as far as the collator checks it."""

        pad_token = "<pad>"
        mask_token = None

    tokenizer = PaddingTokenizer()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert DistillationCollator(10, collator).tokenizer is tokenizer


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "the dataset has text, and no input_ids; tokenize it"),
        ([{"input_ids": [5, 10]}], "token ids from 5 to 10, and the teacher's vocabulary ends at 9"),
        (
            [{"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}],
            "an attention_mask hides tokens between others; remove these tokens",
        ),
        ([{"input_ids": [5, 6], "attention_mask": [0.0, -1e9]}], "as if it were added to attention scores"),
        ([{"input_ids": [5, 6], "position_ids": [0, 0], "attention_mask": [1, 1]}], "a row holds several documents"),
        ([{"input_ids": [5, 6], "seq_lengths": [1, 1]}], "a row holds several documents"),
        ([{"input_ids": [5, 6], "attention_mask": [1, 2]}], "numbers the documents of packed rows"),
        ([{"input_ids": [5, 6], "labels": [5, 6, 7]}], "a row has 2 input_ids and 3 labels, which must be as many"),
        (
            [{"input_ids": [5, 6], "labels": [5]}, {"input_ids": [5, 6], "labels": [5, 6]}],
            "a row has 2 input_ids and 1 labels",
        ),
        ([{"input_ids": [5, 6], "attention_mask": [1]}, *ROWS], "a row has 2 input_ids and 1 attention_mask"),
        ([{"input_ids": [[5, 6]]}], r"input_ids of a row have the shape \(1, 2\), and a row must be one sequence"),
        ([{"input_ids": [5.0, 6.0]}], "input_ids of a row must be integers, got torch.float32"),
        ([{"input_ids": [5, 6], "labels": [5, 10]}], "labels other than -100 from 10 to 10, and the .* ends at 9"),
        ([{"input_ids": [5, 6], "labels": [5, -1]}], "labels other than -100 from -1 to -1"),
    ],
)
def test_rejects_rows_that_cannot_be_used(rows: list[dict[str, list[int]]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DistillationCollator(10)(rows)


def test_rejects_batches_with_other_inputs() -> None:
    """Positions of packed sequences would be ignored."""
    batch = {"input_ids": torch.tensor([[1, 2]]), "position_ids": torch.tensor([[0, 0]])}
    with pytest.raises(InputError, match="a batch has input_ids, position_ids, and a DistillationTrainer reads"):
        DistillationCollator(10, lambda _rows: batch)(ROWS)


@pytest.fixture
def masking_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer with a padding token and a mask token."""
    copied = copy.deepcopy(tokenizer)
    copied.pad_token, copied.mask_token = "a", "b"
    return copied


def test_rejects_collators_that_mask_tokens(masking_tokenizer: Any) -> None:
    """One that is wrapped is known by the labels of its batches, which are the tokens that it masked."""
    from transformers import DataCollatorForLanguageModeling

    rows = [{"input_ids": list(range(100, 140))}, {"input_ids": list(range(140, 180))}]
    for options in ({}, {"mask_replace_prob": 0.0, "random_replace_prob": 1.0}):
        masks = DataCollatorForLanguageModeling(masking_tokenizer, seed=0, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"DataCollatorForLanguageModeling masks tokens \(mlm=True\).* mlm=False"):
            DistillationCollator(VOCABULARY, masks)
        wrapped = DistillationCollator(VOCABULARY, lambda features, masks=masks: masks(features))
        with pytest.raises(InputError, match=r"labels of a batch differ from its token ids, such as 1\d\d at a token"):
            wrapped(rows)
    plain = DataCollatorForLanguageModeling(masking_tokenizer, mlm=False)
    batch = DistillationCollator(VOCABULARY, plain)(rows)
    assert batch["input_ids"].tolist() == [row["input_ids"] for row in rows]


def test_rejects_collators_of_permuted_and_of_corrupted_text(masking_tokenizer: Any) -> None:
    from transformers import DataCollatorForPermutationLanguageModeling

    rows = [{"input_ids": list(range(100, 140))}, {"input_ids": list(range(140, 180))}]
    permutes = DataCollatorForPermutationLanguageModeling(masking_tokenizer)
    with pytest.raises(InputError, match="a batch has input_ids, perm_mask, target_mapping, labels, and a Distill"):
        DistillationCollator(VOCABULARY, permutes)(rows)
    # Spans are replaced by one sentinel each; the labels are the sentinels and the spans.
    spans = {"input_ids": torch.tensor([[100, 9, 103, 104]]), "labels": torch.tensor([[9, 101, 102, 8, 1]])}
    with pytest.raises(InputError, match=r"have shapes \(1, 4\), \(1, 4\), \(1, 5\), which must be equal"):
        DistillationCollator(VOCABULARY, lambda _rows: spans)(rows)


@pytest.mark.parametrize(
    ("labels", "example"), [([6, 7, 8, -100], "7 at a token 6"), ([-100, -100, 4, 8], "4 at a token 7")]
)
def test_rejects_labels_of_other_tokens(labels: list[int], example: str) -> None:
    """Shifted labels are those of the next token, which the loss takes itself."""
    with pytest.raises(InputError, match=f"labels of a batch differ from its token ids, such as {example}, so"):
        DistillationCollator(10)([{"input_ids": [5, 6, 7, 8], "labels": labels}])


def test_refuses_rows_that_a_model_cannot_read_but_not_their_padding() -> None:
    """A mask that hides what is too long makes a row short."""
    collator = DistillationCollator(10)
    collator.limits = {"teacher": SequenceLimits(4), "student": SequenceLimits(3), "other": SequenceLimits(None)}
    with pytest.raises(InputError, match="the student reads sequences of 2 to 3 tokens, got 4 in a row of the dataset"):
        collator([{"input_ids": [1, 2, 3, 4]}])
    with pytest.raises(InputError, match="the teacher reads sequences of 2 to 4 tokens, got 5 in a row"):
        collator([{"input_ids": [1]}, {"input_ids": [1, 2, 3, 4, 5]}])
    batch = collator([{"input_ids": [0, 0, 0, 1, 2], "attention_mask": [0, 0, 0, 1, 1]}])
    assert batch["input_ids"].tolist() == [[1, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 2, -100]]
