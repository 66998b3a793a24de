"""Losses in nats, measured: the teacher is run again, from the hook point on, without what a student does not hold."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch
from tl_distill_floor.measuring.costs import NUMBERS_AT_ONCE, rerun_kl, rerun_pass
from tl_distill_floor.measuring.job import MeasurementJob
from tl_distill_floor.results.tail_loss import TailLoss

Progress = Callable[[int, int], None]
Restored = Callable[[Float[Tensor, "token feature"]], Float[Tensor, "token feature"]]
"""From the SAE's codes to what a student gives back of them."""


def tail_losses(
    job: MeasurementJob,
    order: Int64[np.ndarray, " ordered"],
    ranks: Int64[np.ndarray, " rank"],
    additive: Float64[np.ndarray, " rank"],
    sequences: Int64[np.ndarray, " sequence"],
    *,
    progress: Progress | None = None,
) -> TailLoss:
    """KL(teacher ‖ teacher without the features beyond a rank), the SAE's error left in place.

    One forward pass of the sequences, and one from the hook point's block on for every rank.

    Args:
        job: a teacher, a text and one SAE.
        order: features, the most costly first; those that are not named are removed with the last.
        ranks: how many features are kept, rising from 0.
        additive: summed cost of the features beyond each rank, nats per token.
        sequences: numbers of the text's sequences that are run.
        progress: called with sequences done and in all.

    Raises:
        InputError: the model gives no logits, or the text holds none of the sequences.
    """
    decoder = job.saes[0].sae.W_dec.detach().float()
    rank = torch.full((len(decoder),), len(order), dtype=torch.int64)
    rank[torch.from_numpy(order.copy())] = torch.arange(len(order))
    of_entry = rank.to(decoder.device)

    def losses(batch: ActivationBatch) -> Iterator[Tensor]:
        codes = job.saes[0].sae.encode(batch.activation).flatten(1)
        token, feature = codes.nonzero(as_tuple=True)
        contribution = (codes[token, feature].float(), of_entry[feature])
        removed = torch.zeros(len(codes), decoder.shape[1], device=decoder.device)
        bounds = [*ranks.tolist(), len(order) + 1]
        # From the last rank to the first, so that every feature is removed once.
        for first, last in reversed(list(pairwise(bounds))):
            some = ((contribution[1] >= first) & (contribution[1] < last)).nonzero().squeeze(1)
            for part in torch.split(some, max(1, NUMBERS_AT_ONCE // decoder.shape[1])):
                removed.index_add_(0, token[part], contribution[0][part, None] * decoder[feature[part]])
            yield rerun_kl(batch, torch.arange(len(codes), device=removed.device), -removed)

    loss, n_tokens = _over_sequences(job, sequences, losses, progress)
    return TailLoss(ranks, additive, loss[::-1].copy(), n_tokens, sequences)


def student_losses(
    job: MeasurementJob,
    students: Sequence[Restored],
    sequences: Int64[np.ndarray, " sequence"],
    progress: Progress | None = None,
) -> tuple[Float64[np.ndarray, "student sequence"], Int64[np.ndarray, " sequence"]]:
    """KL(teacher ‖ teacher with the codes that a student gives back), the SAE's error left in place.

    Returns:
        Nats summed over the positions of each sequence, and the tokens of each that count.

    Raises:
        InputError: the model gives no logits, or the text holds none of the sequences.
    """
    sae = job.saes[0].sae
    decoder = sae.W_dec.detach().float()

    def losses(batch: ActivationBatch) -> Iterator[Tensor]:
        at_once = max(1, NUMBERS_AT_ONCE // len(decoder))
        for student in students:
            parts = []
            for acts in torch.split(batch.activation, at_once):
                codes = sae.encode(acts).flatten(1).float()
                parts.append((student(codes) - codes) @ decoder)
            yield rerun_kl(batch, torch.arange(len(batch.activation), device=decoder.device), torch.cat(parts))

    return _over_sequences(job, sequences, losses, progress)


def _over_sequences(
    job: MeasurementJob,
    sequences: Int64[np.ndarray, " sequence"],
    losses: Callable[[ActivationBatch], Iterator[Tensor]],
    progress: Progress | None,
) -> tuple[Float64[np.ndarray, "case sequence"], Int64[np.ndarray, " sequence"]]:
    found, counted, done = [], [], 0
    with torch.no_grad(), rerun_pass(job, 0) as step:
        for ids in _chosen(job, sequences):
            (batch,) = step(0, ids)
            found.append(torch.stack(list(losses(batch))).numpy())
            counted.append(np.bincount(batch.row.numpy(), minlength=len(ids)))
            done += len(ids)
            if progress:
                progress(done, len(sequences))
    if not found or sum(int(c.sum()) for c in counted) == 0:
        raise InputError(f"{job.stream.text.name} holds no token whose loss could be measured; give more text")
    if done != len(sequences):
        raise InputError(f"{job.stream.text.name} no longer holds what was measured; give text that can be read twice")
    return np.concatenate(found, axis=1), np.concatenate(counted)


def _chosen(job: MeasurementJob, sequences: Int64[np.ndarray, " sequence"]) -> Iterator[Int[Tensor, "batch position"]]:
    """The token ids of some of the text's sequences, batch by batch, in the text's order."""
    if not len(sequences):
        return
    wanted: Bool[np.ndarray, " number"] = np.zeros(int(sequences.max()) + 1, dtype=bool)
    wanted[sequences] = True
    waiting: list[Tensor] = []
    for first, ids in job.token_stream.batches(0, len(wanted) * job.stream.context_size):
        waiting += list(ids[torch.from_numpy(wanted[first : first + len(ids)])])
        while len(waiting) >= job.stream.batch_size:
            yield torch.stack(waiting[: job.stream.batch_size])
            waiting = waiting[job.stream.batch_size :]
    if waiting:
        yield torch.stack(waiting)
