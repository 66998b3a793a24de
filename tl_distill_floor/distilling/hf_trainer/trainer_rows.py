"""Rows of a Trainer's data sets: check their columns one by one, and find padding that no mask hides."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset
from jaxtyping import Int, Int64
from torch import Tensor

from tl_distill_floor.annotations import Tokenizer
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.items import FIRST_ITEMS
from tl_distill_floor.sources.packed_rows import PACKING_COLUMNS, documents_of_token_rows
from tl_distill_floor.sources.token_rows import (
    MASK_ADVICE,
    Padding,
    TokenRow,
    as_tensor,
    check_mask_values,
    holds_integers,
    infer_padding,
    is_row,
    is_token_ids,
    without_padding,
)

LOSS_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Columns with 0 at the tokens that are no prediction targets, such as those of a prompt (TRL, transformers, NeMo)."""
ONE_DOCUMENT_EACH = "give rows of one document each"


def without_packing(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without the columns that say where documents begin.

    Args:
        row: a row of a data set.

    Raises:
        InputError: they say that it holds several documents, or do not fit the token ids.
    """
    if "input_ids" not in row or not set(PACKING_COLUMNS) & set(row):
        return row
    if len(list(documents_of_token_rows(row))) > 1:
        names = " and ".join(name for name in PACKING_COLUMNS if name in row)
        raise InputError(f"a row holds several documents, by its {names}; {ONE_DOCUMENT_EACH}")
    return {name: value for name, value in row.items() if name not in PACKING_COLUMNS}


def without_loss_masks(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without the columns that say which tokens are prediction targets, as `labels` do.

    Args:
        row: a row of a data set.

    Raises:
        InputError: they leave out tokens, and the row has no `labels`.
    """
    masks = [name for name in LOSS_MASKS if row.get(name) is not None]
    for name in masks:
        if row.get("labels") is None and not bool(as_tensor(row[name]).bool().all()):
            raise InputError(
                f"{name} of a row leaves out tokens, and a DistillationTrainer reads labels: give labels of -100 where"
                " it is 0; or set remove_unused_columns to False and give a data_collator that reads it"
            )
    return {name: value for name, value in row.items() if name not in masks} if masks else row


def with_mask(row: Mapping[str, Any], padding: Padding) -> Mapping[str, Any]:
    """Return a row with an attention mask, if it has token ids and no mask.

    Args:
        row: a row of a data set.
        padding: how rows without a mask are padded.
    """
    if padding.pad_id is None or not _lacks_mask(row):
        return row
    return {**row, "attention_mask": mask_of_padding(as_tensor(row["input_ids"]).long(), padding).tolist()}


def mask_of_padding(ids: Int[Tensor, " position"], padding: Padding) -> Int64[Tensor, " position"]:
    """Return 1 at the tokens of a row, and 0 at its padding.

    Args:
        ids: token ids of the row.
        padding: how rows without a mask are padded.
    """
    row = TokenRow(ids)
    n_tokens = len(without_padding(row, padding))
    n_with_padding_before = len(without_padding(row, dataclasses.replace(padding, n_kept_before=len(ids))))
    mask = torch.zeros(len(ids), dtype=torch.long)
    mask[n_with_padding_before - n_tokens : n_with_padding_before] = 1
    return mask


def padding_of(datasets: Iterable[object], tokenizer: Tokenizer | None) -> Padding:
    """Determine how rows without a mask are padded, from the tokenizer and the first rows of data sets.

    Args:
        datasets: data sets. Those that can neither be indexed nor be read again are not looked at. A token that pads,
            and begins or ends texts too, is then kept once at the ends of rows.
        tokenizer: tokenizer of the rows; None if it is not known.

    Raises:
        InputError: whether tokens are padding cannot be decided.
    """
    inferred = {infer_padding(rows, tokenizer) for rows in map(_unmasked_rows, datasets) if rows}
    if len(inferred) > 1:
        raise InputError(
            f"in one data set every row begins with the token that pads rows in another, so whether it is padding is"
            f" not known; {MASK_ADVICE}"
        )
    if inferred:
        return inferred.pop()
    pad_id, *ends = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    return Padding(pad_id, *(int(pad_id == end) for end in ends))


def row_tensors(row: Mapping[str, Any]) -> dict[str, Int64[Tensor, " position"]]:
    """Return `input_ids`, `attention_mask` and `labels` of a row; all tokens and their ids by default.

    Args:
        row: a row of a data set.

    Raises:
        InputError: the row has no `input_ids`, or a column is not integers [position], one for each token id.
    """
    if row.get("input_ids") is None:
        raise InputError(
            f"the dataset has {', '.join(row)}, and no input_ids; tokenize it, for example with load_text(...).read()"
        )
    ids = _integers(row, "input_ids")
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    for name in ("attention_mask", "labels"):
        if row.get(name) is not None:
            columns[name] = _integers(row, name)
            if columns[name].shape != ids.shape:
                raise InputError(
                    f"a row has {len(ids)} input_ids and {len(columns[name])} {name}, which must be as many; give one"
                    " for each token"
                )
    return columns


def _integers(row: Mapping[str, Any], name: str) -> Int64[Tensor, " position"]:
    """Return a column of a row."""
    values = as_tensor(row[name])
    if name == "attention_mask":
        check_mask_values(values)
    elif values.numel() and not holds_integers(values):
        raise InputError(f"{name} of a row must be integers, got {values.dtype}; tokenize the dataset again")
    if values.ndim != 1:
        raise InputError(
            f"{name} of a row have the shape {tuple(values.shape)}, and a row must be one sequence, [position]; give"
            " each sequence as a row of its own"
        )
    return values.long()  # torch cannot pad rows of unsigned integers


def _unmasked_rows(dataset: Any) -> list[TokenRow]:
    """Return the first rows of a data set that have no mask; none if it can neither be indexed nor be read again."""
    if isinstance(dataset, IterableDataset):
        return list(_rows_without_mask(islice(dataset, FIRST_ITEMS)))
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return []
    return list(_rows_without_mask(dataset[number] for number in range(min(len(dataset), FIRST_ITEMS))))


def _rows_without_mask(rows: Iterator[Any]) -> Iterator[TokenRow]:
    for row in rows:
        if isinstance(row, Mapping) and _lacks_mask(row):
            yield TokenRow(as_tensor(row["input_ids"]).long())


def _lacks_mask(row: Mapping[str, Any]) -> bool:
    """Return whether a row has token ids [position], at least one, and no mask."""
    ids = row.get("input_ids")
    return ids is not None and row.get("attention_mask") is None and is_row(ids) and is_token_ids(ids) and len(ids) > 0
