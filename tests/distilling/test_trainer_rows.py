"""Tests of rows of a Trainer's data sets: their types and lengths, and padding that no mask hides."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.trainers import arguments, kl_of_rows, plain_model
from tl_distill_floor import DistillationTrainer
from tl_distill_floor.distilling.hf_trainer.collator import DistillationCollator, pad_features
from tl_distill_floor.distilling.hf_trainer.trainer_rows import mask_of_padding, padding_of
from tl_distill_floor.distilling.training.losses import NO_LABEL
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.token_rows import Padding

PAD, BOS, EOS = 0, 1, 2


def tokenizer_with(pad: int | None, bos: int | None, eos: int | None) -> Any:
    """Return what is read of a tokenizer."""
    return SimpleNamespace(
        pad_token_id=pad, bos_token_id=bos, eos_token_id=eos, decode=lambda ids: "", __call__=lambda text: {}
    )


def rows_of(*rows: list[int]) -> list[dict[str, list[int]]]:
    """Return rows without a mask."""
    return [{"input_ids": row} for row in rows]


@pytest.mark.parametrize(
    ("ids", "padding", "mask"),
    [
        ([5, 6, 0, 0], Padding(PAD), [1, 1, 0, 0]),
        ([0, 0, 5, 6, 0], Padding(PAD), [0, 0, 1, 1, 0]),
        ([0, 5, 0, 6], Padding(PAD), [0, 1, 1, 1]),
        ([0, 5, 6, 0, 0], Padding(PAD, 1, 1), [1, 1, 1, 1, 0]),
        ([0, 0, 5, 6, 0], Padding(PAD, 1, 1), [0, 1, 1, 1, 1]),
        ([5, 6], Padding(PAD, 1, 1), [1, 1]),
        ([0, 0, 0], Padding(PAD), [0, 0, 0]),
        ([5, 6, 0], Padding(None), [1, 1, 1]),
    ],
)
def test_padding_at_the_ends_of_a_row_is_hidden(ids: list[int], padding: Padding, mask: list[int]) -> None:
    assert mask_of_padding(torch.tensor(ids), padding).tolist() == mask


def test_a_token_that_pads_begins_and_ends_texts_is_kept_once() -> None:
    begun = [[0, 5, 6, 0], [0, 5, 0, 0], [0, 7, 8, 9]]
    separated = [[5, 6, 7, 8]] * 9 + [[0, 5, 6, 7]]
    for rows in (begun, separated):
        assert padding_of([rows_of(*rows)], tokenizer_with(0, 0, 0)) == Padding(0, 1, 1)
    assert padding_of([None, iter([])], tokenizer_with(0, 0, 0)) == Padding(0, 1, 1)
    assert padding_of([rows_of([0, 0, 5, 6], [5, 6, 7, 8])], tokenizer_with(0, 0, 2)) == Padding(0, 0, 0)
    masked = [{"input_ids": [0, 0, 5], "attention_mask": [0, 0, 1]}]
    assert padding_of([masked], tokenizer_with(0, 0, 0)) == Padding(0, 1, 1)
    assert padding_of([rows_of([5, 6])], None) == Padding(None)


def test_doubtful_rows_are_refused() -> None:
    doubtful = [
        (rows_of([0, 0, 5], [0, 0, 6]), tokenizer_with(0, 0, 0), "begins with token 0 more than once, which pads"),
        (rows_of([0, 5, 6], [5, 6, 7]), tokenizer_with(0, 0, 0), "some of 2 rows of token ids begin with token 0"),
        (
            rows_of([5, 9, 9, 9, 9], [6, 9, 9, 9, 9]),
            tokenizer_with(0, 1, 2),
            "2 of 2 rows seem to be padded with token 9",
        ),
    ]
    for rows, tokenizer, message in doubtful:
        with pytest.raises(InputError, match=message):
            padding_of([None, rows], tokenizer)
    with pytest.raises(InputError, match="in one data set every row begins with the token that pads rows in another"):
        padding_of([rows_of([0, 0, 5], [5, 6, 7]), rows_of([0, 5], [0, 6])], tokenizer_with(0, 0, 2))


def test_streamed_rows_are_looked_at_as_others() -> None:
    from datasets import IterableDataset

    def streamed(*rows: list[int]) -> Any:
        return IterableDataset.from_generator(lambda: iter(rows_of(*rows)))

    stream = streamed([0, 5, 6], [0, 7, 8])
    assert padding_of([stream], tokenizer_with(0, 0, 2)) == Padding(0, 1, 0)
    assert [row["input_ids"] for row in stream] == [[0, 5, 6], [0, 7, 8]]
    with pytest.raises(InputError, match="2 of 2 rows seem to be padded with token 9"):
        padding_of([streamed([5, 9, 9, 9, 9], [6, 9, 9, 9, 9])], tokenizer_with(0, 1, 2))


def test_padded_rows_without_a_mask_have_the_loss_of_their_tokens(tokenizer: Any, tmp_path: Path) -> None:
    """Padding may be on either side, or hidden by the labels only, and another collator may make the batches."""
    from transformers import DataCollatorForLanguageModeling, default_data_collator

    padding_tokenizer = tokenizer.__class__(tokenizer_object=tokenizer._tokenizer, pad_token="<|end|>")
    assert padding_tokenizer.pad_token_id == PAD
    teacher, student = plain_model("Llama"), plain_model("Llama", 1)
    tokens = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19, 20]]
    expected = kl_of_rows(teacher, student, tokens)
    right = [{"input_ids": row + [PAD] * (8 - len(row))} for row in tokens]
    left = [{"input_ids": [PAD] * (8 - len(row)) + row, "labels": [-100] * (8 - len(row)) + row} for row in tokens]
    for rows in (right, left):
        for collator in (None, default_data_collator, DataCollatorForLanguageModeling(padding_tokenizer, mlm=False)):
            trainer = DistillationTrainer(
                student, arguments(tmp_path), teacher=teacher, eval_dataset=rows, data_collator=collator,
                processing_class=padding_tokenizer,
            )  # fmt: skip
            assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_a_mask_is_padded_as_its_rows() -> None:
    ids = torch.tensor([[5, 6, 0], [7, 8, 9]])
    batch = DistillationCollator(10, lambda _rows: {"input_ids": ids}, Padding(PAD))(rows_of([5]))
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, 8, 9]]


def test_labels_and_masks_are_those_of_their_row() -> None:
    """They do not depend on which row comes first, nor on columns that a data set fills with None."""
    plain = {"input_ids": [5, 6, 7]}
    labelled = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "attention_mask": [1, 1, 1, 0]}
    filled = plain | {"labels": None, "attention_mask": None}
    expected = {"plain": [-100, 6, 7, -100], "labelled": [-100, -100, 7, -100]}
    for rows in ([plain, labelled], [filled, labelled]):
        assert DistillationCollator(10)(rows)["labels"].tolist() == [expected["plain"], expected["labelled"]]
        assert DistillationCollator(10)(rows[::-1])["labels"].tolist() == [expected["labelled"], expected["plain"]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_token_ids_may_be_integers_of_any_size(dtype: Any) -> None:
    rows = [{"input_ids": np.array([5, 6, 7], dtype)}, {"input_ids": np.array([8, 9], dtype)}]
    rows[1]["labels"] = np.array([8, 9], dtype)
    batch = DistillationCollator(10)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    stacked = torch.as_tensor(np.array([[5, 6, 7]], dtype))
    batch = DistillationCollator(10, lambda _rows: {"input_ids": stacked, "labels": stacked})(rows)
    assert batch["labels"].tolist() == [[-100, 6, 7]]


def test_an_empty_row_has_no_position() -> None:
    assert pad_features(rows_of([], [5, 6]))["attention_mask"].tolist() == [[0, 0], [1, 1]]


def test_empty_rows_change_no_loss(tmp_path: Path) -> None:
    """Such as those of empty lines of a text, which can be alone in a batch."""
    teacher, student, rows = plain_model("Llama"), plain_model("Llama", 1), [[5, 6, 7, 8], [9, 5, 6], [8, 7]]
    args = arguments(tmp_path, per_device_train_batch_size=1, per_device_eval_batch_size=1, max_steps=5)
    data = rows_of([], rows[0], [], *rows[1:])
    trainer = DistillationTrainer(student, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(kl_of_rows(teacher, student, rows), rel=1e-5)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 9


@pytest.mark.parametrize("column", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_prediction_targets_are_not_ignored(column: str, tmp_path: Path) -> None:
    """The Trainer drops columns that the model does not have, before the collator sees them."""
    from datasets import Dataset

    teacher, student, ids = plain_model("Llama"), plain_model("Llama", 1), [5, 6, 7, 8]

    def loss_of(row: dict[str, Any], **options: Any) -> float:
        rows = Dataset.from_list([row | {"name": "a"}])
        args = arguments(tmp_path, remove_unused_columns="data_collator" not in options)
        trainer = DistillationTrainer(student, args, teacher=teacher, eval_dataset=rows, **options)
        return float(trainer.evaluate()["eval_loss"])

    with pytest.raises(InputError, match=f"{column} of a row leaves out tokens.* give labels of -100 where it is 0"):
        loss_of({"input_ids": ids, column: [0, 0, 1, 1]})
    with pytest.raises(InputError, match=f"{column} of a row leaves out tokens"):
        DistillationTrainer(
            student, arguments(tmp_path), teacher=teacher, data_collator=pad_features,
            eval_dataset=Dataset.from_list([{"input_ids": ids, column: [0, 0, 1, 1]}]),
        ).evaluate()  # fmt: skip
    expected = loss_of({"input_ids": ids, "labels": [NO_LABEL, NO_LABEL, 7, 8]})
    assert expected != pytest.approx(loss_of({"input_ids": ids}), rel=1e-3)
    assert loss_of({"input_ids": ids, column: [1, 1, 1, 1]}) == loss_of({"input_ids": ids})
    assert loss_of({"input_ids": ids, "labels": [NO_LABEL, NO_LABEL, 7, 8], column: [0, 0, 1, 1]}) == expected

    def collator(rows: Any) -> dict[str, torch.Tensor]:
        """Make labels as TRL's collator does."""
        batch = pad_features(rows)
        return batch | {
            "labels": batch["labels"].masked_fill(torch.tensor([row[column] for row in rows]) == 0, NO_LABEL)
        }

    assert loss_of({"input_ids": ids, column: [0, 0, 1, 1]}, data_collator=collator) == expected
