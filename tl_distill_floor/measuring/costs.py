"""What a feature is worth: what the loss gains, per token, when it is removed from the teacher's activation.

`energy` needs nothing but the codes. `fisher` and `ablation` look at the teacher's own output: KL(teacher ‖ teacher
without the feature), to second order and exactly. A feature is removed from every token of a sequence that counts; the
part of the activation that the SAE leaves unexplained stays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, ActiveCodes, counted_batch
from tl_distill_floor.measuring.hooks import differentiator, reader
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.rerun import forward_kl, rerunner
from tl_distill_floor.measuring.sparse_rows import quiet_sparse
from tl_distill_floor.measuring.token_stream import mask_first_position

NUMBERS_AT_ONCE = 2**22
"""Numbers of activations or logits that are held at once beside what the teacher itself holds."""
STRETCH = 256
"""Outcomes that are summed before one is drawn."""
Step = Callable[[int, Tensor], list[ActivationBatch]]
"""From (number of the first sequence, token ids) to a batch for every SAE."""


SummedCost = Callable[[ActivationBatch, ActiveCodes, AttachedSae], Float64[Tensor, " feature"]]
"""From a batch, its codes and the SAE to the cost, summed over the batch's tokens."""


class Cost(NamedTuple):
    """A way of saying what a feature is worth."""

    unit: CostUnit
    run: Callable[[MeasurementJob, int], Any]
    """A context manager that gives the `Step` it needs, with so many drawings."""
    summed: SummedCost


@contextmanager
def forward_pass(job: MeasurementJob, _draws: int) -> Iterator[Step]:
    """Forward passes that end at the last of the hook points."""
    with reader(job.model, job.hook_names) as read:

        def step(first: int, ids: Tensor) -> list[ActivationBatch]:
            counts = job.token_stream.counted(ids)
            acts = dict(zip(job.hook_names, read(ids), strict=True))
            return [counted_batch(job, r, acts[r.hook_name], counts, first, ids) for r in job.saes]

        yield step


@contextmanager
def gradient_pass(job: MeasurementJob, n_samples: int) -> Iterator[Step]:
    """Whole forward passes, and one backward pass to the hook points for each drawing.

    At every position t an output y_t is drawn from the teacher, and Σ_t log p(y_t) is derived in the activations. The
    slopes of different positions are independent given the text and have mean 0, so that one backward pass gives all.
    """
    with differentiator(job.model, job.hook_names) as run:

        def step(first: int, ids: Tensor) -> list[ActivationBatch]:
            counts, hooks = job.token_stream.counted(ids), job.hook_names
            logits, acts = run(ids)
            if not logits.requires_grad:
                raise _nothing_follows(hooks[0])
            # Of each sequence by itself: what is drawn does not depend on how sequences are put into batches.
            random = [torch.Generator().manual_seed(first + number) for number in range(len(ids))]
            slopes: list[tuple[Tensor, ...]] = []
            for number in range(n_samples):
                uniform = torch.stack([torch.rand(ids.shape[1], generator=of_sequence) for of_sequence in random])
                direction = score_direction(logits.detach(), uniform)
                again = number + 1 < n_samples
                found = torch.autograd.grad(logits, acts, direction, retain_graph=again, allow_unused=True)
                slopes.append(tuple(_depended_on(slope, hook) for slope, hook in zip(found, hooks, strict=True)))
            kept = {hook: (acts[i].detach(), [drawn[i] for drawn in slopes]) for i, hook in enumerate(hooks)}
            made = []
            for attached in job.saes:
                act, gradients = kept[attached.hook_name]
                batch = counted_batch(job, attached, act, counts, first, ids)
                seen = tuple(g[counts.to(g.device)].flatten(1).float().to(attached.sae.device) for g in gradients)
                made.append(batch._replace(gradients=seen))
            return made

        yield step


@contextmanager
def rerun_pass(job: MeasurementJob, _draws: int) -> Iterator[Step]:
    """Whole forward passes that can be run again from the hook point on."""
    attached = single_sae(job)
    with rerunner(job.model, attached.hook_name) as teacher:

        def step(first: int, ids: Tensor) -> list[ActivationBatch]:
            acts = teacher.run(ids)
            batch = counted_batch(job, attached, acts, job.token_stream.counted(ids), first, ids)
            return [batch._replace(teacher=teacher)]

        yield step


