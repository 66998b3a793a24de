"""Measure losses in nats by running the teacher again with features removed or replaced."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch
from tl_distill_floor.measuring.active_codes import encode
from tl_distill_floor.measuring.costs import kl_after_change
from tl_distill_floor.measuring.job import MeasurementJob
from tl_distill_floor.measuring.logit_map import OUTPUTS_NOT_FINITE
from tl_distill_floor.measuring.passes import rerun_pass
from tl_distill_floor.measuring.rerun import ALL_POSITIONS, Positions
from tl_distill_floor.measuring.sampling import NUMBERS_AT_ONCE, one_of_each_group
from tl_distill_floor.measuring.token_stream import TokenStream, mask_positions
from tl_distill_floor.results.tail_loss import TailLoss

RestoreCodes = Callable[[Float[Tensor, "token feature"]], Float[Tensor, "token feature"]]
"""A function from the SAE's codes to the codes that a student reconstructs from its fewer dimensions."""
LossesOfBatch = Callable[[ActivationBatch, Positions], Iterator[Float64[Tensor, " sequence"]]]
"""A function from a batch and the measured positions to the summed KL (nats) of its sequences, in one or several cases.
"""
POSITIONS_PER_MEASURED, MIN_CONTEXT_SIZE = 4, 64
"""Positions of which one is measured, in sequences of at least so many. The losses of a sequence are alike: measuring a
quarter of them adds less to the standard error than the choice of the sequences."""


