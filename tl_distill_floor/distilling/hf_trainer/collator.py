"""`DistillationCollator`: batches of token ids whose padding is on the right, and whose labels say what is counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tl_distill_floor.distilling.hf_trainer.sequence_limits import SequenceLimits, check_lengths
from tl_distill_floor.distilling.hf_trainer.trainer_rows import (
    ONE_DOCUMENT_EACH,
    mask_of_padding,
    row_tensors,
    with_mask,
    without_loss_masks,
    without_packing,
)
from tl_distill_floor.distilling.training.losses import NO_LABEL
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.token_rows import Padding, check_mask_values, holds_integers

Features: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows of a dataset, with `input_ids` and if need be `attention_mask` and `labels`."""
Collator: TypeAlias = Callable[[Features], Mapping[str, Any]]
KEYS = ("input_ids", "attention_mask", "labels")
"""What a batch may have."""
UNMASKED_ADVICE = "use another data_collator, such as DataCollatorForLanguageModeling(tokenizer, mlm=False)"


class DistillationCollator:
    """A data collator that prepares batches for two causal language models, the teacher and the student.

    - Padding is moved to the right. There it changes neither positions nor attention, whatever the family of a model.
    - Rows without a mask lose the padding that `padding` describes.
    - A token is a prediction target if its label is not -100; its label is then its own id. Without `labels`, every
      token is one that the attention mask does not hide. The first token of a sequence is never one.

    Args:
        vocabulary: number of tokens of both models.
        collator: collator whose batches are prepared; None to pad `input_ids`, `attention_mask` and `labels`.
        padding: how rows without a mask are padded; not at all if None.
        reads_loss_masks: whether `collator` makes labels from columns such as `completion_mask`.

    Raises:
        InputError: the collator masks tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        collator: Collator | None = None,
        padding: Padding | None = None,
        reads_loss_masks: bool = False,
    ) -> None:
        if getattr(collator, "mlm", False):
            raise InputError(
                f"{type(collator).__name__} masks tokens (mlm=True), and the student would learn from masked text;"
                f" {UNMASKED_ADVICE}"
            )
        self._vocabulary = vocabulary
        self._padding = padding or Padding(None)
        self._collator = collator or pad_features
        self._reads_loss_masks = reads_loss_masks
        self.limits: dict[str, SequenceLimits] = {}
        """Lengths of sequences that the models read, by "teacher" and "student"."""
        self.tokenizer = getattr(collator, "tokenizer", None)
        """Tokenizer of the given collator, which the Trainer saves with a model."""

    def __call__(self, features: Features) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` of some rows, each [batch, position].

        Args:
            features: rows of a dataset.

        Raises:
            InputError: a row holds several documents, is too long or says in another column than `labels` which tokens
                are targets, or the batch has other inputs, token ids outside of the vocabulary, labels of other tokens,
                or a mask that hides tokens between others.
        """
        if not self._reads_loss_masks:
            features = [without_loss_masks(row) for row in features]
        features = [with_mask(without_packing(row), self._padding) for row in features]
        batch = {name: value for name, value in self._collator(features).items() if value is not None}
        if "input_ids" not in batch or not batch.keys() <= set(KEYS):
            raise InputError(
                f"a batch has {', '.join(batch) or 'nothing'}, and a DistillationTrainer reads {', '.join(KEYS)}; use"
                " another data_collator, or remove columns of the dataset"
            )
        ids = _batch_of_integers(batch, "input_ids")
        mask = (
            torch.as_tensor(batch["attention_mask"])
            if "attention_mask" in batch
            else torch.stack([mask_of_padding(row, self._padding) for row in ids])
        )
        check_mask_values(mask)
        if mask.numel() and int(mask.max()) > 1:
            raise InputError(f"an attention_mask numbers the documents of packed rows; {ONE_DOCUMENT_EACH}")
        visible = mask.bool()
        labels = _batch_of_integers(batch, "labels") if "labels" in batch else ids
        shapes = [tuple(tensor.shape) for tensor in (ids, visible, labels)]
        if len(set(shapes)) > 1:
            raise InputError(
                f"input_ids, attention_mask and labels of a batch have shapes {', '.join(map(str, shapes))}, which must"
                " be equal; use another data_collator"
            )
        if not ids.shape[1]:  # only empty rows, which models cannot read
            ids, visible, labels = (nn.functional.pad(tensor, (0, 1)) for tensor in (ids, visible, labels))
        lengths = visible.sum(dim=1).tolist()
        check_lengths(self.limits, lengths)
        ids, visible, labels = (
            tensor[:, : self._padded_length(ids.shape[1], max(lengths, default=0))]
            for tensor in _move_padding_right(ids, visible, labels)
        )
        ids = ids.masked_fill(~visible, 0)
        labels = labels.masked_fill(~visible, NO_LABEL)
        labels[:, :1] = NO_LABEL
        self._check_vocabulary("token ids", ids)
        self._check_vocabulary(f"labels other than {NO_LABEL}", labels[labels != NO_LABEL])
        _check_unmasked(ids, labels)
        return {"input_ids": ids, "attention_mask": visible.long(), "labels": labels}

    def _check_vocabulary(self, what: str, ids: Int[Tensor, "..."]) -> None:
        """Raise an InputError if token ids are outside of the vocabulary."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._vocabulary:
            raise InputError(
                f"the dataset has {what} from {int(ids.min())} to {int(ids.max())}, and the teacher's vocabulary"
                f" ends at {self._vocabulary - 1}; tokenize it with the teacher's tokenizer"
            )

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
        `input_ids`, `attention_mask` and `labels`, each [batch, position].

    Raises:
        InputError: see `row_tensors`.
    """
    rows = [row_tensors(row) for row in features]
    padding_values = dict.fromkeys(KEYS, 0) | {"labels": NO_LABEL}
    return {name: pad_sequence([row[name] for row in rows], True, padding_values[name]) for name in KEYS}


def following_tokens(labels: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Return the token that each position predicts; -100 where no prediction is counted.

    Args:
        labels: each position's own token, or -100, as in a batch of the Trainer.
    """
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], NO_LABEL)], dim=1)


def _check_unmasked(ids: Int[Tensor, "batch position"], labels: Int[Tensor, "batch position"]) -> None:
    """Raise an InputError if a label is not its token's own id: the token was masked, or the labels are shifted."""
    differs = (labels != NO_LABEL) & (labels != ids)
    if differs.any():
        raise InputError(
            f"labels of a batch differ from its token ids, such as {int(labels[differs][0])} at a token"
            f" {int(ids[differs][0])}, so tokens are masked or labels are shifted; give labels that are the token ids"
            f" or {NO_LABEL}, or {UNMASKED_ADVICE}"
        )


def _batch_of_integers(batch: Mapping[str, Any], name: str) -> Int[Tensor, "batch position"]:
    """Return token ids or labels of a batch; raise an InputError if they are not integers [batch, position]."""
    values = torch.as_tensor(batch[name])
    if values.ndim != 2 or (values.numel() and not holds_integers(values)):
        raise InputError(
            f"{name} of a batch must be integers [batch, position], got {values.dtype} {tuple(values.shape)}; use"
            " another data_collator"
        )
    return values.long()


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
