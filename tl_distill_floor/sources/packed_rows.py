"""Rows of token ids that hold several documents: split them where their other columns say that a document begins."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.token_rows import MASK_ADVICE, TokenRow, as_tensor, is_row, rows_of

IDS, MASK, POSITIONS, LENGTHS = "input_ids", "attention_mask", "position_ids", "seq_lengths"
TOKEN_COLUMNS = (IDS, MASK, POSITIONS, LENGTHS)
"""Columns of rows of token ids. Each of the last three may say where documents begin: a mask that numbers them from 1,
positions that begin again at 0 (as transformers packs rows), and the documents' lengths (as TRL does)."""


def documents_of_token_rows(columns: Mapping[str, object], location: str = "") -> Iterator[TokenRow]:
    """Yield the documents of one row or of a batch of rows.

    Args:
        columns: `input_ids` [position] or [batch, position], which may be lists of unequal lengths, and any of
            the other `TOKEN_COLUMNS`.
        location: where the row is from, for messages.

    Raises:
        InputError: see `token_row`; or a column does not fit the token ids.

    Example:
        >>> packed = {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1]}
        >>> [document.ids.tolist() for document in documents_of_token_rows(packed)]
        [[5, 6, 7], [8, 9]]
    """
    prefix = f"{location}: " if location else ""
    rows = list(rows_of(columns[IDS], columns.get(MASK), location))
    masks, positions, lengths = (
        _column_of_rows(columns.get(name), len(rows), prefix, name) for name in (MASK, POSITIONS, LENGTHS)
    )
    for row, mask, position, length in zip(rows, masks, positions, lengths, strict=True):
        begins = torch.zeros(len(row.ids), dtype=torch.bool)
        if mask is not None:
            begins |= _begins_of_mask(mask)
        if position is not None:
            begins |= _begins_of_positions(position, row, prefix)
        if length is not None:
            begins |= _begins_of_lengths(length, len(row.ids), prefix)
        yield from _split(row, begins)


def _column_of_rows(values: object, n_rows: int, prefix: str, name: str) -> list[Int64[Tensor, " value"] | None]:
    """Return the integers of each row; None for each if there is no such column."""
    if values is None:
        return [None] * n_rows
    rows = [values] if is_row(values) else list(values)  # type: ignore[call-overload]
    if len(rows) not in (1, n_rows):
        raise InputError(f"{prefix}there are {len(rows)} rows of {name} for {n_rows} rows of token ids")
    columns = [as_tensor(row).long() for row in rows]
    return [columns[number % len(columns)] for number in range(n_rows)]


def _begins_of_mask(mask: Int64[Tensor, " position"]) -> Bool[Tensor, " position"]:
    """Return where the number of the document changes in a mask such as 1, 1, 2, 2, 0."""
    begins = torch.zeros(len(mask), dtype=torch.bool)
    begins[1:] = (mask[1:] != mask[:-1]) & (mask[1:] > 0) & (mask[:-1] > 0)
    return begins


def _begins_of_positions(
    positions: Int64[Tensor, " position"], row: TokenRow, prefix: str
) -> Bool[Tensor, " position"]:
    """Return where positions are 0, or raise an InputError if they do not count from 0 in every document."""
    if positions.shape != row.ids.shape:
        raise InputError(
            f"{prefix}{POSITIONS} have the shape {tuple(positions.shape)}, the token ids {tuple(row.ids.shape)}; give"
            " one value for each id"
        )
    is_token = torch.ones(len(row.ids), dtype=torch.bool) if row.mask is None else row.mask
    of_tokens = positions[is_token]
    begins = (positions == 0) & is_token
    if len(of_tokens) and (int(of_tokens[0]) or ((of_tokens.diff() != 1) & (of_tokens[1:] != 0)).any()):
        raise InputError(
            f"{prefix}{POSITIONS} do not count from 0 in every document, and the teacher is run at such positions; give"
            " rows of whole documents, or leave the positions out to read a row as one document"
        )
    if row.mask is None and (begins[1:] & begins[:-1]).any():
        raise InputError(f"{prefix}{POSITIONS} are 0 at two neighbouring tokens, which may be padding; {MASK_ADVICE}")
    return begins


def _begins_of_lengths(lengths: Int64[Tensor, " document"], n_tokens: int, prefix: str) -> Bool[Tensor, " position"]:
    """Return where documents of these lengths begin."""
    if int(lengths.sum()) != n_tokens or (len(lengths) and int(lengths.min()) < 0):
        raise InputError(f"{prefix}{LENGTHS} add up to {int(lengths.sum())}, and the row has {n_tokens} token ids")
    begins = torch.zeros(n_tokens + 1, dtype=torch.bool)
    begins[lengths.cumsum(0) - lengths] = True
    return begins[:n_tokens]


def _split(row: TokenRow, begins: Bool[Tensor, " position"]) -> Iterator[TokenRow]:
    """Yield the documents of a row; padding stays with the document before it, or with the first one."""
    is_token = torch.ones_like(begins) if row.mask is None else row.mask
    begins = begins & is_token & (is_token.cumsum(0) > 1)
    first = begins.nonzero()[:, 0].tolist()
    for start, end in zip([0, *first], [*first, len(row.ids)], strict=True):
        yield TokenRow(row.ids[start:end], None if row.mask is None else row.mask[start:end])
