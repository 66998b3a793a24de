"""Rows and objects that could be read in two ways: read by what lies next to them, or refused by name."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.models import CONTEXT, PROSE
from tests.sources.test_text_objects import sequences, token_ids
from tl_distill_floor import InputError, load_labels, load_text

PAD = 1
"""A token that the tokenizer does not pad with."""


@pytest.fixture
def padding_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer that pads with its beginning-of-sequence token, as TransformerLens sets up GPT-2's."""
    padding = copy.deepcopy(tokenizer)
    padding.pad_token = padding.bos_token
    return padding


def rows_of_prose(tokenizer: Any, n_rows: int) -> list[list[int]]:
    """Return rows of token ids that begin with the beginning-of-sequence token."""
    return sequences(PROSE * 9, tokenizer)[:n_rows].tolist()


def test_a_row_that_continues_a_document_takes_the_first_token_from_no_other(padding_tokenizer: Any) -> None:
    rows = rows_of_prose(padding_tokenizer, 9)
    rows[5] = [*rows[5][1:], 7]
    assert sequences(torch.tensor(rows), padding_tokenizer).tolist() == rows
    with pytest.raises(InputError, match="some of 6 rows of token ids begin with token 0, which pads rows and begins"):
        load_text(torch.tensor(rows[:6]), padding_tokenizer)


def test_rows_padded_on_the_left_lose_their_padding(padding_tokenizer: Any) -> None:
    ids = token_ids(padding_tokenizer, ["the whale", "a ship sailed", "sea"])
    longest = max(map(len, ids))
    rows = [[0] * (longest - len(row)) + row for row in ids]
    read = sequences(torch.tensor(rows), padding_tokenizer).tolist()
    assert [[token for token in row if token >= 0] for row in read] == ids


@pytest.mark.parametrize("n_full", [70, 130])
def test_padding_that_begins_after_many_rows_is_refused(n_full: int, tokenizer: Any) -> None:
    full = rows_of_prose(tokenizer, 9) * 20
    padded = [[*row[:6], *[PAD] * (CONTEXT - 6)] for row in full]
    text = Dataset.from_list([{"input_ids": row} for row in full[:n_full] + padded[:70]])
    with pytest.raises(InputError, match="rows seem to be padded with token 1"):
        sequences(text, tokenizer)


@pytest.mark.parametrize("n_rows", [5, 100])
def test_the_last_row_may_be_shorter(n_rows: int, tokenizer: Any) -> None:
    rows = (rows_of_prose(tokenizer, 9) * 20)[:n_rows]
    read = sequences([*rows, rows[0][:9]], tokenizer).tolist()
    assert read == [*rows, [*rows[0][:9], *[-1] * (CONTEXT - 9)]]


@pytest.mark.parametrize("kind", ["dataset", "loader", "pairs", "lists", "arrays", "pair of batches"])
def test_an_attention_mask_without_a_name_is_refused(kind: str, tokenizer: Any) -> None:
    ids = torch.tensor(rows_of_prose(tokenizer, 4))
    mask = torch.ones_like(ids)
    texts: dict[str, Any] = {
        "dataset": TensorDataset(ids, mask),
        "loader": DataLoader(TensorDataset(ids, mask), batch_size=2),
        "pairs": list(zip(ids, mask, strict=True)),
        "lists": [[row, [1] * CONTEXT] for row in ids.tolist()],
        "arrays": [np.stack([row, np.ones(CONTEXT, dtype=int)]).tolist() for row in ids.numpy()],
        "pair of batches": (ids, mask),
    }
    with pytest.raises(InputError, match=r'"attention_mask": \.\.\.\}'):
        sequences(texts[kind], tokenizer)
    named = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(sequences(named, tokenizer), ids)
    assert torch.equal(sequences(DataLoader(TensorDataset(ids), batch_size=2), tokenizer), ids)


@pytest.mark.parametrize("item", [("a whale", "positive"), ("a whale", 1), [("a", 1)], ["a whale", 1], ["a", None]])
def test_texts_with_labels_that_have_no_names_are_refused(item: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"every row must look like|a tuple, whose parts have no names"):
        sequences([item] * 3, tokenizer)


def test_a_list_of_files_is_read_file_after_file(tmp_path: Path, tokenizer: Any) -> None:
    files = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for file, text in zip(files, (PROSE, PROSE[40:]), strict=True):
        file.write_text(text, encoding="utf-8")
    expected = sequences([PROSE, PROSE[40:]], tokenizer)
    for paths in (files, tuple(files), [str(file) for file in files]):
        assert torch.equal(sequences(paths, tokenizer), expected)
    assert load_text(files, tokenizer).name == "2 files, first.txt to second.txt"
    with pytest.raises(InputError, match="there is no text file at"):
        load_text([*files, tmp_path / "third.txt"], tokenizer)
    with pytest.raises(InputError, match="files and other items"):
        load_text([*files, "a text"], tokenizer)