def cached_batches(job: MeasurementJob, done: int, n_tokens: int) -> Iterator[list[ActivationBatch]]:
    """Batches of activations that were cached, of which only the first positions are known not to count."""
    (attached,) = job.saes
    for first, acts in job.stream.batches(done, n_tokens):
        yield [counted_batch(job, attached, acts, mask_first_position(acts.shape[:2]), first, None)]


def energy(_batch: ActivationBatch, entries: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """Σ a² · ‖w‖²: the squared error when the code is set to 0 (the paper's I · E[x²]; Sarkar and Deka 2026, A1)."""
    norm = torch.from_numpy(attached.decoder_norm).to(entries.value.device)
    return summed(entries.feature, entries.value.square(), len(norm)) * norm.square()


def fisher(batch: ActivationBatch, entries: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """½ Σ over sequences of (Σ_t a_t ⟨G_t, w⟩)², G_t the slope of the sampled outputs' log-probability.

    The KL of removing the feature to second order, ½ δᵀFδ with F the Fisher matrix of the teacher's outputs (Amari
    1998, eq. 2.7); cross terms between positions vanish in the mean.
    """
    decoder = attached.sae.W_dec.detach()
    n, n_rows = len(decoder), batch.n_sequences
    place = batch.row.to(entries.token.device)[entries.token] * n + entries.feature
    total = torch.zeros(n, dtype=torch.float64, device=place.device)
    for gradient in batch.gradients:
        score = entries.value * dots(gradient, decoder, entries.token, entries.feature)
        total += summed(place, score, n_rows * n).view(n_rows, n).square().sum(0)
    cost: Tensor = total / (2.0 * len(batch.gradients))
    return cost


def ablation(batch: ActivationBatch, entries: ActiveCodes, attached: AttachedSae) -> Float64[Tensor, " feature"]:
    """KL(teacher ‖ teacher without the feature), exactly: sequences run again for every feature that fires in them."""
    decoder, features = attached.sae.W_dec.detach(), torch.unique(entries.feature)
    found = torch.zeros(len(decoder), dtype=torch.float64, device=decoder.device)
    for feature, loss in zip(features.tolist(), ablated(batch, entries, decoder, features), strict=True):
        found[feature] = loss.sum()
    return found


def ablated(
    batch: ActivationBatch,
    entries: ActiveCodes,
    decoder: Float[Tensor, "feature d_model"],
    features: Int64[Tensor, " chosen"],
) -> Iterator[Float64[Tensor, " sequence"]]:
    """For each of the features, the summed KL (nats) of every sequence of the batch when that feature is removed."""
    order = entries.feature.argsort(stable=True)
    start, end = (torch.searchsorted(entries.feature[order], features, right=right) for right in (False, True))
    for feature, first, last in zip(features.tolist(), start.tolist(), end.tolist(), strict=True):
        chosen = order[first:last]
        token, value = entries.token[chosen], entries.value[chosen].float()
        rows = torch.unique(batch.row[token.cpu()])
        change = -value[:, None] * decoder[feature].float()
        losses = torch.zeros(batch.n_sequences, dtype=torch.float64)
        if len(rows):
            losses[rows] = rerun_kl(batch, token, change, rows)
        yield losses


def rerun_kl(
    batch: ActivationBatch,
    token: Int64[Tensor, " changed"],
    change: Float[Tensor, "changed d_model"],
    rows: Int64[Tensor, " row"] | None = None,
) -> Float64[Tensor, " row"]:
    """KL(teacher ‖ teacher with a changed activation), summed over the positions of each sequence, in nats.

    Args:
        batch: of a `rerun_pass`.
        token: places, among the tokens that count, whose activation changes.
        change: what is added there.
        rows: the sequences of the batch that are run again; all of them when left out.
    """
    assert batch.teacher is not None
    whole = batch.teacher.activation
    rows = torch.arange(batch.n_sequences) if rows is None else rows
    place = torch.full((batch.n_sequences,), -1)
    place[rows] = torch.arange(len(rows))
    # The layers may lie on several devices: numbers of rows on the CPU index tensors on any.
    activation = whole[rows].flatten(2).float()
    row, position = place[batch.row[token.cpu()]].to(whole.device), batch.position[token.cpu()].to(whole.device)
    activation[row, position] += change.to(activation)
    logits = batch.teacher.rerun(activation, rows)
    return forward_kl(batch.teacher.logits[rows], logits).double().sum(1).cpu()


def score_direction(
    logits: Float[Tensor, "batch position vocabulary"], uniform: Float[Tensor, "batch position"]
) -> Float[Tensor, "batch position vocabulary"]:
    """∂ log p(y) / ∂ logits at every position, y drawn from p: 1 at y, less p.

    Args:
        uniform: numbers from [0, 1) that decide the drawings.
    """
    flat, aims = logits.flatten(0, 1), uniform.flatten().to(logits.device)
    found, at_once = torch.empty_like(flat), max(1, NUMBERS_AT_ONCE // flat.shape[1])
    for first in range(0, len(flat), at_once):
        rows = slice(first, first + at_once)
        p = flat[rows].float().softmax(-1)
        drawn = drawn_from(p, aims[rows])
        found[rows] = p.neg_().scatter_add_(1, drawn[:, None], torch.ones_like(p[:, :1])).to(found.dtype)
    return found.view_as(logits)


def drawn_from(p: Float[Tensor, "row outcome"], uniform: Float[Tensor, " row"]) -> Int64[Tensor, " row"]:
    """The outcome of each row whose cumulated probability first exceeds that share of the row's sum.

    First the stretch of outcomes, then the one in it: a cumulated sum of all of them takes as long as the logits.
    """
    reached = torch.stack([stretch.sum(1) for stretch in torch.split(p, STRETCH, dim=1)], dim=1).cumsum(1)
    aim = uniform[:, None] * reached[:, -1:]
    stretch = torch.searchsorted(reached, aim, right=True).clamp_(max=reached.shape[1] - 1)
    before = torch.where(stretch > 0, reached.gather(1, (stretch - 1).clamp_(min=0)), 0.0)
    outcomes = stretch * STRETCH + torch.arange(STRETCH, device=p.device)
    there = outcomes < p.shape[1]
    within = (p.gather(1, outcomes.clamp(max=p.shape[1] - 1)) * there).cumsum(1)
    # Rounding may leave the aim beyond the stretch's own sum: one of its last outcomes that have any probability.
    aim = torch.minimum(aim - before, within[:, -1:] * (1.0 - 1e-6))
    place = torch.searchsorted(within, aim, right=True).clamp_(max=STRETCH - 1)
    drawn: Tensor = outcomes.gather(1, place)[:, 0].clamp_(max=p.shape[1] - 1)
    return drawn


def dots(
    left: Float[Tensor, "token d_model"],
    right: Float[Tensor, "feature d_model"],
    token: Int64[Tensor, " entry"],
    feature: Int64[Tensor, " entry"],
) -> Float64[Tensor, " entry"]:
    """⟨left[token], right[feature]⟩ of every entry; the tokens ascend."""
    starts = torch.searchsorted(token, torch.arange(len(left) + 1, device=token.device))
    with quiet_sparse():
        asked = torch.sparse_csr_tensor(
            starts, feature, torch.zeros_like(token, dtype=torch.float32), size=(len(left), len(right))
        )
        found: Tensor = torch.sparse.sampled_addmm(asked, left.float(), right.float().T).values()
    return found.double()


def summed(place: Int64[Tensor, " entry"], values: Float64[Tensor, " entry"], n: int) -> Float64[Tensor, " place"]:
    """Sums of the values by place."""
    # Of no entries at all, bincount gives whole numbers whatever the weights are.
    return torch.bincount(place, weights=values, minlength=n).double()


def single_sae(job: MeasurementJob) -> AttachedSae:
    """The only SAE of a job.

    Raises:
        InputError: there are several.
    """
    if len(job.saes) > 1:
        raise InputError("the exact ablation of features takes one SAE at a time; measure them one by one")
    return job.saes[0]


def _depended_on(slope: Tensor | None, hook_name: str) -> Tensor:
    if slope is None:
        raise _nothing_follows(hook_name)
    return slope


def _nothing_follows(hook_name: str) -> InputError:
    return InputError(f"the teacher's logits do not depend on {hook_name}: nothing follows it; use --cost energy")


COST_METHODS = {
    "energy": Cost("mse", forward_pass, energy),
    "fisher": Cost("nats", gradient_pass, fisher),
    "ablation": Cost("nats", rerun_pass, ablation),
}
