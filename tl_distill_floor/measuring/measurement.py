"""`measure`: the statistics of an SAE's features, summed over a text in one pass.

Memory does not grow with the number of tokens. Each batch is reduced to integer counts and float64 sums, which are
added to the sums of the blocks before it. The codes themselves are kept for a random sample of sequences, whose size
the caller limits.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tl_distill_floor.annotations import CostMethod, Dtype, ProgressCallback, SaeLike, TeacherLike, TextLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.batch_loop import open_summed_batches
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.costs import COST_METHODS
from tl_distill_floor.measuring.fingerprints import teacher_fingerprint
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob, prepare_job
from tl_distill_floor.measuring.plausibility import TOKENS_TO_CHECK, check_plausible, plausibility_warnings
from tl_distill_floor.measuring.processes import SINGLE_PROCESS, ProcessGroup
from tl_distill_floor.measuring.strongest_contexts import RunningContexts, describe_contexts
from tl_distill_floor.measuring.token_stream import MAX_KEPT_TOKENS
from tl_distill_floor.results.block_sums import MAX_BLOCKS, BlockSums
from tl_distill_floor.results.feature_stats import STATS_FILE, FeatureStats, different_settings
from tl_distill_floor.results.feature_sums import FeatureSums
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.storage.versioned import resolve_file

SECONDS_BETWEEN_SAVES = 20.0
"""Least time between two checkpoints: they hold the codes, which are too large to be written after every block."""


@neutral_torch_state()
def measure(
    model: TeacherLike | None,
    sae: SaeLike | None = None,
    text: TextLike | None = None,
    *,
    layer: int | None = None,
    hook_name: str | None = None,
    cost: CostMethod = "fisher",
    n_samples: int = 1,
    n_tokens: int = 200_000,
    n_cost_tokens: int = 50_000,
    n_codes: int = 200_000,
    context_size: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    force: bool = False,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> FeatureStats:
    """Measure how often an SAE's features fire on a teacher's activations, how strongly, and what removing them costs.

    The SAE is called, but not attached to the model, and the model is not changed. Special tokens (by their ids) and
    the first position of each sequence are not counted.

    The cost of a feature with activation a_t and decoder row w is, per token:

    - "fisher": KL(teacher ‖ teacher without the feature) to second order, in nats: ½ E[(Σ_t a_t ⟨G_t, w⟩)²] over
      sequences, G_t the gradient of the log-probability of outputs sampled from the teacher, with respect to the
      activation (Amari 1998, eq. 2.7). It takes a full forward pass, and a backward pass to the hook point per sample.
    - "ablation": the same KL, exactly. It takes one more forward pass from the hook point per feature and batch, so it
      is feasible for a few thousand tokens.
    - "energy": E[a²] · ‖w‖² (I · E[x²] in Sarkar and Deka 2026, A1), in squared error summed over the dimensions of the
      hook point. It takes a forward pass to the hook point. Cached activations have no outputs: their costs are
      "energy" whatever the option says, and the result has a warning.

    Args:
        model: a HookedTransformer or TransformerBridge, or what `load_teacher` takes; None for cached activations.
        sae: a SAELens SAE, or what `load_sae` takes; None takes the known SAE of the model and layer.
        text: what `load_text` takes; None takes the text that comes with the package.
        layer: layer after which the residual stream is read; None takes the SAE's own.
        hook_name: hook point, by its HookedTransformer or TransformerBridge name; None takes the SAE's own.
        cost: how the cost of removing a feature is measured.
        n_samples: outputs sampled at each position for "fisher". The sampling error of a cost falls as 1 / √n_samples.
        n_tokens: tokens to read, including tokens that are not counted; fewer if the text is shorter.
        n_cost_tokens: tokens on which costs in nats are measured: about so many, at most twice as many, but more of a
            text of over 8 million tokens. Their sequences are spread over the text at random. On other tokens features
            are only counted, which takes a forward pass to the hook point.
        n_codes: tokens whose codes are kept, on average, for the simulated floor; 0 keeps none. Each sequence is kept
            with probability n_codes / n_tokens.
        context_size: tokens per sequence; None takes the SAE's training context.
        batch_size: sequences per batch.
        device: torch device of what is loaded here, or "auto"; see `load_teacher`.
        dtype: dtype of a teacher that is loaded here.
        force: go on with an SAE that does not fit the activations: one that leaves all of their variance unexplained,
            or whose L0 is not that which is stated with it, by a factor of 4. The result then has a warning.
        checkpoint: file for the sums so far, or its directory, written every 20 seconds, at the end, and if an
            exception or Ctrl-C ends the measurement.
        resume: continue from `checkpoint` if the file exists. The result is identical to an uninterrupted measurement.
        progress: called after every batch with the number of tokens read so far, and the total.

    Returns:
        The statistics of every feature, mergeable with those of another text.

    Raises:
        InputError: an input cannot be loaded, inputs do not belong together, an option is out of range, the text is too
            short, the model returns no logits, an activation is not finite, the SAE does not fit the activations, or
            the checkpoint is of another measurement.

    Example:
        >>> stats = measure("tiny-prose", "tiny-prose-sae", n_tokens=20_000)  # doctest: +SKIP
        >>> stats.cost[stats.alive()].sum()  # in nats per token  # doctest: +SKIP
    """
    config = MeasureConfig(
        cost=cost, n_samples=n_samples, n_tokens=n_tokens, n_cost_tokens=n_cost_tokens, n_codes=n_codes, force=force
    )
    loading = LoadConfig(context_size=context_size, batch_size=batch_size, device=device, dtype=dtype)
    job = prepare_job(model, [sae], text, loading, layers=[layer], hook_name=hook_name)
    (stats,) = measure_job(job, config, checkpoints=[checkpoint], resume=resume, progress=progress)
    return stats


def measure_job(
    job: MeasurementJob,
    config: MeasureConfig,
    *,
    checkpoints: Sequence[str | Path | None] | None = None,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> list[FeatureStats]:
    """Measure every SAE of a job in one pass over the text.

    Args:
        job: see `prepare_job`.
        config: what is measured, and on how many tokens.
        checkpoints: one file for each SAE, or None for an SAE without one; see `measure`.
        resume: see `measure`.
        progress: see `measure`.
        process_group: the processes that share the work. Each of them calls this function with the same job.

    Returns:
        The statistics of each SAE; an empty list in every process but the first.

    Raises:
        InputError: see `measure`.
    """
    if process_group.size > 1 and job.teacher is None:
        raise InputError("cached activations are read by one process; start it without torchrun")
    no_outputs = job.teacher is None and config.cost != "energy"
    config = dataclasses.replace(config, cost="energy") if no_outputs else config
    decisive = {
        "share_of_codes": config.share_of_codes,
        "cost": config.cost,
        "n_samples": config.n_samples if config.cost == "fisher" else 0,
        "sequences_per_cost": _sequences_per_cost(job, config),
    }
    job = dataclasses.replace(job, settings=job.settings | decisive)
    files = [
        resolve_file(file, STATS_FILE) if file and process_group.is_first else None
        for file in checkpoints or [None] * len(job.saes)
    ]
    measurements = [_Measurement(job, attached, file, resume) for attached, file in zip(job.saes, files, strict=True)]
    _read_text(job, config, measurements, process_group, progress)
    if not process_group.is_first:
        return []
    return [measurement.result(no_outputs, config.force) for measurement in measurements]


def _sequences_per_cost(job: MeasurementJob, config: MeasureConfig) -> int:
    """Return the number of sequences of which one has its costs measured: fewer if the text is short.

    Of a long text only the part is counted that is kept in memory, so that no text is tokenized twice for this.
    """
    if config.cost == "energy" or config.n_tokens < 2 * config.n_cost_tokens:
        return 1
    n_sequences = job.token_stream.count_sequences(min(config.n_tokens, MAX_KEPT_TOKENS))
    return config.sequences_per_cost(n_sequences, job.stream.context_size)


class _Measurement:
    """The sums of one SAE over the text read so far, and the checkpoint that they are saved to."""

    def __init__(self, job: MeasurementJob, attached: AttachedSae, file: Path | None, resume: bool) -> None:
        self.job, self.attached, self.file = job, attached, file
        self.saved_at, self.is_saved = time.monotonic(), True
        self.sums_and_blocks: tuple[FeatureSums, tuple[BlockSums, ...]] | None = None
        if file and resume and file.exists():
            stats = FeatureStats.load(file)
            self._check_same_measurement(stats, file)
            contexts = stats.contexts and RunningContexts.resume(stats.contexts, attached.sae.W_dec.device)
            self.sums_and_blocks = dataclasses.replace(stats.sums, contexts=contexts), (stats.blocks,)

    @property
    def n_read(self) -> int:
        """Tokens read so far, counted or not."""
        return 0 if self.sums_and_blocks is None else self.sums_and_blocks[0].n_read

    @property
    def ids_digest(self) -> int:
        """Digest of the token ids read so far; 0 if it is not known."""
        return 0 if self.sums_and_blocks is None else self.sums_and_blocks[0].ids_digest

    def add(self, block: FeatureSums) -> None:
        """Add the sums of the next block of text, and save the checkpoint from time to time."""
        sums, blocks = (None, ()) if self.sums_and_blocks is None else self.sums_and_blocks
        blocks = (*blocks, BlockSums.from_sums(block))
        # Concatenated only here and in `stats`: all blocks are much larger than one.
        if sum(len(part.n_tokens) for part in blocks) > MAX_BLOCKS:
            blocks = (BlockSums.concatenate(blocks),)
        # A single assignment, so that Ctrl-C cannot separate the sums from the blocks.
        self.sums_and_blocks = (block if sums is None else sums.merge(block), blocks)
        self.is_saved = False
        if time.monotonic() - self.saved_at >= SECONDS_BETWEEN_SAVES:
            self.save()

    def has_enough_to_check(self) -> bool:
        """Return whether enough text was read to check whether the SAE fits."""
        return self.sums_and_blocks is not None and self.sums_and_blocks[0].n_tokens >= TOKENS_TO_CHECK

    def check_plausible(self) -> None:
        """Raise an InputError if the SAE does not fit the activations read so far."""
        if self.sums_and_blocks is not None:
            check_plausible(self.sums_and_blocks[0], self.attached)

    def stats(self) -> FeatureStats | None:
        """Return the statistics of the text read so far; None if nothing was read."""
        if self.sums_and_blocks is None:
            return None
        identity = self.job.identity(self.attached) | {
            "decoder_norm": self.attached.decoder_norm,
            "cost_unit": COST_METHODS[self.job.settings["cost"]].unit,
        }
        sums, blocks = self.sums_and_blocks
        stats = FeatureStats.from_sums(sums, BlockSums.concatenate(blocks), identity)
        # The codes and blocks are in one part now; keeping it saves concatenating the same parts again.
        self.sums_and_blocks = dataclasses.replace(stats.sums, contexts=sums.contexts), (stats.blocks,)
        return stats

    def save(self) -> None:
        """Write the checkpoint, if there is a file for it and something new to save."""
        if self.file and not self.is_saved and (stats := self.stats()) is not None:
            stats.save(self.file)
            self.saved_at, self.is_saved = time.monotonic(), True

    def result(self, no_outputs: bool, force: bool) -> FeatureStats:
        """Return the final statistics, with warnings and described contexts.

        Args:
            no_outputs: whether costs are "energy" because cached activations have no outputs.
            force: whether an SAE that does not fit the activations is accepted.

        Raises:
            InputError: no token was counted, or the SAE does not fit the activations.
        """
        stats, stream = self.stats(), self.job.stream
        if stats is None or not stats.n_tokens:
            raise InputError(
                f"{stream.text.name} is too short: no sequence of {stream.context_size} tokens with a counted token;"
                " give more text, or set --context-size lower"
            )
        if not force:
            self.check_plausible()
        fingerprint = None if self.job.teacher is None else teacher_fingerprint(self.job.model, self.attached.hook_name)
        warnings = self.job.warnings(self.attached, fingerprint) + plausibility_warnings(stats.sums, self.attached)
        if no_outputs:
            warnings.append("cached activations have no outputs: costs are energy, in squared error, not nats")
        if self.job.teacher is None:
            return dataclasses.replace(stats, warnings=tuple(warnings))
        return dataclasses.replace(
            stats,
            contexts=stats.contexts and describe_contexts(stats.contexts, self.job.model),
            fingerprint=fingerprint,
            warnings=tuple(warnings),
        )

    def _check_same_measurement(self, stats: FeatureStats, file: Path) -> None:
        """Raise an InputError if a checkpoint is of another measurement than this one."""
        identity = self.job.identity(self.attached)
        names = ("model_name", "hook_name", "sae_name", "text_name", "d_model")
        pairs = {name: f"{getattr(stats, name)} and {identity[name]}" for name in names}
        different = {name: pairs[name] for name in names if getattr(stats, name) != identity[name]}
        different |= different_settings(stats.settings, identity["settings"])
        if different:
            listed = ", ".join(f"{name}: {values}" for name, values in different.items())
            raise InputError(
                f"{file} is of another measurement ({listed}); use the same options, or delete it to start again"
            )


def _read_text(
    job: MeasurementJob,
    config: MeasureConfig,
    measurements: list[_Measurement],
    process_group: ProcessGroup,
    progress: ProgressCallback | None,
) -> None:
    """Read the rest of the text, block by block, and add it to the measurements."""
    resumed = min(measurements, key=lambda measurement: measurement.n_read)
    done, digest = process_group.broadcast(resumed.n_read), process_group.broadcast(resumed.ids_digest)
    is_checked = config.force
    with open_summed_batches(job, config, done, digest or None, process_group) as batches:
        reported = _report_progress(batches, done, config.n_tokens, progress)
        try:
            for size in _block_sizes(done // job.stream.tokens_per_batch):
                block = sum_block(islice(reported, size))
                if block is None:
                    break
                for measurement, sums in zip(measurements, block, strict=True):
                    if measurement.n_read == done:  # one checkpoint may be a block ahead of the others
                        measurement.add(sums)
                done += block[0].n_read
                if not is_checked and all(measurement.has_enough_to_check() for measurement in measurements):
                    _check_early(measurements)
                    is_checked = True
        finally:
            for measurement in measurements:
                measurement.save()
    read = {(measurement.n_read, measurement.ids_digest) for measurement in measurements}
    if process_group.is_first and len(read) > 1:
        raise InputError("the checkpoints hold different parts of the text; delete them to start again")


def _check_early(measurements: list[_Measurement]) -> None:
    """Raise an InputError if an SAE does not fit the activations; then no checkpoint is written."""
    try:
        for measurement in measurements:
            measurement.check_plausible()
    except InputError:
        for measurement in measurements:
            measurement.is_saved = True
        raise


def sum_block(batches: Iterator[list[FeatureSums]]) -> list[FeatureSums] | None:
    """Merge the batches of a block; None if there is no batch.

    Args:
        batches: for each batch the sums of each SAE.
    """
    block: list[FeatureSums] | None = None
    for batch in batches:
        block = batch if block is None else [one.merge(other) for one, other in zip(block, batch, strict=True)]
    return block


def _block_sizes(n_batches_done: int) -> Iterator[int]:
    """Yield the sizes in batches of the blocks after the first `n_batches_done` batches.

    Sizes are 64 times one batch, then 32 times two, 32 times four, and so on. `BlockSums` joins neighbours when
    there are more than 64 blocks, so all blocks but the last are of one size.
    """
    size, n_blocks = 1, 0
    while True:
        if n_batches_done <= 0:
            yield size
        n_batches_done -= size
        n_blocks += 1
        if n_blocks == MAX_BLOCKS:
            size, n_blocks = 2 * size, MAX_BLOCKS // 2


def _report_progress(
    batches: Iterator[list[FeatureSums]], done: int, total: int, progress: ProgressCallback | None
) -> Iterator[list[FeatureSums]]:
    """Yield batches, and report each when the next is requested."""
    for batch in batches:
        yield batch
        done += batch[0].n_read
        if progress:
            progress(done, max(total, done))