def test_texts_that_begin_like_paths_are_texts(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whales").mkdir()
    monkeypatch.chdir(tmp_path)
    texts = ["/r/whales is about whales", "whales", "~ 3 ships, see log.txt", PROSE]
    assert torch.equal(sequences(texts, tokenizer), sequences(Dataset.from_dict({"text": texts}), tokenizer))


@pytest.mark.parametrize(
    "content", ["text\nA whale, white\nA ship\n", "id,text\n1,A whale, white\n2,A ship\n"], ids=["one", "two"]
)
def test_rows_of_a_csv_file_with_more_fields_than_its_header_are_refused(
    content: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "table.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="more fields than its header; put a text with the separator in it in double"):
        sequences(file, tokenizer)


@pytest.mark.parametrize(
    "rows", ['"Call me,x\nIshmael,y\n"Emma was rich,x\n', '"Call" me Ishmael,x\n', 'a,x\n"Call me,y\n'],
    ids=["two", "within", "one"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rows_that_a_stray_quote_would_join_are_refused(rows: str, suffix: str, tmp_path: Path, tokenizer: Any) -> None:
    """pandas reads the first rows as one, whose text holds the label of another."""
    file = tmp_path / f"table{suffix}"
    content = f"text,label\n{rows}"
    file.write_text(content if suffix == ".csv" else content.replace(",", "\t"), encoding="utf-8")
    with pytest.raises(InputError, match=r"up to line \d\); put a text that begins with a double quote in"):
        sequences(file, tokenizer)


def test_quotes_and_short_rows_of_a_csv_file_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text('text,label,label\nhe said "no",x,y\n\n"""A"" b,\nc",,z\nd\n', encoding="utf-8")
    labelled = load_labels(file, ["label", "label.1"])
    assert labelled.texts == ('he said "no"', '"A" b,\nc', "d")
    assert [task.of_text for task in labelled.tasks] == [("x", None, None), ("y", "z", None)]


def test_line_ends_in_a_cell_of_a_csv_file_are_kept(tmp_path: Path) -> None:
    """As pandas and the library `datasets` keep them, whatever ends the rows."""
    file = tmp_path / "table.csv"
    file.write_bytes(b'text,label\r\n"Call me\r\nIshmael",a\r\nEmma\r\n')
    assert load_labels(file).texts == ("Call me\r\nIshmael", "Emma")


def test_an_empty_text_of_a_csv_file_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    """As in a .jsonl file: texts such as Wikipedia's have empty lines."""
    whale, ship = (" ".join([f"A white {word}"] * 20) for word in ("whale", "ship"))
    file = tmp_path / "table.csv"
    file.write_text(f'text\n{whale}\n""\n{ship}\n', encoding="utf-8")
    assert torch.equal(sequences(file, tokenizer), sequences([whale, ship], tokenizer))


def test_empty_last_fields_of_a_csv_file_are_ignored(tmp_path: Path, tokenizer: Any) -> None:
    text = PROSE[:200].replace(",", "").replace("\n", " ")
    file = tmp_path / "table.csv"
    file.write_text(f"text,label\n{text},good,\n{text},bad,\n", encoding="utf-8")
    assert torch.equal(sequences(file, tokenizer), sequences([text] * 2, tokenizer))


def conversation(content: Any, **fields: Any) -> list[dict[str, Any]]:
    """Return a conversation of one message that is long enough for a sequence."""
    return [{"role": "user", "content": content} | fields]


@pytest.mark.parametrize("reads_parts", [False, True])
def test_parts_of_a_message_are_joined(reads_parts: bool, tokenizer: Any) -> None:
    chat_tokenizer = copy.deepcopy(tokenizer)
    parts = "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    content = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + parts + "{% endif %}"
    chat_tokenizer.chat_template = (
        "{% for m in messages %}" + (content if reads_parts else "{{ m['content'] }}") + "{% endfor %}"
    )
    given = conversation([{"type": "text", "text": PROSE}])
    assert torch.equal(sequences([given], chat_tokenizer), sequences([PROSE], tokenizer))


@pytest.mark.parametrize("content", [None, 3, [{"type": "image", "url": "x"}], [{"type": "text", "text": None}]])
def test_messages_without_text_are_refused(content: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="message of the role 'user' whose content is not text"):
        sequences([conversation(content)], tokenizer)
