"""Labelled text as `probe` reads it: files, the embedded passages, datasets, and the spacing of words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.labels import join_words, load_labels


def test_loads_files_rows_and_the_embedded_passages(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "label": "x", "id": 3}\n\n{"text": "b", "label": null}\n')
    labelled = load_labels(file)
    assert (labelled.texts, labelled.documents) == (("a", "b"), ("3", "row 2"))
    assert labelled.tasks[0].of_text == ("x", None)
    assert load_labels(labelled) is labelled
    assert load_labels(labelled, ["label", "label"]).tasks == labelled.tasks
    with pytest.raises(InputError, match="has no label 'genre'; choose from label"):
        load_labels(labelled, ["genre"])
    assert load_labels(labelled, "label").tasks == load_labels(file, "label").tasks == labelled.tasks
    rows = load_labels([{"text": "a", "label": np.int64(3), "document": None, "id": 7}], ["label", "label"])
    assert (rows.documents, [task.of_text for task in rows.tasks]) == (("7",), [("3",)])
    embedded = load_labels()
    assert {task.name: task.level for task in embedded.tasks} == {
        "author": "text",
        "word_class": "word",
        "next_word_class": "word",
    }
    assert len(embedded.texts) == 750
    text, ends = embedded.texts[0], embedded.ends[0]
    assert text[: ends[0]] == "but"
    file.write_text('{"text": "a"\n')
    with pytest.raises(InputError, match="line 1 is not JSON"):
        load_labels(file)


def test_loads_a_dataset_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    calls: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        calls.append((args, options))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    labelled = load_labels("owner/name:config")
    assert (labelled.name, labelled.texts, labelled.tasks[0].of_text) == ("owner/name:config", ("a", "b"), ("1", "0"))
    assert calls == [(("owner/name", "config"), {"split": "train", "streaming": True})]
    with pytest.raises(InputError, match="row 1 has no 'topic'; choose one of its labels with label= or labels="):
        load_labels("owner/name", ["topic"])


def test_words_are_joined_like_prose() -> None:
    text, ends = join_words(["He", "said", ",", "``", "no", "''", "(", "twice", ")", "."])
    assert text == "He said, ``no'' (twice)."
    assert [text[:end] for end in ends[:3]] == ["He", "He said", "He said,"]


def test_reads_arrays_of_words_and_labels_and_ignores_minus_100() -> None:
    """A data frame that pandas reads from a file has arrays in its cells; -100 is transformers' label for none."""
    words = ["Call", "me", "Ishmael"]
    for labels in ([-100, 1, 2], np.array([-100, 1, 2])):
        labelled = load_labels([{"words": np.array(words), "label": labels}, {"words": words, "label": [None, 1, 2]}])
        assert labelled.texts == ("Call me Ishmael", "Call me Ishmael")
        assert labelled.tasks[0].of_words == ((None, "1", "2"), (None, "1", "2"))
    rows = [{"text": "a", "label": label} for label in (-100, np.bool_(True), "-100", "-1")]  # -100 as in a .csv file
    assert load_labels(rows).tasks[0].of_text == (None, "True", None, "-1")


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    rows = [
        {"text": "\ufeffCall me", "label": "x"},
        {"text": "\ufeffCall me", "words": ["Call", "me"], "label": [1, 2]},
    ]
    for row, ends in zip(rows, ((), (4, 7)), strict=True):
        labelled = load_labels([row])
        assert (labelled.texts, labelled.ends) == (("Call me",), (ends,))


def test_warns_of_rows_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of rows that are sorted by label could be missing."""
    monkeypatch.setattr("tl_distill_floor.sources.labels.MAX_ROWS", 2)
    rows = [{"text": "a", "label": label} for label in ("x", "y", "z")]
    warning = "only the first 2 rows of rows in memory were read; classes that come later are missing"
    labelled = load_labels(rows)
    assert (len(labelled.texts), labelled.warnings) == (2, (warning,))
    assert load_labels(labelled, ["label"]).warnings == (warning,)
    assert load_labels(rows[:2]).warnings == ()


def test_labels_that_look_alike_are_one_class() -> None:
    labels = ("caf\u00e9", " cafe\u0301 ", "tea", "tea ", "", " ")
    labelled = load_labels([{"text": "a", "label": label} for label in labels])
    assert labelled.tasks[0].of_text == ("caf\u00e9", "caf\u00e9", "tea", "tea", None, None)


def test_rows_without_a_text_are_left_out_with_a_warning() -> None:
    texts: list[object] = ["a", "", None, float("nan"), "b"]
    labelled = load_labels([{"text": text, "label": "xyzuv"[i]} for i, text in enumerate(texts)])
    assert (labelled.texts, labelled.documents, labelled.tasks[0].of_text) == (
        ("a", "b"),
        ("row 1", "row 5"),
        ("x", "v"),
    )
    assert labelled.warnings == ("3 rows of rows in memory have an empty text and were left out",)


def test_words_are_found_between_the_spaces_and_signs_of_their_text() -> None:
    row = {"text": "“He  cannot,” she said.", "words": ["He", "can", "not", "she", "said", "."], "label": [*"abcdef"]}
    (text,), (ends,) = (labelled := load_labels([row])).texts, labelled.ends
    assert [text[:end] for end in ends] == ["“He", "“He  can", "“He  cannot", "“He  cannot,” she", text[:-1], text]
    row = {"text": "He saw a cat", "words": ["He", "a", "cat"], "label": [*"abc"]}
    with pytest.raises(InputError, match="row 1: the word 'a' does not follow in the text; give the words"):
        load_labels([row])
