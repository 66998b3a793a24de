"""Collect the activations that probes are fitted to."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from tl_distill_floor.annotations import HookedModel
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import depends_on_what_follows
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.probing.examples import MEAN_POSITION, TaskExamples, TokenizedExamples
from tl_distill_floor.sources.context_lengths import check_vocabulary
from tl_distill_floor.sources.devices import device_of


class ActivationViews(NamedTuple):
    """Functions that turn the activation at a hook point into one or more named arrays to probe."""

    per_token: Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token pooled"]]
    """Applied to each token, before the mean over a text is taken."""
    after_pooling: Callable[[Float[Tensor, "example pooled"]], Mapping[str, Float[Tensor, "example view"]]]
    """Applied to each example after pooling; linear, so that it commutes with the mean."""


PLAIN_ACTIVATION = ActivationViews(lambda activation: activation, lambda pooled: {"activation": pooled})
"""The activation itself."""


class PooledBatch(NamedTuple):
    """The activations of one task's examples in a batch of texts."""

    task: int
    """Index of the task."""
    rows: Int64[np.ndarray, " example"]
    """Indices of the examples in their task."""
    views: Mapping[str, Float[Tensor, "example _"]]
    """Named arrays to probe."""


def collect_activations(
    model: HookedModel,
    hook_name: str,
    examples: TokenizedExamples,
    views: ActivationViews = PLAIN_ACTIVATION,
    *,
    batch_size: int = 16,
) -> dict[str, list[Float32[np.ndarray, "_ _"]]]:
    """Return the activation of every labelled example.

    Texts of similar length share a batch. They are padded on the right, which cannot change earlier positions of a
    causal model. Of other models, each text is a batch.

    Args:
        model: a HookedTransformer or TransformerBridge.
        hook_name: the hook point.
        examples: tokenized texts and the examples in them.
        views: what is computed from the activation.
        batch_size: texts per forward pass.

    Returns:
        For each view, one array [example, dimension] per task; the number of examples differs between tasks.

    Raises:
        InputError: the model has no such hook point, an activation is not finite, or a token is not in the vocabulary.
    """
    collected: dict[str, list[np.ndarray]] = {}
    for pooled in pooled_batches(model, hook_name, examples, views, batch_size=batch_size):
        for name, view in pooled.views.items():
            if name not in collected:
                collected[name] = [np.zeros((len(each), view.shape[1]), dtype=np.float32) for each in examples.tasks]
            collected[name][pooled.task][pooled.rows] = view.float().cpu().numpy()
    return collected


def pooled_batches(
    model: HookedModel, hook_name: str, examples: TokenizedExamples, views: ActivationViews, *, batch_size: int
) -> Iterator[PooledBatch]:
    """Yield the activations of the labelled examples, for each batch of texts and each task; see `collect_activations`.

    Args:
        model: a HookedTransformer or TransformerBridge.
        hook_name: the hook point.
        examples: tokenized texts and the examples in them.
        views: what is computed from the activation.
        batch_size: texts per forward pass.

    Raises:
        InputError: the model has no such hook point, an activation is not finite, or a token is not in the vocabulary.

    Example:
        >>> for batch in pooled_batches(model, hook_name, examples, PLAIN_ACTIVATION, batch_size=16):  # doctest: +SKIP
        ...     print(batch.task, batch.rows, batch.views["activation"].shape)
    """
    used_texts = np.unique(np.concatenate([task.text for task in examples.tasks]))
    by_length = sorted(used_texts.tolist(), key=lambda text: len(examples.ids[text]))
    if depends_on_what_follows(model, hook_name):
        batch_size = 1
    rows_of_text = [_rows_by_text(task) for task in examples.tasks]
    check_vocabulary(model, max((int(ids.max()) for ids in examples.ids if len(ids)), default=0))
    with activation_reader(model, [hook_name]) as read:
        for first in range(0, len(by_length), batch_size):
            texts = by_length[first : first + batch_size]
            padded = nn.utils.rnn.pad_sequence([examples.ids[text] for text in texts], batch_first=True)
            rows = [[rows_of(text) for rows_of in rows_of_text] for text in texts]
            lengths = [len(examples.ids[text]) for text in texts]
            with torch.no_grad():  # not around the loop, which would also hold for the code that reads the batches
                (activation,) = read(padded.to(device_of(model)))
                if not activation.isfinite().all():
                    raise InputError(f"the activation at {hook_name} holds NaN or Inf; load the model in fp32")
                counted = [examples.counted[text] for text in texts]
                pooled = _pool(examples, rows, activation.flatten(2).float(), lengths, counted, views)
                batch_views = [views.after_pooling(values) for values in pooled]
            for task, of_task in enumerate(batch_views):
                yield PooledBatch(task, np.concatenate([text_rows[task] for text_rows in rows]), of_task)


def _rows_by_text(task: TaskExamples) -> Callable[[int], Int64[np.ndarray, " example"]]:
    """Return a function from a text to the indices of its examples."""
    order = np.argsort(task.text, kind="stable")
    sorted_texts = task.text[order]
    return lambda text: order[np.searchsorted(sorted_texts, text) : np.searchsorted(sorted_texts, text, side="right")]


def _pool(
    examples: TokenizedExamples,
    rows: list[list[Int64[np.ndarray, " _"]]],
    activation: Float[Tensor, "text position d_model"],
    lengths: list[int],
    counted: list[Int64[np.ndarray, " _"]],
    views: ActivationViews,
) -> list[Float[Tensor, "_ pooled"]]:
    """Return the pooled values of a batch's examples for each task, text after text.

    Args:
        examples: all examples.
        rows: [text][task] indices of the examples in each text of the batch.
        activation: activations of the batch.
        lengths: [text] tokens without padding.
        counted: [text] positions that a mean is taken over.
        views: what is computed from the activation.
    """
    positions = [
        [task.position[task_rows] for task, task_rows in zip(examples.tasks, text_rows, strict=True)]
        for text_rows in rows
    ]
    tokens = [_needed_tokens(text_positions, n) for text_positions, n in zip(positions, lengths, strict=True)]
    needed = torch.cat([activation[text, torch.from_numpy(indices)] for text, indices in enumerate(tokens)])
    values = torch.split(views.per_token(needed), [len(indices) for indices in tokens])

    def values_at(text: int, wanted: Int64[np.ndarray, " _"]) -> Tensor:
        return values[text][torch.from_numpy(np.searchsorted(tokens[text], wanted))]

    def pool_text(text: int, wanted: Int64[np.ndarray, " _"]) -> Tensor:
        if (wanted == MEAN_POSITION).any():
            return values_at(text, counted[text]).mean(0, keepdim=True).expand(len(wanted), -1)
        return values_at(text, wanted)

    return [
        torch.cat([pool_text(text, positions[text][task]) for text in range(len(rows))])
        for task in range(len(examples.tasks))
    ]


def _needed_tokens(positions: list[Int64[np.ndarray, " _"]], length: int) -> Int64[np.ndarray, " token"]:
    """Return the positions to read in one text: all but the first if a mean is needed, else those of its examples."""
    wanted = np.unique(np.concatenate(positions))
    return np.arange(1, length) if MEAN_POSITION in wanted else wanted
