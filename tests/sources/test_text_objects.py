"""Texts as files of rows, datasets and objects in memory: each gives the same sequences, or is refused by name."""

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from tests.helpers.models import CONTEXT, PROSE
from tl_distill_floor import InputError, load_text
from tl_distill_floor.sources.items import items_digest
from tl_distill_floor.sources.packing import Packing
from tl_distill_floor.sources.tables import open_table_file, split_of_path

DOCUMENTS = [PROSE, "Whales are large. " * 9, PROSE[40:], "The ship sailed on the sea, and the captain was glad. " * 4]
BOS = 0


def expected_rows(documents: list[list[int]], separator: int | None = BOS, bos: int | None = BOS) -> torch.Tensor:
    """Pack token ids by hand: every row begins with `bos`, and `separator` is between documents within a row."""
    rows, row = [], []
    for ids in documents:
        for token in ([separator] if row and separator is not None else []) + ids:
            row = row or ([] if bos is None else [bos])
            row.append(token)
            if len(row) == CONTEXT:
                rows.append(row)
                row = []
    return torch.tensor(rows)


def token_ids(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    """Tokenize documents without special tokens."""
    return [tokenizer(document, add_special_tokens=False)["input_ids"] for document in documents]


def sequences(text: Any, tokenizer: Any, **options: Any) -> torch.Tensor:
    """Return all sequences of a text."""
    return torch.stack(list(load_text(text, tokenizer, context_size=CONTEXT, **options).read()))


def save_table(suffix: str, directory: Path) -> Path:
    """Write the documents as a file with a suffix."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, table = directory / f"table{suffix}", pa.table({"id": list(range(4)), "text": DOCUMENTS})
    jsonl = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS)
    if suffix == ".parquet":
        pq.write_table(table, file)
    elif suffix in (".arrow", ".Arrow"):
        opener = pa.ipc.new_stream if suffix == ".arrow" else pa.ipc.new_file
        with opener(str(file), table.schema) as writer:
            writer.write_table(table)
    elif suffix in (".csv", ".TSV"):
        pd.DataFrame({"id": 1, "text": DOCUMENTS}).to_csv(file, index=False, sep="\t" if suffix == ".TSV" else ",")
    elif suffix == ".json":
        file.write_text(json.dumps([{"text": document} for document in DOCUMENTS]))
    elif suffix == ".JSONL.GZ":
        file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + jsonl.encode()))
    else:
        file.write_bytes(b"\xef\xbb\xbf" + jsonl.encode())
    return file


def save_dataset(directory: Path) -> Path:
    """Save the documents with `save_to_disk`."""
    Dataset.from_dict({"score": [0.5] * 4, "text": DOCUMENTS}).save_to_disk(directory / "saved")
    return directory / "saved"


def save_splits(directory: Path) -> str:
    """Save two splits with `save_to_disk`, and return the name of the one that holds the documents."""
    other = Dataset.from_dict({"text": ["other"]})
    DatasetDict({"a": Dataset.from_dict({"text": DOCUMENTS}), "b": other}).save_to_disk(directory / "splits")
    return f"{directory / 'splits'}:a"


def data_frame(_directory: Path) -> Any:
    """Return the documents as a data frame."""

    return pd.DataFrame({"text": DOCUMENTS, "label": [1.0, float("nan"), 2.0, 3.0]})


SOURCES: dict[str, Callable[[Path], Any]] = {
    "list": lambda _: list(DOCUMENTS),
    "tuple": lambda _: tuple(DOCUMENTS),
    "rows": lambda _: [{"text": document} for document in DOCUMENTS],
    "generator": lambda _: (document for document in DOCUMENTS),
    "generator of rows": lambda _: ({"text": document} for document in DOCUMENTS),
    "data loader": lambda _: torch.utils.data.DataLoader(DOCUMENTS, batch_size=2),  # type: ignore[arg-type]
    "Dataset": lambda _: Dataset.from_dict({"text": DOCUMENTS, "input_ids": [[1], [2], [3], [4]]}),
    "Dataset in another format": lambda _: Dataset.from_dict({"text": DOCUMENTS}).with_format("numpy"),
    "DatasetDict": lambda _: DatasetDict({"validation": Dataset.from_dict({"text": DOCUMENTS})}),
    "streamed": lambda _: Dataset.from_dict({"text": DOCUMENTS}).to_iterable_dataset(),
    "data frame": data_frame,
    "column": lambda directory: data_frame(directory)["text"],
    "array": lambda directory: data_frame(directory)["text"].to_numpy(),
    "saved": save_dataset,
    "saved split": save_splits,
    "name of a saved dataset": lambda directory: str(save_dataset(directory)),
} | {
    suffix: lambda directory, suffix=suffix: save_table(suffix, directory)  # type: ignore[misc]
    for suffix in (".parquet", ".arrow", ".Arrow", ".csv", ".TSV", ".json", ".jsonl", ".JSONL.GZ")
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_gives_the_same_sequences_in_every_pass(source: str, tmp_path: Path, tokenizer: Any) -> None:
    text = load_text(SOURCES[source](tmp_path), tokenizer, context_size=CONTEXT)
    expected = expected_rows(token_ids(tokenizer, DOCUMENTS))
    for _ in range(2):
        assert torch.equal(torch.stack(list(text.read())), expected)


def test_token_ids_that_are_saved_with_log_probabilities_are_no_cache_of_activations(tmp_path: Path) -> None:
    """A teacher's log-probabilities [position, 2] are saved next to its text, to distil from them later."""
    ids = [[5, 6, 7]] * 4
    Dataset.from_dict({"input_ids": ids, "logprobs": [[[-0.5, -1.5]] * 3] * 4}).save_to_disk(tmp_path)
    assert torch.stack(list(load_text(tmp_path, None).read())).tolist() == ids


def test_only_the_columns_of_interest_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    """Others, such as embeddings, take much longer than texts. Without any of interest, the error names them all."""
    table = open_table_file(save_table(".parquet", tmp_path))
    assert table is not None
    assert [row for _, row in table.read(("messages", "text"))] == [{"text": document} for document in DOCUMENTS]
    assert next(table.read(("messages",)))[1] == {"id": 0, "text": DOCUMENTS[0]}


def test_a_string_is_a_text_unless_such_a_file_exists(tmp_path: Path, tokenizer: Any) -> None:
    assert torch.equal(sequences(PROSE, tokenizer), expected_rows(token_ids(tokenizer, [PROSE])))
    file = tmp_path / "a name with spaces"
    file.write_text("x")
    with pytest.raises(InputError, match=r"is neither \.txt nor \.jsonl"):
        load_text(str(file), tokenizer)
    capital = tmp_path / "PROSE.TXT"
    capital.write_bytes(b"\xef\xbb\xbf" + PROSE.encode())
    assert torch.equal(sequences(str(capital), tokenizer), expected_rows(token_ids(tokenizer, [PROSE])))


@pytest.mark.parametrize(
    "path",
    [
        "/data/my text", "./text", "~/text", "my prose.txt", "rows.PARQUET", "C:\\texts\\a", "tests/no such/a b",
        "hf://datasets/owner/name", "https://example.org/prose",
    ],
)  # fmt: skip
def test_rejects_a_string_that_looks_like_a_path_to_no_file(path: str, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=f"there is no text file at {re.escape(path)};"):
        load_text(path, tokenizer)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int16", "int64"])
def test_token_ids_of_every_integer_type_are_read(dtype: str, tmp_path: Path, tokenizer: Any) -> None:
    ids = np.arange(1, 1 + 3 * CONTEXT, dtype=dtype).reshape(3, CONTEXT)
    ids.tofile(tmp_path / "ids.bin")
    on_disk = np.memmap(tmp_path / "ids.bin", dtype=dtype, mode="r", shape=ids.shape)
    for rows in (ids, on_disk, torch.as_tensor(ids), list(ids), [{"input_ids": row} for row in ids]):
        assert torch.equal(sequences(rows, tokenizer), torch.as_tensor(ids).long())


def test_spaces_before_a_list_of_json_are_skipped(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n  " + json.dumps([{"text": document} for document in DOCUMENTS], indent=2))
    assert torch.equal(sequences(file, tokenizer), expected_rows(token_ids(tokenizer, DOCUMENTS)))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_rejects_an_empty_text(text: str, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="the text is empty"):
        load_text(text, tokenizer)


def test_rejects_several_splits_by_name(tmp_path: Path, tokenizer: Any) -> None:
    directory = save_splits(tmp_path).removesuffix(":a")
    with pytest.raises(InputError, match=r"has several splits: a, b; give one of them as .*splits:SPLIT"):
        load_text(directory, tokenizer)
    with pytest.raises(InputError, match="has no split 'c', but a, b"):
        load_text(f"{directory}:c", tokenizer)
    with pytest.raises(
        InputError, match=r"the DatasetDict has several splits: a, b; give one of them as text\[SPLIT\]"
    ):
        load_text(DatasetDict({"a": Dataset.from_dict({}), "b": Dataset.from_dict({})}), tokenizer)
    with pytest.raises(InputError, match="holds one dataset without splits"):
        load_text(f"{save_dataset(tmp_path)}:train", tokenizer)


def test_reads_a_stream_only_as_far_as_it_is_needed(tokenizer: Any) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield PROSE

    text = load_text(endless(), tokenizer, context_size=CONTEXT)
    first, second = (torch.stack(list(itertools.islice(text.read(), 500))) for _ in range(2))
    assert torch.equal(first, second)
    assert len(read) == len(set(read)) < 500


def test_rejects_a_stream_that_was_read_before_or_fails(tokenizer: Any) -> None:
    generator = iter([PROSE])
    list(generator)
    with pytest.raises(InputError, match="holds nothing, or it was read before"):
        load_text(generator, tokenizer)

    def failing() -> Iterator[str]:
        yield PROSE
        raise KeyError("lost")

    with pytest.raises(InputError, match="the generator fails after 1 items"):
        load_text(failing(), tokenizer)


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_missing_text_is_left_out(missing: object, tokenizer: Any) -> None:
    whale, ship = (" ".join([f"A white {word}"] * 20) for word in ("whale", "ship"))
    rows = [{"text": whale}, {"text": missing}, {"text": ship, "messages": None}]
    assert torch.equal(sequences(rows, tokenizer), sequences([whale, ship], tokenizer))
    assert torch.equal(sequences(pd.DataFrame(rows), tokenizer), sequences([whale, ship], tokenizer))


@pytest.mark.parametrize("column", [tuple, np.array, pd.Series], ids=["tuple", "array", "series"])
def test_a_column_of_texts_may_be_any_sequence(column: Callable[[list[str]], Any], tokenizer: Any) -> None:
    texts = [" ".join([f"A white {word}"] * 20) for word in ("whale", "ship")]
    assert torch.equal(sequences({"text": column(texts)}, tokenizer), sequences(texts, tokenizer))


@pytest.mark.parametrize("suffix", [".zst", ".xz", ".bz2"])
def test_says_which_compression_is_read(suffix: str, tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / f"rows.jsonl{suffix}"
    file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"is compressed, and only \.gz is read; decompress it"):
        sequences(file, tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([{"content": "a"}], r"has no text \(its columns are content\)"),
        ({"train": ["a"]}, r"has no text \(its columns are train\)"),
        ([None], "is NoneType, not a text"),
        (b"bytes", "got bytes"),
        (["a\0b"], "holds NUL bytes"),
        ([{"conversations": [{"from": "human", "value": "Hi"}]}], "rename their fields"),
        ([{"messages": [{"role": "user", "content": "Hi"}]}], "has no chat template"),
    ],
)
def test_rejects_objects_that_hold_no_text(text: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=message):
        sequences(text, tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Whales".encode("utf-16"), "UTF-16"),
        ("a.csv", b'text\n"open', "not a readable .csv file"),
        ("a.csv", b"words\nWhales\n", "its columns are words"),
        ("a.parquet", b"PAR1 no parquet", "not a readable .parquet file|cannot be read"),
        ("a.arrow", b"no arrow", "not a readable .arrow file|cannot be read"),
        ("a.json", b"[1, 2]", "row 1 is int"),
        ("a.json", b"[{]", "is not JSON"),
    ],
)
def test_rejects_damaged_tables(name: str, content: bytes, message: str, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        sequences(tmp_path / name, tokenizer)


def test_reads_long_cells_of_a_csv_file(tmp_path: Path, tokenizer: Any) -> None:
    document = 'A "quoted" line,\nand another. ' * 8000
    file = tmp_path / "long.csv"
    quoted = document.replace('"', '""')
    file.write_text(f'text\n"{quoted}"\n')
    assert torch.equal(sequences(file, tokenizer), expected_rows(token_ids(tokenizer, [document])))


def test_conversations_follow_the_chat_template(tokenizer: Any) -> None:
    from copy import deepcopy

    chatting = deepcopy(tokenizer)
    chatting.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    chats = [[{"role": "user", "content": PROSE}, {"role": "assistant", "content": "Yes. " * 20}]] * 3
    rendered = [f"<user>{PROSE}\n<assistant>{'Yes. ' * 20}\n"] * 3
    expected = expected_rows(token_ids(tokenizer, rendered))
    for text in ([{"messages": chat} for chat in chats], chats, Dataset.from_dict({"messages": chats})):
        assert torch.equal(sequences(text, chatting), expected)
    assert torch.equal(sequences(chats[0], chatting), expected_rows(token_ids(tokenizer, rendered[:1])))
    chatting.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(InputError, match="does not fit the tokenizer's chat template"):
        sequences(chats, chatting)


def test_documents_are_separated_by_the_end_token_without_a_beginning_token(tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    without_bos = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    assert without_bos.bos_token_id is None
    expected = expected_rows(token_ids(tokenizer, DOCUMENTS), separator=0, bos=None)
    assert torch.equal(sequences(DOCUMENTS, without_bos), expected)


def test_packing_follows_the_habits_of_an_sae(tokenizer: Any) -> None:
    ids = token_ids(tokenizer, DOCUMENTS)
    expected = expected_rows(ids, separator=None)
    assert torch.equal(sequences(DOCUMENTS, tokenizer, packing=Packing("none")), expected)
    assert torch.equal(sequences(DOCUMENTS, tokenizer, packing=Packing("7")), expected_rows(ids, separator=7))
    alone = torch.tensor([[BOS, *document[: CONTEXT - 1]] for document in ids if len(document) >= CONTEXT - 1])
    apart = Packing(concatenates_documents=False)
    assert torch.equal(sequences([*DOCUMENTS, "short"], tokenizer, packing=apart), alone)
    with pytest.raises(InputError, match="has none of 32 tokens"):
        sequences(["short"] * 99, tokenizer, packing=apart)
    with pytest.raises(InputError, match="separated by the token 'sep'"):
        sequences(DOCUMENTS, tokenizer, packing=Packing("sep"))
    fingerprints = {load_text(DOCUMENTS, tokenizer, packing=packing).fingerprint for packing in (Packing(), apart)}
    assert len(fingerprints) == 2


def test_rows_of_unequal_lengths_are_documents(tokenizer: Any) -> None:
    ids = token_ids(tokenizer, DOCUMENTS)
    expected = expected_rows(ids)
    for text in (ids, [torch.tensor(row) for row in ids], Dataset.from_dict({"input_ids": ids}), {"input_ids": ids}):
        assert torch.equal(sequences(text, tokenizer), expected)
    with pytest.raises(InputError, match="needs a tokenizer"):
        load_text(ids, None)


def test_rejects_a_row_of_another_length_after_many(tokenizer: Any) -> None:
    rows = [[1] * CONTEXT] * 100 + [[1, 2]] * 2
    with pytest.raises(InputError, match="row 101 of list holds 2 token ids, the rows before it 32"):
        sequences(rows, tokenizer)


def test_the_fingerprint_depends_on_every_number_of_arrays_in_lists() -> None:
    """The `repr` of a long array leaves out most of its numbers."""
    ids = torch.arange(5000)
    changed = ids.clone()
    changed[2500] = 7
    batches = [[[ids]], [[changed]], [(ids, ids)], [{"input_ids": [ids]}], [{"input_ids": [changed]}]]
    assert len(set(map(items_digest, batches))) == len(batches)


def test_a_path_that_exists_has_no_split(tmp_path: Path) -> None:
    dataset = save_dataset(tmp_path)
    named = dataset.with_name(f"{dataset.name}:train")
    assert split_of_path(str(named)) == (dataset, "train")
    named.write_text("a text")
    assert split_of_path(str(named)) == (named, None)
