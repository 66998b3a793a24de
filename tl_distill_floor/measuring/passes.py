"""Run a teacher over a batch of sequences and return one activation batch per SAE."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.activation_batch import ActivationBatch, counted_batch, select_tokens
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.job import AttachedSae, MeasurementJob
from tl_distill_floor.measuring.replacement import differentiable_forward
from tl_distill_floor.measuring.rerun import rerunner
from tl_distill_floor.measuring.sampling import one_of_each_group, score_gradient
from tl_distill_floor.measuring.token_stream import model_input
from tl_distill_floor.sources.devices import copy_to_device

BatchReader = Callable[[int, Int[Tensor, "batch position"]], list[ActivationBatch]]
"""A function from the number of the first sequence and token ids to one batch per SAE of the job."""


class _Differentiated(NamedTuple):
    """What a forward and backward pass of some sequences gives."""

    activations: list[Tensor]
    """One for each hook point, [sequence, position, ...]."""
    gradients: list[list[Tensor]]
    """For each sample and hook point those of the log-probability of the sampled outputs, of the same shapes."""


@contextmanager
def forward_pass(job: MeasurementJob, _n_samples: int = 0, _every: int = 1) -> Iterator[BatchReader]:
    """Yield a reader whose forward passes end at the last of the hook points."""
    with activation_reader(job.model, job.hook_names) as read:

        def read_batch(first: int, ids: Tensor) -> list[ActivationBatch]:
            counted = job.token_stream.counted(ids)
            acts = dict(zip(job.hook_names, read(model_input(job.model, ids)), strict=True))
            return [counted_batch(job, a, acts[a.hook_name], counted, first, ids) for a in job.saes]

        yield read_batch


@contextmanager
def gradient_pass(job: MeasurementJob, n_samples: int, every: int = 1) -> Iterator[BatchReader]:
    """Yield a reader that runs a full forward pass and, for each sample, a backward pass to the hook points.

    It does so for the sequences whose costs are measured. The others only have a forward pass to the hook points.

    An output y_t is sampled from the teacher at each position t that has a loss, and Σ_t log p(y_t) is differentiated
    with respect to the activations. Given the text, the gradients of different positions are independent with mean 0;
    so one backward pass serves all positions.

    Args:
        job: a teacher, SAEs and a text.
        n_samples: outputs sampled at each position.
        every: successive sequences of which one, at random, has its costs measured.
    """
    with differentiable_forward(job.model, job.hook_names) as run:

        def differentiate(numbers: Tensor, ids: Tensor) -> _Differentiated:
            logits, acts = run(model_input(job.model, ids))
            if not logits.requires_grad:
                raise _no_gradient(job.hook_names[0])
            has_loss = job.token_stream.has_loss(ids)
            gradients = _sampled_gradients(job.hook_names, logits, acts, numbers, n_samples, has_loss)
            return _Differentiated([act.detach() for act in acts], gradients)

        def read_batch(first: int, ids: Tensor) -> list[ActivationBatch]:
            numbers = first + torch.arange(len(ids))
            has_cost = one_of_each_group(numbers, every)
            if has_cost.all():
                acts, gradients = differentiate(numbers, ids)
            else:
                with activation_reader(job.model, job.hook_names) as read:
                    others = [act.detach() for act in read(model_input(job.model, ids[~has_cost]))]
                if has_cost.any():
                    measured = differentiate(numbers[has_cost], ids[has_cost])
                else:
                    nothing = [act[:0] for act in others]
                    measured = _Differentiated(nothing, [nothing] * n_samples)
                acts = [_join(has_cost, *pair) for pair in zip(measured.activations, others, strict=True)]
                gradients = [[_join(has_cost, part) for part in of_sample] for of_sample in measured.gradients]
            counted = job.token_stream.counted(ids)
            batches = []
            for attached in job.saes:
                index = job.hook_names.index(attached.hook_name)
                batch = counted_batch(job, attached, acts[index], counted, first, ids)
                at_hook = [of_sample[index] for of_sample in gradients]
                selected = tuple(
                    select_tokens(g, batch.location).flatten(1).float().to(attached.sae.device) for g in at_hook
                )
                batches.append(batch._replace(gradients=selected, has_cost=None if has_cost.all() else has_cost))
            return batches

        yield read_batch


@contextmanager
def rerun_pass(job: MeasurementJob, _n_samples: int = 0, every: int = 1) -> Iterator[BatchReader]:
    """Yield a reader that runs full forward passes, each of which can be run again from the hook point.

    Args:
        job: a teacher, one SAE and a text.
        every: successive sequences of which one, at random, has its costs measured.

    Raises:
        InputError: the job has several SAEs.
    """
    attached = single_sae(job)
    with rerunner(job.model, attached.hook_name) as teacher:

        def read_batch(first: int, ids: Tensor) -> list[ActivationBatch]:
            acts = teacher.run(model_input(job.model, ids))
            batch = counted_batch(job, attached, acts, job.token_stream.counted(ids), first, ids)
            has_cost = one_of_each_group(first + torch.arange(len(ids)), every)
            has_loss = job.token_stream.has_loss(ids)
            return [batch._replace(teacher=teacher, has_loss=has_loss, has_cost=None if has_cost.all() else has_cost)]

        yield read_batch


def cached_batches(job: MeasurementJob, start: int, n_tokens: int) -> Iterator[list[ActivationBatch]]:
    """Yield the batches of a job with cached activations that hold tokens `start` to `n_tokens`.

    Which tokens are counted is in `CachedActivationStream.warning`.
    """
    (attached,) = job.saes
    for first, acts, counted in job.cached_stream.batches(start, n_tokens):
        yield [counted_batch(job, attached, acts, counted, first, None)]


def single_sae(job: MeasurementJob) -> AttachedSae:
    """Return the only SAE of a job, or raise an InputError if it has several."""
    if len(job.saes) > 1:
        raise InputError("the exact ablation of features takes one SAE at a time; measure them one by one")
    return job.saes[0]


def _sampled_gradients(
    hook_names: list[str],
    logits: Tensor,
    acts: list[Tensor],
    numbers: Int64[Tensor, " sequence"],
    n_samples: int,
    has_loss: Bool[Tensor, "batch position"],
) -> list[list[Tensor]]:
    """Return for each sample the gradients of Σ_t log p(y_t) with respect to the activations.

    The sum is over the positions t that have a loss.
    """
    n_positions, without_loss = logits.shape[1], (~has_loss).nonzero(as_tuple=True)
    # One generator per sequence of the text, so that the samples do not depend on the batch size.
    random = [torch.Generator().manual_seed(number) for number in numbers.tolist()]
    samples = []
    for number in range(n_samples):
        uniform = torch.stack([torch.rand(n_positions, generator=of_sequence) for of_sequence in random])
        score = score_gradient(logits.detach(), uniform)
        score[tuple(copy_to_device(index, score.device) for index in without_loss)] = 0
        keep_graph = number + 1 < n_samples
        gradients = torch.autograd.grad(logits, acts, score, retain_graph=keep_graph, allow_unused=True)
        for gradient, hook_name in zip(gradients, hook_names, strict=True):
            if gradient is None:
                raise _no_gradient(hook_name)
        samples.append(list(gradients))
    return samples


def _join(chosen: Bool[Tensor, " row"], of_chosen: Tensor, of_others: Tensor | None = None) -> Tensor:
    """Join the rows of two tensors, in the order of the batch; the others are 0 if none are given."""
    joined = of_chosen.new_zeros(len(chosen), *of_chosen.shape[1:])
    joined[chosen] = of_chosen
    if of_others is not None:
        joined[~chosen] = of_others
    return joined


def _no_gradient(hook_name: str) -> InputError:
    """Return the error for logits that do not depend on a hook point."""
    return InputError(f"the teacher's logits do not depend on {hook_name}; use --cost energy")
