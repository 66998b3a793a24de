"""Rows of token ids, some of which are padded: find the padding, and move it behind the tokens.

A causal model never attends to what follows a token. So a row whose padding is moved to its end gives the activations
of the row without padding, at the right positions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tl_distill_floor.annotations import Tokenizer
from tl_distill_floor.errors import InputError

NO_TOKEN_ID = -1
"""Value at the positions of a sequence that hold no token: those after the last token of a short row."""
IDS_EXPECTED = "token ids must be integers [batch, position]"
MASK_ADVICE = "give them with their attention_mask, as the tokenizer returns them"
"""Parts of messages about rows of token ids."""
REPEATS_OF_PADDING, SHARE_OF_PADDED_ROWS = 4, 0.25
"""Rows of which this share begins (or ends) with one id, this often, are padded with it."""
MIN_ROWS_OF_EQUAL_LENGTH = 8
"""Rows that begin with a token that pads rows at most once each are not padded, if there are this many: their texts
would be of equal lengths, give or take one token."""


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one row, and which of them are tokens rather than padding."""

    ids: Int[Tensor, " position"]
    mask: Bool[Tensor, " position"] | None = None
    """None if it is not known."""


@dataclass(frozen=True)
class Padding:
    """How rows without a mask are padded."""

    pad_id: int | None
    """Id of the padding; None if the rows are not padded."""
    n_kept_before: int = 0
    """Tokens with the id of the padding that begin a row: 1 if it is the beginning-of-sequence token too."""
    n_kept_after: int = 0
    """Tokens with the id of the padding that may end a row: 1 if it is the end-of-sequence token too."""


def token_row(ids: object, mask: object = None, location: str = "") -> TokenRow:
    """Return a row of token ids.

    Args:
        ids: token ids [position].
        mask: 1 for tokens (or a document's number), 0 for padding [position]; None if it is not known.
        location: where the row is from, for messages.

    Raises:
        InputError: the ids are not integers [position], one is negative, or the mask has another length, or values that
            are not integers of at least 0.
    """
    prefix = f"{location}: " if location else ""
    given = as_tensor(ids)
    if given.ndim != 1 or not given.numel() or not holds_integers(given):
        raise InputError(f"{prefix}{IDS_EXPECTED}, got {given.dtype} {tuple(given.shape)} for a row")
    tensor = given.long()  # torch cannot compare unsigned integers
    if int(tensor.min()) < 0:
        raise InputError(f"{prefix}{IDS_EXPECTED} that are not negative, got {int(tensor.min())}; {MASK_ADVICE}")
    if mask is None:
        return TokenRow(tensor)
    valid = as_tensor(mask)
    if valid.shape != tensor.shape:
        raise InputError(
            f"{prefix}the attention_mask has the shape {tuple(valid.shape)}, the token ids {tuple(tensor.shape)};"
            " give one value for each id"
        )
    check_mask_values(valid, prefix)
    return TokenRow(tensor, valid != 0)


def check_mask_values(mask: Tensor, prefix: str = "") -> None:
    """Raise an InputError if an attention mask has other values than integers of at least 0.

    Args:
        mask: the mask.
        prefix: beginning of the message.
    """
    if mask.numel() and not torch.equal(mask.float(), mask.long().clamp(min=0).float()):
        raise InputError(
            f"{prefix}an attention_mask must have 1 at tokens and 0 at padding, or the number of each document from 1;"
            f" got {float(mask.min()):g} to {float(mask.max()):g}, as if it were added to attention scores"
        )


def rows_of(ids: object, mask: object = None, location: str = "") -> Iterator[TokenRow]:
    """Yield the rows of token ids [position] or [batch, position], which may be lists of unequal lengths.

    Raises:
        InputError: see `token_row`.
    """
    if is_row(ids):
        yield token_row(ids, mask, location)
        return
    assert isinstance(ids, Iterable)
    masks = None if mask is None else list(mask)  # type: ignore[call-overload]
    rows = list(ids)
    if masks is not None and len(masks) != len(rows):
        raise InputError(f"there are {len(masks)} rows of attention_mask for {len(rows)} rows of token ids")
    for number, row in enumerate(rows):
        yield token_row(row, None if masks is None else masks[number], location)


