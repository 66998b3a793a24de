"""Rows of token ids that hold several documents: split them where their other columns say that a document begins."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.token_rows import MASK_ADVICE, TokenRow, as_tensor, is_row, rows_of

IDS, MASK, POSITIONS, LENGTHS = "input_ids", "attention_mask", "position_ids", "seq_lengths"
"""Columns of token ids, and of what is stated about each of them or about each document."""
NUMBERS = ("seq_idx", "segment_ids", "document_ids", "doc_ids")
"""Columns with the number of each token's document (`seq_idx` of transformers)."""
LENGTHS_COLUMNS = (LENGTHS, "seq_lens")
"""Columns with the documents' lengths."""
BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens", "cu_seqlens")
"""Columns with the documents' boundaries: 0, and the summed lengths of the documents so far."""
TOKEN_COLUMNS = (IDS, MASK, POSITIONS, *LENGTHS_COLUMNS, *NUMBERS, *BOUNDARIES)
"""Columns of rows of token ids. All but the first may say where documents begin: a mask that numbers them from 1,
positions that begin again at 0 (as transformers packs rows), the documents' lengths (as TRL does), and the others."""

PACKING_COLUMNS = TOKEN_COLUMNS[2:]
"""Columns that only rows of several documents have."""


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
    given = {
        name: _column_of_rows(columns[name], len(rows), prefix, name)
        for name in TOKEN_COLUMNS[1:]
        if columns.get(name) is not None
    }
    for number, row in enumerate(rows):
        begins = torch.zeros(len(row.ids), dtype=torch.bool)
        for name, of_rows in given.items():
            begins |= _begins(name, of_rows[number], row, prefix)
        yield from _split(row, begins)


def _begins(name: str, values: Int64[Tensor, " value"], row: TokenRow, prefix: str) -> Bool[Tensor, " position"]:
    """Return where documents begin according to one column of a row."""
    if name == MASK:
        return _begins_of_mask(values)
    if name == POSITIONS:
        return _begins_of_positions(values, row, prefix)
    if name in LENGTHS_COLUMNS:
        return _begins_of_lengths(values, len(row.ids), prefix, name)
    if name in BOUNDARIES:
        return _begins_of_lengths(values.diff(), len(row.ids), prefix, name)
    if values.shape != row.ids.shape:
        raise InputError(f"{prefix}{name} has {len(values)} values for {len(row.ids)} token ids; give one for each id")
    begins = torch.zeros(len(values), dtype=torch.bool)
    begins[1:] = values[1:] != values[:-1]
    return begins


def _column_of_rows(values: object, n_rows: int, prefix: str, name: str) -> list[Int64[Tensor, " value"]]:
    """Return the integers of each row in a column."""
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


def _begins_of_lengths(
    lengths: Int64[Tensor, " document"], n_tokens: int, prefix: str, name: str
) -> Bool[Tensor, " position"]:
    """Return where documents of these lengths begin."""
    if int(lengths.sum()) != n_tokens or (len(lengths) and int(lengths.min()) < 0):
        raise InputError(
            f"{prefix}the documents of {name} have {int(lengths.sum())} tokens together, and the row has {n_tokens}"
            " token ids"
        )
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