def measure_tail_loss(
    job: MeasurementJob,
    order: Int64[np.ndarray, " ordered"],
    ranks: Int64[np.ndarray, " rank"],
    additive: Float64[np.ndarray, " rank"],
    sequences: Int64[np.ndarray, " sequence"],
    *,
    progress: ProgressCallback | None = None,
) -> TailLoss:
    """Measure KL(teacher ‖ teacher without the features beyond a rank); the SAE's reconstruction error stays.

    It takes one forward pass of the sequences, and for each rank another one from the hook point's block. The loss is
    measured at one of each four positions; at every position if the SAE reads only some of them.

    Args:
        job: a teacher, a text and one SAE.
        order: features, the most costly first; features that are not in it are removed together with the last.
        ranks: numbers of features to keep, ascending from 0.
        additive: summed cost of the features beyond each rank, in nats per token.
        sequences: numbers of the text's sequences that are run.
        progress: called with the number of sequences done, and the total.

    Returns:
        The losses in nats, summed over each sequence.

    Raises:
        InputError: the model returns no logits, or some that are not finite, the job has several SAEs, or the text has
            no counted token in these sequences.
    """
    decoder = job.saes[0].sae.W_dec.detach().float()
    rank_of_feature = torch.full((len(decoder),), len(order), dtype=torch.int64)
    rank_of_feature[torch.from_numpy(order.copy())] = torch.arange(len(order))
    rank_of_feature = rank_of_feature.to(decoder.device)
    bounds = [*ranks.tolist(), len(order) + 1]

    def losses(batch: ActivationBatch, positions: Positions) -> Iterator[Tensor]:
        codes = encode(job.saes[0].sae, batch.activation).active()
        value, rank = codes.value.float(), rank_of_feature[codes.feature]
        removed = torch.zeros(len(batch.activation), decoder.shape[1], device=decoder.device)
        # From the last rank to the first, so that every feature is removed once.
        for first, last in reversed(list(pairwise(bounds))):
            entries = ((rank >= first) & (rank < last)).nonzero().squeeze(1)
            for chunk in torch.split(entries, max(1, NUMBERS_AT_ONCE // decoder.shape[1])):
                removed.index_add_(0, codes.token[chunk], value[chunk, None] * decoder[codes.feature[chunk]])
            changed = torch.arange(len(removed), device=removed.device)
            yield kl_after_change(batch, changed, -removed, positions=positions)

    loss, n_tokens = _run_sequences(job, sequences, losses, progress)
    return TailLoss(ranks, additive, loss[::-1].copy(), n_tokens, sequences)


def measure_restored_loss(
    job: MeasurementJob,
    students: Sequence[RestoreCodes],
    sequences: Int64[np.ndarray, " sequence"],
    progress: ProgressCallback | None = None,
) -> tuple[Float64[np.ndarray, "student sequence"], Int64[np.ndarray, " sequence"]]:
    """Measure KL(teacher ‖ teacher with the codes that a student restores); the SAE's reconstruction error stays.

    The positions are those of `measure_tail_loss`.

    Args:
        job: a teacher, a text and one SAE.
        students: for each student the function that restores codes.
        sequences: numbers of the text's sequences that are run.
        progress: called with the number of sequences done, and the total.

    Returns:
        The losses in nats, summed over each sequence [student, sequence], and the measured tokens [sequence].

    Raises:
        InputError: see `measure_tail_loss`.
    """
    sae = job.saes[0].sae
    decoder = sae.W_dec.detach().float()

    def losses(batch: ActivationBatch, positions: Positions) -> Iterator[Tensor]:
        tokens_at_once = max(1, NUMBERS_AT_ONCE // len(decoder))
        for restore in students:
            changes = []
            for acts in torch.split(batch.activation, tokens_at_once):
                codes = sae.encode(acts).flatten(1).float()
                changes.append((restore(codes) - codes) @ decoder)
            changed = torch.arange(len(batch.activation), device=decoder.device)
            yield kl_after_change(batch, changed, torch.cat(changes), positions=positions)

    return _run_sequences(job, sequences, losses, progress)


def _run_sequences(
    job: MeasurementJob,
    sequences: Int64[np.ndarray, " sequence"],
    losses: LossesOfBatch,
    progress: ProgressCallback | None,
) -> tuple[Float64[np.ndarray, "case sequence"], Int64[np.ndarray, " sequence"]]:
    """Return the losses of every case and sequence, and the measured tokens of every sequence."""
    loss_of_batches, tokens_of_batches, done = [], [], 0
    positions = _measured_positions(job.token_stream)
    is_measured = torch.zeros(job.stream.context_size, dtype=torch.bool)
    is_measured[positions] = True
    with torch.no_grad(), rerun_pass(job, 0) as read_batch:
        for ids in _select_sequences(job, sequences):
            (batch,) = read_batch(0, ids)
            of_batch = torch.stack(list(losses(batch, positions))).cpu().numpy()
            batch.check_finite(job.saes[0].hook_name)
            loss_of_batches.append(of_batch)
            measured_rows = batch.row[is_measured[batch.position]]
            tokens_of_batches.append(np.bincount(measured_rows.numpy(), minlength=len(ids)))
            done += len(ids)
            if progress:
                progress(done, len(sequences))
    if not tokens_of_batches or sum(int(tokens.sum()) for tokens in tokens_of_batches) == 0:
        raise InputError(f"{job.stream.text.name} holds no token whose loss could be measured; give more text")
    if done != len(sequences):
        raise InputError(f"{job.stream.text.name} has changed since it was measured; give text that can be read twice")
    loss = np.concatenate(loss_of_batches, axis=1)
    if not np.isfinite(loss).all():
        raise InputError(OUTPUTS_NOT_FINITE)
    return loss, np.concatenate(tokens_of_batches)


def _measured_positions(stream: TokenStream) -> Positions:
    """Return the positions at which losses are measured: one of each four, at random, or all in short sequences.

    The first is 1, so that tokens are measured in every sequence of at least two tokens. If only some positions are
    counted, all are measured: the loss is largest at those, and one of each four need not hold a quarter of them.
    """
    size = stream.context_size
    counts_all = torch.equal(mask_positions((1, size), stream.positions), mask_positions((1, size), None))
    if size < MIN_CONTEXT_SIZE or not counts_all:
        return ALL_POSITIONS
    others = torch.arange(POSITIONS_PER_MEASURED, size - 1)
    chosen = others[one_of_each_group(others, POSITIONS_PER_MEASURED)]
    return 1 + torch.cat([torch.zeros(1, dtype=torch.int64), chosen])


def _select_sequences(
    job: MeasurementJob, sequences: Int64[np.ndarray, " sequence"]
) -> Iterator[Int[Tensor, "batch position"]]:
    """Yield the token ids of some of the text's sequences in batches, in the order of the text."""
    if not len(sequences):
        return
    is_selected: Bool[np.ndarray, " number"] = np.zeros(int(sequences.max()) + 1, dtype=bool)
    is_selected[sequences] = True
    pending: list[Tensor] = []
    for first, ids in job.token_stream.batches(0, len(is_selected) * job.stream.context_size):
        pending += list(ids[torch.from_numpy(is_selected[first : first + len(ids)])])
        while len(pending) >= job.stream.batch_size:
            yield torch.stack(pending[: job.stream.batch_size])
            pending = pending[job.stream.batch_size :]
    if pending:
        yield torch.stack(pending)
