"""One pass over a teacher: activations at a hook point, through the SAE's encoder, into mergeable sums.

Nothing that is kept grows with the number of tokens. Codes are reduced batch by batch to the entries that are not 0,
and these to integer counts and float64 moments, so that sums are exact whatever the dtype of the codes. The entries
themselves are kept of a sample of whole sequences, whose size the caller bounds.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from tl_distill_floor.codes import Codes
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.subject import Batch, Subject, subject_of
from tl_distill_floor.records import MAX_BLOCKS, Blocks, FeatureStats

COSTS = ("energy",)
SAMPLE_EVERY = 32
"""One token in so many, drawn at random, is decoded to measure what the SAE leaves unexplained."""
SECONDS_BETWEEN_SAVES = 20.0
"""A checkpoint holds the codes too, which are too large to be written after every block."""
Progress = Callable[[int, int], None]


def measure(
    model: Any,
    sae: Any = None,
    text: Any = None,
    *,
    cost: str = "energy",
    n_tokens: int = 200_000,
    n_codes: int = 200_000,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **where: Any,
) -> FeatureStats:
    """Measure an SAE's features on a teacher's activations: how often each fires, how strongly, and what it is worth.

    The forward pass stops at the hook point, the SAE is called but never attached, and the model leaves as it came.
    Special tokens (by id) and the first position of every sequence do not count.

    Args:
        model: a HookedTransformer or TransformerBridge, or what `load_teacher` takes; None for cached activations.
        sae: a SAELens SAE, or what `load_sae` takes; None takes the one that is known for the model and layer.
        text: what `load_text` takes; None is the embedded text.
        cost: "energy": E[a²] · ‖w‖² per feature, w its decoder row (the paper's I · E[x²]), in squared error per
            token summed over the dimensions of the hook point.
        n_tokens: tokens to read, those that do not count included; fewer where the text ends before.
        n_codes: tokens whose codes are kept, for `simulated`; whole sequences, drawn at random where the text is
            longer (each with the probability `n_codes` / `n_tokens`, by its number alone); 0 keeps none.
        checkpoint: a file that holds what was measured so far, for `resume`: written every 20 seconds, at the end, and
            when an exception or Ctrl-C ends the measurement.
        resume: go on from `checkpoint` where it exists; the result is the same to the last bit. Refused where it kept
            another share of the codes, as with another `n_tokens` above `n_codes`.
        progress: called after every batch with the tokens read so far and in all.
        where: `layer`, `hook_name`, `context_size`, `batch_size` (sequences), `device`, `dtype` ("fp32", "bf16"); see
            `subject_of`.

    Raises:
        InputError: something cannot be loaded or does not belong together, the text is too short, or an activation is
            not finite.
    """
    if cost not in COSTS:
        raise InputError(f"cost must be one of {', '.join(COSTS)}, got {cost}")
    if n_tokens < 1:
        raise InputError(f"the number of tokens must be at least 1, got {n_tokens}")
    if n_codes < 0:
        raise InputError(f"the number of tokens whose codes are kept must be at least 0, got {n_codes}")
    subject = subject_of(model, sae, text, **where)
    share = {"share_of_codes": min(1.0, n_codes / n_tokens)}
    subject = dataclasses.replace(subject, settings=subject.settings | share)
    file = Path(checkpoint) if checkpoint else None
    before = FeatureStats.load(file) if file and resume and file.exists() else None
    if before is not None:
        _check_same(before, subject, file)
    stats = _read_on(subject, _SoFar(file, before), n_tokens, progress)
    if stats is None or not stats.n_tokens:
        raise InputError(
            f"{subject.text_name} is too short: it fills no sequence of {subject.context_size} tokens with one that"
            " counts; give more text, or set --context-size lower"
        )
    return dataclasses.replace(stats, warnings=tuple(subject.warnings()))


class _SoFar:
    """What was measured so far, and the file that holds it."""

    def __init__(self, file: Path | None, stats: FeatureStats | None) -> None:
        self.file, self.saved_at, self.is_saved = file, time.monotonic(), True
        self.parts = None if stats is None else _apart(stats)

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


def _read_on(subject: Subject, so_far: _SoFar, n_tokens: int, progress: Progress | None) -> FeatureStats | None:
    """What was measured so far and the rest of the text, block by block."""
    done = so_far.n_read
    with subject.batches(done, n_tokens) as batches:
        reported = _reported(batches, done, n_tokens, progress)
        try:
            for size in _block_sizes(done // subject.tokens_per_batch):
                block = block_stats(subject, islice(reported, size))
                if block is None:
                    break
                so_far.add(block)
        finally:
            so_far.save()
    return so_far.stats()


def block_stats(subject: Subject, batches: Iterator[Batch]) -> FeatureStats | None:
    """The statistics of one block of text, which nothing but its own batches decides; None where there are none."""
    total: dict[str, Any] = {}
    share, kept = subject.settings["share_of_codes"], []
    for batch in batches:
        sums, codes = batch_sums(subject.sae, batch, share)
        total = {name: total[name] + value for name, value in sums.items()} if total else sums
        kept += [] if codes is None else [codes]
    if not total:
        return None
    norm = decoder_norm(subject.sae)
    energy = total["sum_act_sq"] * norm**2
    return FeatureStats(
        **subject.identity(),
        **total,
        decoder_norm=norm,
        sum_cost=energy,
        cost_unit="mse",
        blocks=Blocks(np.array([total["n_tokens"]]), total["firing_count"][None], energy[None]),
        codes=Codes.joined(kept) if kept else None,
    )


@torch.no_grad()
def batch_sums(sae: Any, batch: Batch, share_of_codes: float) -> tuple[dict[str, Any], Codes | None]:
    """What is summed over the tokens of one batch, under the names of `FeatureStats`, and the codes that are kept."""
    acts = batch.activation
    codes = sae.encode(acts).flatten(1)
    token_feature = codes.flatten().nonzero().squeeze(1)
    found = codes.flatten()[token_feature]
    values = found.double()
    if not values.isfinite().all():
        raise InputError("the SAE's codes hold NaN or Inf; load the SAE in fp32, or name another with --sae")
    feature, n = token_feature % codes.shape[1], codes.shape[1]
    sample = _sample(len(acts)).to(acts.device)
    seen = acts[sample].flatten(1).double()
    missed = seen - sae.decode(codes[sample]).flatten(1).to(seen)
    sums = {
        "n_tokens": len(acts),
        "n_masked": batch.n_masked,
        "firing_count": _count(feature, n),
        "sum_act": _sum(feature, values, n),
        "sum_act_sq": _sum(feature, values.square(), n),
        "sampled_tokens": len(seen),
        "sampled_sum": seen.sum(0).cpu().numpy(),
        "sampled_sum_sq": seen.square().sum().item(),
        "sampled_error_sq": missed.square().sum().item(),
    }
    if not share_of_codes:
        return sums, None
    starts = torch.searchsorted(token_feature, n * torch.arange(len(acts) + 1, device=token_feature.device))
    arrays = (starts.cpu(), feature.int().cpu(), found.float().cpu(), batch.sequence)
    return sums, _sampled(Codes(n, *(array.numpy() for array in arrays)), share_of_codes)


def _sampled(codes: Codes, share: float) -> Codes:
    return codes if share >= 1 else codes.of_tokens(is_kept(codes.sequence, share))


def is_kept(sequence: Int64[np.ndarray, " token"], share: float) -> Bool[np.ndarray, " token"]:
    """Whether a sequence's codes are kept: decided by its number, whatever batch, block or run it comes in."""
    numbers, place = np.unique(sequence, return_inverse=True)
    kept: np.ndarray = np.array([_uniform(int(number)) < share for number in numbers], dtype=bool)[place]
    return kept


def _uniform(number: int) -> float:
    """Between 0 and 1, evenly spread over the numbers."""
    return int.from_bytes(hashlib.sha256(b"sequence %d" % number).digest()[:8]) / 2**64


def _sample(n_tokens: int) -> Int[Tensor, " sampled"]:
    """Places of a batch, the same for every batch of that length; a stride would meet the same positions each time."""
    order = torch.randperm(n_tokens, generator=torch.Generator().manual_seed(0))
    return order[: -(-n_tokens // SAMPLE_EVERY)]


def decoder_norm(sae: Any) -> Float64[np.ndarray, " feature"]:
    """‖w_i‖ of every decoder row: SAEs need not have rows of norm 1."""
    norms: np.ndarray = sae.W_dec.detach().double().norm(dim=-1).cpu().numpy()
    return norms


def _count(feature: Tensor, n: int) -> Int64[np.ndarray, " feature"]:
    counts: np.ndarray = torch.bincount(feature, minlength=n).cpu().numpy()
    return counts


def _sum(feature: Tensor, values: Float[Tensor, " entry"], n: int) -> Float64[np.ndarray, " feature"]:
    # Of no entries at all, bincount gives whole numbers whatever the weights are.
    sums: np.ndarray = torch.bincount(feature, weights=values, minlength=n).double().cpu().numpy()
    return sums


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


def _check_same(stats: FeatureStats, subject: Subject, checkpoint: Path | None) -> None:
    """Raise an InputError where a checkpoint holds another measurement than the one that was asked for."""
    asked = subject.identity()
    for name in ("model_name", "hook_name", "text_name", "d_model", "settings"):
        if getattr(stats, name) != asked[name]:
            raise InputError(
                f"{checkpoint} is of another measurement ({name}: {getattr(stats, name)}, now {asked[name]});"
                " use the same options, or delete it to start again"
            )


def _reported(batches: Iterator[Batch], done: int, total: int, progress: Progress | None) -> Iterator[Batch]:
    """The batches, each reported when the next is asked for."""
    for batch in batches:
        yield batch
        done += len(batch.activation) + batch.n_masked
        if progress:
            progress(done, max(total, done))
