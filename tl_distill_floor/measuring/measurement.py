"""One pass over a teacher: activations at a hook point, through the SAE's encoder, into mergeable sums.

Nothing that is kept grows with the number of tokens. Codes are reduced batch by batch to the entries that are not 0,
and these to integer counts and float64 moments, so that sums are exact whatever the dtype of the codes. The entries
themselves are kept of a sample of whole sequences, whose size the caller bounds.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch
from tl_distill_floor.measuring.batch_sums import batch_sums
from tl_distill_floor.measuring.costs import COST_METHODS, cached_batches
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob, prepare_job
from tl_distill_floor.measuring.processes import SINGLE_PROCESS, ProcessGroup
from tl_distill_floor.measuring.strongest_contexts import described
from tl_distill_floor.results.codes import Codes
from tl_distill_floor.results.contexts import FeatureContexts, merge_contexts
from tl_distill_floor.results.feature_stats import MAX_BLOCKS, BlockSums, FeatureStats
from tl_distill_floor.results.feature_sums import Part, packed, unpacked

SECONDS_BETWEEN_SAVES = 20.0
"""A checkpoint holds the codes too, which are too large to be written after every block."""
Progress = Callable[[int, int], None]


def measure(
    model: Any,
    sae: Any = None,
    text: Any = None,
    *,
    layer: int | None = None,
    cost: str = "fisher",
    n_samples: int = 1,
    n_tokens: int = 200_000,
    n_codes: int = 200_000,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **where: Any,
) -> FeatureStats:
    """Measure an SAE's features on a teacher's activations: how often each fires, how strongly, and what it is worth.

    The SAE is called but never attached, and the model leaves as it came. Special tokens (by id) and the first position
    of every sequence do not count.

    Args:
        model: a HookedTransformer or TransformerBridge, or what `load_teacher` takes; None for cached activations.
        sae: a SAELens SAE, or what `load_sae` takes; None takes the one that is known for the model and layer.
        text: what `load_text` takes; None is the embedded text.
        layer: the layer after which the residual stream is read; the SAE's own when left out.
        cost: what a feature is worth, per token:
            "fisher": ½ E[(Σ_t a_t ⟨G_t, w⟩)²] over sequences, in nats: KL(teacher ‖ teacher without the feature) to
            second order, w its decoder row, G_t the slope in the activation of the log-probability of outputs drawn
            from the teacher. A whole forward pass and a backward pass to the hook point.
            "ablation": the same KL exactly. One more forward pass from the hook point on for every feature of a batch:
            for a few thousand tokens.
            "energy": E[a²] · ‖w‖² (the paper's I · E[x²]), in squared error summed over the dimensions of the hook
            point. A forward pass to the hook point. Cached activations have no outputs: they are measured by energy
            whatever was asked, and the result says so.
        n_samples: outputs sampled at each position for "fisher", one backward pass each; the sampling error of a cost
            falls as 1 / √n_samples.
        n_tokens: tokens to read, those that do not count included; fewer where the text ends before.
        n_codes: tokens whose codes are kept, for `simulated`; whole sequences, drawn at random where the text is
            longer (each with the probability `n_codes` / `n_tokens`, by its number alone); 0 keeps none.
        checkpoint: a file that holds what was measured so far, for `resume`: written every 20 seconds, at the end, and
            when an exception or Ctrl-C ends the measurement.
        resume: go on from `checkpoint` where it exists; the result is the same to the last bit. Refused where it kept
            another share of the codes, as with another `n_tokens` above `n_codes`.
        progress: called after every batch with the tokens read so far and in all.
        where: `hook_name`, `context_size`, `batch_size` (sequences), `device`, `dtype` ("fp32", "bf16"); see
            `prepare_job`.

    Raises:
        InputError: something cannot be loaded or does not belong together, the text is too short, the model has no
            logits, or an activation is not finite.
    """
    job = prepare_job(model, [sae], text, layers=[layer], **where)
    (stats,) = measure_subject(
        job, cost=cost, n_samples=n_samples, n_tokens=n_tokens, n_codes=n_codes, checkpoints=[checkpoint],
        resume=resume, progress=progress,
    )  # fmt: skip
    return stats


def measure_subject(
    job: MeasurementJob,
    *,
    cost: str = "fisher",
    n_samples: int = 1,
    n_tokens: int = 200_000,
    n_codes: int = 200_000,
    checkpoints: Sequence[str | Path | None] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    everyone: ProcessGroup = SINGLE_PROCESS,
) -> list[FeatureStats]:
    """Measure every SAE of a job, in one pass over the teacher; see `measure`.

    Args:
        everyone: the processes that share the work, each of which calls this; see `measuring.processes`.

    Returns:
        The statistics of every SAE; none in the processes after the first.

    Raises:
        InputError: see `measure`.
    """
    for name, value, least in (("of tokens", n_tokens, 1), ("of drawings", n_samples, 1)):
        if value < least:
            raise InputError(f"the number {name} must be at least {least}, got {value}")
    if cost not in COST_METHODS:
        raise InputError(f"cost must be one of {', '.join(COST_METHODS)}, got {cost}")
    if n_codes < 0:
        raise InputError(f"the number of tokens whose codes are kept must be at least 0, got {n_codes}")
    if everyone.n > 1 and job.teacher is None:
        raise InputError("cached activations are read by one process; start it without torchrun")
    fallen_back = job.teacher is None and cost != "energy"
    cost = "energy" if fallen_back else cost
    decides = {
        "share_of_codes": min(1.0, n_codes / n_tokens),
        "cost": cost,
        "n_samples": n_samples if cost == "fisher" else 0,
    }
    job = dataclasses.replace(job, settings=job.settings | decides)
    files = [Path(file) if file and everyone.is_first else None for file in checkpoints or [None] * len(job.saes)]
    so_far = [_SoFar.of(job, *each, resume) for each in zip(job.saes, files, strict=True)]
    _read_on(job, so_far, n_tokens, everyone, progress)
    if not everyone.is_first:
        return []
    return [
        _finished(job, attached, each.stats(), fallen_back) for attached, each in zip(job.saes, so_far, strict=True)
    ]


def _finished(
    job: MeasurementJob, attached: AttachedSae, stats: FeatureStats | None, fallen_back: bool
) -> FeatureStats:
    if stats is None or not stats.n_tokens:
        raise InputError(
            f"{job.stream.text.name} is too short: it fills no sequence of {job.stream.context_size} tokens with one"
            " that counts; give more text, or set --context-size lower"
        )
    warnings = job.warnings(attached)
    if fallen_back:
        warnings.append("cached activations have no outputs: costs are energy, in squared error, not nats")
    contexts = stats.contexts
    if contexts is not None and job.teacher is not None:
        contexts = described(contexts, job.model, attached.sae, attached.hook_name)
    return dataclasses.replace(stats, contexts=contexts, warnings=tuple(warnings))


class _SoFar:
    """What was measured so far of one SAE, and the file that holds it."""

    def __init__(self, file: Path | None, stats: FeatureStats | None) -> None:
        self.file, self.saved_at, self.is_saved = file, time.monotonic(), True
        self.parts = None if stats is None else _apart(stats)

    @classmethod
    def of(cls, job: MeasurementJob, attached: AttachedSae, file: Path | None, resume: bool) -> "_SoFar":
        before = FeatureStats.load(file) if file and resume and file.exists() else None
        if before is not None:
            _check_same(before, job.identity(attached), file)
        return cls(file, before)

    @property
    def n_read(self) -> int:
        return 0 if self.parts is None else self.parts[0].n_tokens + self.parts[0].n_masked

    def add(self, block: FeatureStats) -> None:
        sums, codes = _apart(block)
        # One assignment, so that Ctrl-C finds the sums and the codes of the same blocks.
        self.parts = (sums, codes) if self.parts is None else (self.parts[0].merge(sums), self.parts[1] + codes)
        self.is_saved = False
        if time.monotonic() - self.saved_at >= SECONDS_BETWEEN_SAVES:
            self.save()

    def stats(self) -> FeatureStats | None:
        """The codes are joined here, not block by block, which would copy them as often as there are blocks."""
        if self.parts is None:
            return None
        sums, parts = self.parts
        found = [part for part in parts if part is not None]
        joined = dataclasses.replace(sums, codes=Codes.joined(found) if len(found) == len(parts) else None)
        self.parts = _apart(joined)
        return joined

    def save(self) -> None:
        if self.file and not self.is_saved and (stats := self.stats()) is not None:
            stats.save(self.file)
            self.saved_at, self.is_saved = time.monotonic(), True


def _apart(stats: FeatureStats) -> tuple[FeatureStats, tuple[Codes | None, ...]]:
    """The sums, which stay small, and the codes, which do not."""
    return dataclasses.replace(stats, codes=None), (stats.codes,)


def _read_on(
    job: MeasurementJob, so_far: list[_SoFar], n_tokens: int, everyone: ProcessGroup, progress: Progress | None
) -> None:
    """Read the rest of the text, block by block, into what was measured so far."""
    done = everyone.agreed(min(each.n_read for each in so_far))
    with _parts(job, done, n_tokens, everyone) as parts:
        reported = _reported(parts, done, n_tokens, progress)
        try:
            for size in _block_sizes(done // job.stream.tokens_per_batch):
                blocks = block_stats(job, islice(reported, size))
                if blocks is None:
                    break
                for each, block in zip(so_far, blocks, strict=True):
                    if each.n_read == done:  # one of several may have been saved a block later than the others
                        each.add(block)
                done += blocks[0].n_tokens + blocks[0].n_masked
        finally:
            for each in so_far:
                each.save()
    if everyone.is_first and any(each.n_read < done for each in so_far):
        raise InputError("the checkpoints hold different parts of the text; delete them to start again")


@contextmanager
def _parts(job: MeasurementJob, done: int, n_tokens: int, everyone: ProcessGroup) -> Iterator[Iterator[list[Part]]]:
    """What each batch gives of every SAE."""
    settings = job.settings

    def summed_up(batches: list[ActivationBatch]) -> list[Part]:
        pairs = zip(job.saes, batches, strict=True)
        return [batch_sums(attached, b, settings["cost"], settings["share_of_codes"]) for attached, b in pairs]

    if job.teacher is None:
        yield (summed_up(batches) for batches in cached_batches(job, done, n_tokens))
        return
    with COST_METHODS[settings["cost"]].run(job, settings["n_samples"]) as step:
        tasks = (
            lambda first=first, ids=ids: summed_up(step(first, ids))  # type: ignore[misc]
            for first, ids in job.token_stream.batches(done, n_tokens)
        )
        yield everyone.in_turn(tasks, packed, unpacked)


def block_stats(job: MeasurementJob, parts: Iterator[list[Part]]) -> list[FeatureStats] | None:
    """For every SAE the statistics of one block of text, decided by its own batches alone; None of no batch."""
    blocks: list[_Block] = [_Block(job, attached) for attached in job.saes]
    read = 0
    for of_batch in parts:
        read += 1
        for block, part in zip(blocks, of_batch, strict=True):
            block.add(part)
    return [block.stats() for block in blocks] if read else None


class _Block:
    """The sums of one SAE over one block of text."""

    def __init__(self, job: MeasurementJob, attached: AttachedSae) -> None:
        self.job, self.attached = job, attached
        self.total: dict[str, Any] = {}
        self.codes: list[Codes] = []
        self.contexts: FeatureContexts | None = None

    def add(self, part: Part) -> None:
        sums, codes, contexts = part
        self.total = {name: self.total[name] + value for name, value in sums.items()} if self.total else sums
        self.codes += [] if codes is None else [codes]
        self.contexts = merge_contexts(self.contexts, contexts) if self.contexts else contexts

    def stats(self) -> FeatureStats:
        total = self.total
        return FeatureStats(
            **self.job.identity(self.attached),
            **total,
            decoder_norm=self.attached.decoder_norm,
            cost_unit=COST_METHODS[self.job.settings["cost"]].unit,
            blocks=BlockSums(np.array([total["n_tokens"]]), total["firing_count"][None], total["sum_cost"][None]),
            codes=Codes.joined(self.codes) if self.codes else None,
            contexts=self.contexts,
        )


def _block_sizes(batches_done: int) -> Iterator[int]:
    """Batches a block: 64 times one, then 32 times two, 32 times four, ..., without the first `batches_done`.

    `FeatureStats.merge` joins blocks two by two beyond 64, so that all but the last are always of one size.
    """
    size, blocks = 1, 0
    while True:
        if batches_done <= 0:
            yield size
        batches_done -= size
        blocks += 1
        if blocks == MAX_BLOCKS:
            size, blocks = 2 * size, MAX_BLOCKS // 2


def _check_same(stats: FeatureStats, asked: dict[str, Any], checkpoint: Path | None) -> None:
    """Raise an InputError where a checkpoint holds another measurement than the one that was asked for."""
    for name in ("model_name", "hook_name", "text_name", "d_model", "settings"):
        if getattr(stats, name) != asked[name]:
            raise InputError(
                f"{checkpoint} is of another measurement ({name}: {getattr(stats, name)}, now {asked[name]});"
                " use the same options, or delete it to start again"
            )


def _reported(parts: Iterator[list[Part]], done: int, total: int, progress: Progress | None) -> Iterator[list[Part]]:
    """What the batches give, each reported when the next is asked for."""
    for part in parts:
        yield part
        done += part[0].sums["n_tokens"] + part[0].sums["n_masked"]
        if progress:
            progress(done, max(total, done))
