"""`DistillationCollator`: batches of token ids whose padding is on the right, and whose labels say what is counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tl_distill_floor.distilling.losses import NO_LABEL
from tl_distill_floor.distilling.sequence_limits import SequenceLimits, check_lengths
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.packed_rows import PACKING_COLUMNS, documents_of_token_rows
from tl_distill_floor.sources.token_rows import check_mask_values

Features: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows of a dataset, with `input_ids` and if need be `attention_mask` and `labels`."""
Collator: TypeAlias = Callable[[Features], Mapping[str, Any]]
KEYS = ("input_ids", "attention_mask", "labels")
"""What a batch may have."""
ONE_DOCUMENT_EACH = "give rows of one document each"


class DistillationCollator:
    """A data collator that prepares batches for two causal language models, the teacher and the student.

    - Padding is moved to the right. There it changes neither positions nor attention, whatever the family of a model.
    - A token is a prediction target if its label is not -100. Without `labels`, every token is one that the attention
      mask does not hide. The first token of a sequence is never one.

    Args:
        vocabulary: number of tokens of both models.
        collator: collator whose batches are prepared; None to pad `input_ids`, `attention_mask` and `labels`.
    """

    def __init__(self, vocabulary: int, collator: Collator | None = None) -> None:
        self._vocabulary = vocabulary
        self._collator = collator or pad_features
        self.limits: dict[str, SequenceLimits] = {}
        """Lengths of sequences that the models read, by "teacher" and "student"."""
        self.tokenizer = getattr(collator, "tokenizer", None)
        """Tokenizer of the given collator, which the Trainer saves with a model."""

    def __call__(self, features: Features) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` of some rows, each [batch, position].

        Args:
            features: rows of a dataset.

        Raises:
            InputError: a row holds several documents or is too long, or the batch has other inputs, token ids outside
                of the vocabulary, or a mask that hides tokens between others.
        """
        features = [_one_document(row) for row in features]
        batch = {name: value for name, value in self._collator(features).items() if value is not None}
        if "input_ids" not in batch or not batch.keys() <= set(KEYS):
            raise InputError(
                f"a batch has {', '.join(batch) or 'nothing'}, and a DistillationTrainer reads {', '.join(KEYS)}; use"
                " another data_collator, or remove columns of the dataset"
            )
        ids = torch.as_tensor(batch["input_ids"])
        mask = torch.as_tensor(batch.get("attention_mask", torch.ones_like(ids)))
        check_mask_values(mask)
        if mask.numel() and int(mask.max()) > 1:
            raise InputError(f"an attention_mask numbers the documents of packed rows; {ONE_DOCUMENT_EACH}")
        visible = mask.bool()
        labels = torch.as_tensor(batch.get("labels", ids))
        shapes = [tuple(tensor.shape) for tensor in (ids, visible, labels)]
        if len(set(shapes)) > 1:
            raise InputError(
                f"input_ids, attention_mask and labels of a batch have shapes {', '.join(map(str, shapes))}, which must"
                " be equal; use another data_collator"
            )
        lengths = visible.sum(dim=1).tolist()
        check_lengths(self.limits, lengths)
        ids, visible, labels = (
            tensor[:, : self._padded_length(ids.shape[1], max(lengths, default=0))]
            for tensor in _move_padding_right(ids, visible, labels)
        )
        ids = ids.masked_fill(~visible, 0)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocabulary:
            raise InputError(
                f"the dataset has token ids from {int(ids.min())} to {int(ids.max())}, and the teacher's vocabulary"
                f" ends at {self._vocabulary - 1}; tokenize it with the teacher's tokenizer"
            )
        labels = labels.masked_fill(~visible, NO_LABEL)
        labels[:, :1] = NO_LABEL
        return {"input_ids": ids, "attention_mask": visible.long(), "labels": labels}

    def _padded_length(self, padded: int, longest: int) -> int:
        """Return the length of a batch at which the models read its padding as they read its rows.

        Args:
            padded: length of the batch as it is padded.
            longest: tokens of its longest row.
        """
        bounds = [bound for limit in self.limits.values() for bound in (limit.longest, *limit.switches)]
        return min([padded, *(bound for bound in bounds if bound is not None and bound >= longest)])


def pad_features(features: Features) -> dict[str, Tensor]:
    """Pad rows on the right, without a padding token: the attention mask hides the padding.

    Args:
        features: rows of a dataset.

    Returns:
        `input_ids`, `attention_mask` and, if the first row has them, `labels`, each [batch, position].

    Raises:
        InputError: a row has no `input_ids`.
    """
    if not features or "input_ids" not in features[0]:
        columns = ", ".join(features[0]) if features else "no columns"
        raise InputError(
            f"the dataset has {columns}, and no input_ids; tokenize it, for example with load_text(...).read()"
        )
    ids = [torch.as_tensor(row["input_ids"]) for row in features]
    masks = [
        torch.as_tensor(row["attention_mask"]) if "attention_mask" in row else torch.ones_like(row_ids)
        for row, row_ids in zip(features, ids, strict=True)
    ]
    batch = {"input_ids": pad_sequence(ids, True), "attention_mask": pad_sequence(masks, True)}
    if "labels" in features[0]:
        labels = [torch.as_tensor(row["labels"]) for row in features]
        batch["labels"] = pad_sequence(labels, True, padding_value=NO_LABEL)
    return batch


def following_tokens(labels: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Return the token that each position predicts; -100 where no prediction is counted.

    Args:
        labels: each position's own token, or -100, as in a batch of the Trainer.
    """
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], NO_LABEL)], dim=1)


def _one_document(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without the columns that say where documents begin.

    Raises:
        InputError: they say that it holds several documents, or do not fit the token ids.
    """
    if "input_ids" not in row or not set(PACKING_COLUMNS) & set(row):
        return row
    if len(list(documents_of_token_rows(row))) > 1:
        names = " and ".join(name for name in PACKING_COLUMNS if name in row)
        raise InputError(f"a row holds several documents, by its {names}; {ONE_DOCUMENT_EACH}")
    return {name: value for name, value in row.items() if name not in PACKING_COLUMNS}


def _move_padding_right(
    ids: Int[Tensor, "batch position"], visible: Bool[Tensor, "batch position"], labels: Int[Tensor, "batch position"]
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    """Rotate rows so that the tokens that the mask shows come first.

    Raises:
        InputError: the mask hides tokens between others.
    """
    first = visible.int().argmax(dim=1, keepdim=True)
    order = (torch.arange(ids.shape[1]) + first) % max(ids.shape[1], 1)
    ids, visible, labels = (tensor.gather(1, order) for tensor in (ids, visible, labels))
    if bool((visible[:, 1:] & ~visible[:, :-1]).any()):
        raise InputError("an attention_mask hides tokens between others; remove these tokens from the dataset")
    return ids, visible, labels
