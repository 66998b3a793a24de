"""Read the batches of a job, and sum over the tokens of each."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import CostMethod
from tl_distill_floor.measuring.activation_batch import ActivationBatch
from tl_distill_floor.measuring.active_codes import EncodedTokens
from tl_distill_floor.measuring.batch_sums import batch_sums, encode_batch
from tl_distill_floor.measuring.config import MeasureConfig
from tl_distill_floor.measuring.costs import COST_METHODS
from tl_distill_floor.measuring.job import MeasurementJob
from tl_distill_floor.measuring.passes import BatchReader, cached_batches
from tl_distill_floor.measuring.processes import ProcessGroup
from tl_distill_floor.results.feature_sums import FeatureSums, pack_sums, unpack_sums
from tl_distill_floor.sources.devices import is_gpu

NumberedBatches = Iterator[tuple[int, Int[Tensor, "batch position"]]]
"""Number of the first sequence of each batch, and its token ids."""


@contextmanager
def open_summed_batches(
    job: MeasurementJob, config: MeasureConfig, start: int, digest: int | None, process_group: ProcessGroup
) -> Iterator[Iterator[list[FeatureSums]]]:
    """Yield an iterator over the batches from token `start` on: one `FeatureSums` per SAE.

    Args:
        job: what is measured.
        config: how it is measured.
        start: tokens that are skipped.
        digest: digest of the skipped token ids; None if it is not known.
        process_group: the processes that share the work.
    """
    if job.teacher is None:
        batches = cached_batches(job, start, config.n_tokens)
        yield (_sums(job, config.cost, config.share_of_codes, batch) for batch in batches)
        return
    method = COST_METHODS[config.cost]
    in_advance = method.reads_ahead and is_gpu(job.saes[0].sae.W_dec.device)
    with method.open_reader(job, config.n_samples, job.settings["sequences_per_cost"]) as read_batch:
        yield process_group.run_in_order(
            job.token_stream.batches(start, config.n_tokens, digest),
            lambda items: sum_batches(job, config, read_batch, items, in_advance=in_advance),
            pack_sums,
            unpack_sums,
        )


def sum_batches(
    job: MeasurementJob, config: MeasureConfig, read_batch: BatchReader, batches: NumberedBatches, *, in_advance: bool
) -> Iterator[list[FeatureSums]]:
    """Yield the sums of each batch.

    Args:
        job: what is measured.
        config: how it is measured.
        read_batch: runs the teacher.
        batches: token ids.
        in_advance: whether the forward pass of the next batch is started before the sums of a batch are computed. So a
            GPU has work while the CPU waits for the sums, and codes of one batch only are held at a time.
    """
    waiting: tuple[list[ActivationBatch], EncodedTokens] | None = None
    for first, ids in batches:
        batch = read_batch(first, ids)
        if not in_advance:
            yield _sums(job, config.cost, config.share_of_codes, batch)
            continue
        if waiting:
            yield _sums(job, config.cost, config.share_of_codes, *waiting)
        waiting = None  # frees its codes
        # Only for the first SAE, since codes are the largest tensors.
        waiting = batch, encode_batch(job.saes[0], batch[0])
    if waiting:
        yield _sums(job, config.cost, config.share_of_codes, *waiting)


def _sums(
    job: MeasurementJob,
    cost: CostMethod,
    share_of_codes: float,
    batch: list[ActivationBatch],
    encoded: EncodedTokens | None = None,
) -> list[FeatureSums]:
    """Return the sums of a batch for each SAE; `encoded` are the codes of the first, if it is encoded already."""
    codes = [encoded, *[None] * len(job.saes)]
    return [
        batch_sums(attached, of_sae, cost, share_of_codes, codes_of_sae)
        for attached, of_sae, codes_of_sae in zip(job.saes, batch, codes, strict=False)
    ]
