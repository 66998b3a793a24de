"""Labelled text from files of rows, datasets and streams: each gives the same texts and labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf

from tl_distill_floor import InputError, load_labels
from tl_distill_floor.sources.documents import open_documents

ROWS = {
    "text": ["Call me Ishmael.", "Emma was rich.", "Nothing."],
    "author": ["Melville", "Austen", None],
    "n": [1, 2, 3],
}


def save_table(file: Path) -> Path:
    """Write the rows as a table of the file's kind."""
    import pandas as pd

    frame = pd.DataFrame(ROWS)
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".CSV":
        frame.to_csv(file, index=False, encoding="utf-8-sig")
    else:
        rows = [{name: ROWS[name][number] for name in ROWS} for number in range(3)]
        file.write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode())
    return file


def save_dataset(directory: Path) -> Path:
    """Save the rows with `save_to_disk`."""
    Dataset.from_dict(ROWS).save_to_disk(directory / "saved")
    return directory / "saved"


def data_frame(_directory: Path) -> Any:
    """Return the rows as a data frame."""
    import pandas as pd

    return pd.DataFrame(ROWS)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "Dataset": lambda _: Dataset.from_dict(ROWS),
    "DatasetDict": lambda _: DatasetDict({"test": Dataset.from_dict(ROWS)}),
    "streamed": lambda _: Dataset.from_dict(ROWS).to_iterable_dataset(),
    "generator": lambda _: (dict(row) for row in Dataset.from_dict(ROWS)),
    "data frame": data_frame,
    "saved": save_dataset,
    "name of a saved dataset": lambda directory: str(save_dataset(directory)),
    "parquet": lambda directory: save_table(directory / "rows.parquet"),
    "csv": lambda directory: save_table(directory / "rows.CSV"),
    "jsonl": lambda directory: save_table(directory / "rows.jsonl"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_gives_the_same_labels(source: str, tmp_path: Path) -> None:
    labelled = load_labels(SOURCES[source](tmp_path), ["author", "n"])
    assert labelled.texts == tuple(ROWS["text"])
    assert [task.of_text for task in labelled.tasks] == [("Melville", "Austen", None), ("1", "2", "3")]


def test_rejects_sources_without_labelled_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several splits: a, b"):
        load_labels(DatasetDict({"a": Dataset.from_dict(ROWS), "b": Dataset.from_dict(ROWS)}))
    with pytest.raises(
        InputError, match="row 1 has no 'label'; choose one of its labels with label= or labels=: author, n"
    ):
        load_labels([{name: values[0] for name, values in ROWS.items()}])
    for missing in (tmp_path / "rows.jsonl", tmp_path / "rows.PARQUET", "no such file", "x" * 5000):
        with pytest.raises(InputError, match="there is no labelled text at"):
            load_labels(missing)
    with pytest.raises(InputError, match="row 1 is str, not an object"):
        load_labels("".join(["a"]) for _ in range(2))


LABEL = {"label": ClassLabel(names=["negative", "positive"])}
CLASSES = Features({"words": ListOf(Value("string")), "tag": ListOf(ClassLabel(names=["O", "NAME"])), **LABEL})
CLASS_SOURCES: dict[str, Callable[[Dataset, Path], Any]] = {
    "Dataset": lambda dataset, _: dataset,
    "as NumPy arrays": lambda dataset, _: dataset.with_format("numpy"),
    "streamed": lambda dataset, _: dataset.to_iterable_dataset(),
    "saved": lambda dataset, directory: dataset.save_to_disk(directory) or directory,
    "arrow": lambda dataset, directory: dataset.save_to_disk(directory) or next(directory.glob("*.arrow")),
    "parquet": lambda dataset, directory: dataset.to_parquet(directory / "a.parquet") and directory / "a.parquet",
}


@pytest.mark.parametrize("source", CLASS_SOURCES)
def test_classes_of_a_dataset_have_their_names(source: str, tmp_path: Path) -> None:
    """`datasets` stores a class as a number, -1 if there is none, and its name with the columns."""
    rows = {"words": [["Call", "Emma"]] * 3, "label": [1, 0, -1], "tag": [[0, 1]] * 3}
    labelled = load_labels(CLASS_SOURCES[source](Dataset.from_dict(rows, CLASSES), tmp_path), ["tag"])
    assert labelled.tasks[0].of_words == (("O", "NAME"),) * 3
    texts = Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": rows["label"]}, Features({"text": Value("string"), **LABEL})
    )
    (tmp_path / "texts").mkdir()
    labelled = load_labels(CLASS_SOURCES[source](texts, tmp_path / "texts"))
    assert labelled.tasks[0].of_text == ("positive", "negative", None)


def test_a_named_dataset_has_names_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, Features({"text": Value("string"), **LABEL}))
    monkeypatch.setattr("datasets.load_dataset", lambda *_args, **_options: dataset.to_iterable_dataset())
    assert load_labels("owner/name").tasks[0].of_text == ("positive", "negative")


def test_integers_that_pandas_made_floats_are_classes(tmp_path: Path) -> None:
    import pandas as pd

    columns = {"text": ["a", "b", "c", "d"], "label": [0, 1, None, -100], "document": [7, None, None, 7]}
    frame = pd.DataFrame(columns)
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, frame.to_dict("records"), tmp_path / "a.parquet"):
        labelled = load_labels(source)
        assert labelled.tasks[0].of_text == ("0", "1", None, None)
        assert labelled.documents == ("7.0", "row 2", "row 3", "7.0")  # two rows without a document are two
    for value in (0.5, float("inf")):
        with pytest.raises(InputError, match="row 1: the label 'label' is of type float; a label is a string or an"):
            load_labels([{"text": "a", "label": value}])


def test_files_of_other_programs_keep_their_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for metadata in (None, {b"huggingface": b"no JSON"}, {b"huggingface": b'{"info": []}'}):
        table = pa.table({"text": ["a", "b"], "label": [1, 0]}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / "a.parquet")
        assert load_labels(tmp_path / "a.parquet").tasks[0].of_text == ("1", "0")


def test_a_transform_of_a_dataset_makes_its_rows() -> None:
    """It may read other columns than those that it returns."""
    rows = {"title": ["A", "B"], "body": ["a", "b"], "label": [1, 0]}
    dataset = Dataset.from_dict(rows, Features({"title": Value("string"), "body": Value("string"), **LABEL}))
    joined = dataset.with_transform(
        lambda batch: {
            "text": [f"{title}: {body}" for title, body in zip(batch["title"], batch["body"], strict=True)],
            "label": batch["label"],
        }
    )
    labelled = load_labels(joined)
    assert (labelled.texts, labelled.tasks[0].of_text) == (("A: a", "B: b"), ("positive", "negative"))
    documents = open_documents(joined)
    assert list(documents.read()) == ["A: a", "B: b"]
    assert documents.fingerprint != open_documents(dataset).fingerprint
