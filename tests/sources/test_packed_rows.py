"""Rows of token ids that hold several documents: they are split where their other columns say so, or refused."""

from itertools import chain
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import CONTEXT
from tl_distill_floor import InputError, load_text
from tl_distill_floor.sources.packed_rows import documents_of_token_rows

IDS = [5, 6, 7, 8, 9]
SPLIT = [[5, 6, 7], [8, 9]]
DOCUMENTS = [[3 + (7 * i + j) % 50 for j in range(length)] for i, length in enumerate((30, 11, 64, 5, 42, 19, 33))]


def documents(**columns: Any) -> list[list[int]]:
    """Return the token ids of each document."""
    return [document.ids.tolist() for document in documents_of_token_rows(columns, "row 1")]


def sequences(text: Any, tokenizer: Any) -> torch.Tensor:
    """Return all sequences of a text."""
    return torch.stack(list(load_text(text, tokenizer, context_size=CONTEXT).read()))


@pytest.mark.parametrize(
    "columns",
    [
        {"position_ids": [0, 1, 2, 0, 1]},
        {"position_ids": torch.tensor([0, 1, 2, 0, 1]), "attention_mask": torch.ones(5)},
        {"attention_mask": [1, 1, 1, 2, 2]},
        {"seq_lengths": [3, 2]},
        {"seq_lengths": [3, 0, 2], "position_ids": [0, 1, 2, 0, 1]},
    ],
)
def test_a_packed_row_is_split(columns: dict[str, Any]) -> None:
    assert documents(input_ids=IDS, **columns) == SPLIT
    of_batch = {name: [values] if isinstance(values, list) else values[None] for name, values in columns.items()}
    assert documents(input_ids=[IDS], **of_batch) == SPLIT


@pytest.mark.parametrize(
    "columns",
    [{"position_ids": [0, 1, 2, 3, 4]}, {"position_ids": [[0, 1, 2, 3, 4]]}, {"attention_mask": [True] * 5}, {}],
)
def test_rows_of_one_document_are_not_split(columns: dict[str, Any]) -> None:
    assert documents(input_ids=[IDS, IDS], **columns | _twice(columns, "attention_mask")) == [IDS, IDS]


def _twice(columns: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: [columns[name]] * 2} if name in columns else {}


def test_padding_stays_with_its_document() -> None:
    left = {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "position_ids": [1, 1, 0, 1]}
    right = {"input_ids": IDS, "attention_mask": [1, 1, 2, 0, 0], "position_ids": [0, 1, 0, 0, 0]}
    masks: list[Any] = [document.mask for columns in (left, right) for document in documents_of_token_rows(columns)]
    assert documents(**left) == [[0, 0, 5, 6]]
    assert documents(**right) == [[5, 6], [7, 8, 9]]
    assert [mask.int().tolist() for mask in masks] == [[0, 0, 1, 1], [1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"position_ids": [3, 4, 5, 6, 7]}, "row 1: position_ids do not count from 0 in every document"),
        ({"position_ids": [0, 1, 2, 5, 6]}, "do not count from 0 in every document"),
        ({"position_ids": [0, 1, 2, 0, 0]}, "0 at two neighbouring tokens, which may be padding; .* attention_mask"),
        ({"position_ids": [0, 1, 2]}, r"position_ids have the shape \(3,\), the token ids \(5,\)"),
        ({"position_ids": [[0, 1, 2, 3, 4]] * 2}, "there are 2 rows of position_ids for 1 rows of token ids"),
        (
            {"seq_lengths": [3, 3]},
            "row 1: the documents of seq_lengths have 6 tokens together, and the row has 5 token ids",
        ),
        ({"cu_seq_lens": [0, 3, 6]}, "row 1: the documents of cu_seq_lens have 6 tokens together"),
        ({"segment_ids": [0, 0, 1]}, "row 1: segment_ids has 3 values for 5 token ids; give one for each id"),
        ({"attention_mask": [0.0, 0.0, 0.0, -1e9, -1e9]}, "as if it were added to attention scores"),
        ({"attention_mask": [1.0, 1.0, 1.0, 0.5, 0.0]}, "must have 1 at tokens and 0 at padding"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        documents(input_ids=IDS, **columns)


def test_a_packed_dataset_gives_the_sequences_of_its_documents(tokenizer: Any) -> None:
    """Rows of 102 tokens, as TRL and transformers pack them, have one length and are no sequences of their own."""
    parts = [[*DOCUMENTS[:2], DOCUMENTS[2][:61]], [DOCUMENTS[2][61:], *DOCUMENTS[3:]]]
    packed = [list(chain(*of_row)) for of_row in parts]
    lengths = [[len(part) for part in of_row] for of_row in parts]
    assert [len(row) for row in packed] == [102, 102]
    expected = sequences([*parts[0], *parts[1]], tokenizer)
    positions = [[i for length in of_row for i in range(length)] for of_row in lengths]
    numbers = [[n for n, length in enumerate(of_row) for _ in range(length)] for of_row in lengths]
    boundaries = [[sum(of_row[:n]) for n in range(len(of_row) + 1)] for of_row in lengths]
    for column in (
        {"seq_lengths": lengths},
        {"seq_lens": lengths},
        {"position_ids": positions},
        {"segment_ids": numbers},
        {"seq_idx": numbers},
        {"cu_seq_lens_q": boundaries},
    ):
        dataset = Dataset.from_dict({"input_ids": packed, "labels": packed} | column)
        assert torch.equal(sequences(dataset, tokenizer), expected)
        assert torch.equal(sequences(dataset.to_iterable_dataset(), tokenizer), expected)


@given(st.lists(st.integers(2, 6), min_size=1, max_size=5))
def test_the_documents_of_a_row_are_the_row(lengths: list[int]) -> None:
    ids = list(range(10, 10 + sum(lengths)))
    positions = [i for length in lengths for i in range(length)]
    numbers = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
    parts = documents(input_ids=ids, position_ids=positions)
    assert [len(part) for part in parts] == lengths
    assert list(chain(*parts)) == ids
    assert documents(input_ids=ids, attention_mask=numbers) == documents(input_ids=ids, seq_lengths=lengths) == parts