def infer_padding(rows: Sequence[TokenRow], tokenizer: Tokenizer | None) -> Padding:
    """Determine how rows are padded from their first ids, their last ids, and the tokenizer.

    Args:
        rows: the first rows of a text, of one length.
        tokenizer: the teacher's; None if it has none.

    Raises:
        InputError: whether a token is padding cannot be decided.
    """
    unmasked = [row.ids for row in rows if row.mask is None]
    pad_id, bos_id, eos_id = (
        getattr(tokenizer, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    )
    check_known_padding(rows, tokenizer)
    if pad_id is None or not unmasked:
        return Padding(None)
    n_before = [_n_leading(ids, pad_id) for ids in unmasked]
    n_kept_before = 0
    if pad_id == bos_id:
        _check_first_tokens(n_before, pad_id)
        # One of these tokens in every row, or at most one in many rows, begins texts; it is no padding.
        n_kept_before = int(all(n_before) or max(n_before) == 1)
    return Padding(pad_id, n_kept_before, int(pad_id == eos_id))


def _check_first_tokens(n_before: Sequence[int], pad_id: int) -> None:
    """Raise an InputError if a token that pads rows and begins texts leaves open which of both it does.

    Args:
        n_before: how often it begins each row.
        pad_id: the token.
    """
    if min(n_before) > 1:
        raise InputError(
            f"every row of token ids begins with token {pad_id} more than once, which pads rows and begins texts,"
            f" so where they begin is not known; {MASK_ADVICE}"
        )
    if set(n_before) == {0, 1} and len(n_before) < MIN_ROWS_OF_EQUAL_LENGTH:
        raise InputError(
            f"some of {len(n_before)} rows of token ids begin with token {pad_id}, which pads rows and begins texts, so"
            f" whether it is padding is not known; {MASK_ADVICE}"
        )


def check_known_padding(rows: Sequence[TokenRow], tokenizer: Tokenizer | None) -> None:
    """Raise an InputError if many rows begin or end with repeats of an id that the tokenizer does not pad with.

    Args:
        rows: rows of token ids; those with a mask are not looked at.
        tokenizer: the teacher's; None if it has none.
    """
    pad_id = getattr(tokenizer, "pad_token_id", None)
    unmasked = [row.ids for row in rows if row.mask is None]
    for ends in (unmasked, [ids.flip(0) for ids in unmasked]):
        repeated: dict[int, int] = {}
        for ids in ends:
            token = int(ids[0])
            if token != pad_id and REPEATS_OF_PADDING <= _n_leading(ids, token) < len(ids):
                repeated[token] = repeated.get(token, 0) + 1
        for token, n_rows in repeated.items():
            if n_rows > 1 and n_rows >= SHARE_OF_PADDED_ROWS * len(unmasked):
                raise InputError(
                    f"{n_rows} of {len(unmasked)} rows seem to be padded with token {token}, which is not the"
                    f" tokenizer's padding; {MASK_ADVICE}"
                )


def without_padding(row: TokenRow, padding: Padding) -> Int[Tensor, " token"]:
    """Return the tokens of a row.

    Args:
        row: the row.
        padding: how it is padded if it has no mask.

    Raises:
        InputError: the row is masked between two tokens.
    """
    if row.mask is not None:
        valid = row.mask.nonzero()[:, 0]
        if not len(valid):
            return row.ids[:0]
        first, last = int(valid[0]), int(valid[-1]) + 1
        if last - first != len(valid):
            raise InputError(
                "an attention_mask hides tokens between others, not only padding; give rows without such tokens"
            )
        return row.ids[first:last]
    if padding.pad_id is None:
        return row.ids
    first = max(0, _n_leading(row.ids, padding.pad_id) - padding.n_kept_before)
    ids = row.ids[first:]
    n_after = _n_leading(ids.flip(0), padding.pad_id) - padding.n_kept_after
    return ids[: len(ids) - max(0, n_after)]


def pad_right(ids: Int[Tensor, " token"], length: int) -> Int[Tensor, " position"]:
    """Return token ids followed by `NO_TOKEN_ID` up to a length."""
    return torch.nn.functional.pad(ids, (0, length - len(ids)), value=NO_TOKEN_ID)


def is_token_ids(value: object) -> bool:
    """Return whether a value is an array of numbers, or a list that begins with one."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, Mapping | str | list | tuple):
        return False
    if isinstance(value, int | float):
        return True
    kind = getattr(getattr(value, "dtype", None), "kind", "")  # NumPy's dtypes have it, those of torch have not
    return isinstance(value, Tensor) or (kind in "iufb" and kind != "")


def refuse_mask_among_rows(rows: object, location: str) -> None:
    """Raise an InputError if the first of several arrays are token ids and the second their attention mask.

    Args:
        rows: what is to be read as a batch of rows.
        location: where it is from, for messages.
    """
    if not isinstance(rows, list | tuple) or len(rows) < 2 or not is_token_ids(rows[0]) or not is_token_ids(rows[1]):
        return
    try:
        ids, mask = (torch.as_tensor(part) for part in rows[:2])
    except (TypeError, ValueError, RuntimeError, OverflowError):  # rows of unequal lengths
        return
    is_mask = ids.shape == mask.shape and ids.ndim > 0 and bool(((mask == 0) | (mask == 1)).all())
    if is_mask and int(ids.max()) > 1:
        raise InputError(
            f"{location}: token ids are followed by values that are 0 or 1, as an attention_mask; give rows with names,"
            ' {"input_ids": ..., "attention_mask": ...}'
        )


def is_row(ids: object) -> bool:
    """Return whether values are of one row, not of a batch of rows."""
    if isinstance(ids, Tensor) or hasattr(ids, "ndim"):
        return int(ids.ndim) < 2  # type: ignore[attr-defined]
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        return True
    return not (len(ids) and (isinstance(ids[0], list | tuple) or getattr(ids[0], "ndim", 0)))


def holds_integers(tensor: Tensor) -> bool:
    """Return whether the values of a tensor are integers, of whatever size."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def as_tensor(values: object) -> Tensor:
    """Return values as a tensor, or raise an InputError if they are not numbers of one shape."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:  # a file that is mapped into memory
        values = values.copy()
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{IDS_EXPECTED} ({error})") from error


def _n_leading(ids: Int[Tensor, " position"], token: int) -> int:
    """Return how often a token begins a row."""
    if not len(ids) or int(ids[0]) != token:
        return 0
    others = (ids != token).nonzero()
    return int(others[0]) if len(others) else len(ids)
