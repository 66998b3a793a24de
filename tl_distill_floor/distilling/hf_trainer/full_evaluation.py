"""A Trainer that evaluates every row of its data sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments


class FullEvaluationTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` for which `dataloader_drop_last` holds in training only.

    Otherwise the last rows would not be evaluated, or none of a data set that is smaller than a batch.
    """

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader[Any]:
        """Return all batches of an evaluation data set.

        Args:
            eval_dataset: the data set, or the name of one of several; that of the Trainer if None.
        """
        with _last_batch_kept(self.args):
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def get_test_dataloader(self, test_dataset: object) -> DataLoader[Any]:
        """Return all batches of a data set to predict.

        Args:
            test_dataset: the data set.
        """
        with _last_batch_kept(self.args):
            loader: DataLoader[Any] = super().get_test_dataloader(test_dataset)
        return loader


@contextmanager
def _last_batch_kept(args: TrainingArguments) -> Iterator[None]:
    """Set `dataloader_drop_last` to False during the context."""
    drops_last = args.dataloader_drop_last
    args.dataloader_drop_last = False
    try:
        yield
    finally:
        args.dataloader_drop_last = drops_last
