"""The stages that `gpu.py` times and `speed_stages.py` does not have, and the order in which all of them run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import speed_stages as stages
import torch
from gpu_workloads import L0, N_FEATURES, SMALL_FEATURES, open_workload
from speed_stages import Stage
from speed_workloads import BATCH_SIZE, Workload
from synthetic_data import CONTEXT, random_ids
from torch.nn.functional import cross_entropy

from tl_distill_floor import head_floor, load_teacher
from tl_distill_floor.annotations import Dtype, StudentStart
from tl_distill_floor.measuring.config import LoadConfig
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.logit_map import tokens_per_chunk
from tl_distill_floor.measuring.removal import measure_tail_loss
from tl_distill_floor.measuring.rerun import rerunner
from tl_distill_floor.measuring.teacher_backbone import ReachedUnembeddingError, capture_input
from tl_distill_floor.predicting.floors import student_widths
from tl_distill_floor.predicting.head_floor import HEAD_STEPS, N_HELDOUT_TOKENS, TOKENS_PER_STEP
from tl_distill_floor.predicting.processor import product_dtype
from tl_distill_floor.predicting.simulation import TOKENS_PER_STEP as TOKENS_PER_SIMULATION_STEP

STUDENT_WIDTHS = (16, 32, 64, 96, 128, 192)
"""Widths of the students of tiny-prose that are trained together."""
LARGE_BATCH_SIZE = 64
"""Sequences per batch of some jobs, which keep a GPU busier."""
TAIL_RANKS = (0, 16, 64, 256)
"""Numbers of features that the tail loss keeps."""

PrepareStage = Callable[[int], Stage]
"""A function from an amount of work to the stage that does it."""


class Setting(NamedTuple):
    """Where and how large everything is."""

    device: str
    small: bool
    """Whether this is a rehearsal with small models."""


class Job(NamedTuple):
    """One stage at one size and precision."""

    stage: str
    size: str
    dtype: Dtype
    batch_size: int
    open: Callable[["Job", Setting], PrepareStage]
    """Function that creates what all amounts of work share."""
    unit: str
    """What an amount of work counts."""
    first_amount: int
    """Amount of the warm-up, from which the amount that is timed is estimated."""
    max_amount: int
    target: float | None = None
    """Ratio to the limit that is aimed at."""

    @property
    def name(self) -> str:
        """Name of the job in messages."""
        return f"{self.size} {self.stage} {self.dtype}, batches of {self.batch_size}"


def jobs() -> list[Job]:
    """Return all jobs, the most important first. Jobs with the same teacher mostly follow one another."""

    def measuring(size: str, dtype: Dtype) -> list[Job]:
        return [_measuring("energy", size, dtype), _measuring("fisher", size, dtype)]

    return [
        *measuring("pythia-410m", "bf16"),
        Job("distil", "pythia-410m", "bf16", BATCH_SIZE, _open_distil, "steps", 2, 20, 0.9),
        _measuring("energy", "pythia-410m", "bf16", LARGE_BATCH_SIZE),
        *measuring("tiny-prose", "fp32"),
        Job("distil", "tiny-prose", "fp32", BATCH_SIZE, _open_distil, "steps", 2, 40, 0.9),
        Job("head", "tiny-prose", "fp32", BATCH_SIZE, _open_head, "steps", 8, HEAD_STEPS),
        Job("simulate", "tiny-prose", "fp32", BATCH_SIZE, _open_simulate, "steps", 8, 4000),
        Job("tail", "tiny-prose", "fp32", BATCH_SIZE, _open_tail, "batches", 1, 64),
        _measuring("energy", "tiny-prose", "fp32", LARGE_BATCH_SIZE),
        *measuring("smollm2", "bf16"),
        *measuring("pythia-410m", "fp32"),
        Job("simulate", "pythia-410m", "fp32", BATCH_SIZE, _open_simulate, "steps", 8, 1000),
        *measuring("smollm2", "fp32"),
        Job("head", "pythia-410m", "bf16", BATCH_SIZE, _open_head, "steps", 8, 40),
        Job("tail", "pythia-410m", "bf16", BATCH_SIZE, _open_tail, "batches", 1, 16),
        _measuring("fisher", "pythia-410m", "bf16", LARGE_BATCH_SIZE),
    ]


def _measuring(cost: str, size: str, dtype: Dtype, batch_size: int = BATCH_SIZE) -> Job:
    """Return the job that measures one kind of cost."""
    most = {"tiny-prose": 384, "smollm2": 256, "pythia-410m": 128}[size]
    first, last = max(2, 8 * BATCH_SIZE // batch_size), most * BATCH_SIZE // batch_size
    opener, target = (_open_energy, 0.9) if cost == "energy" else (_open_fisher, 0.85)
    return Job(cost, size, dtype, batch_size, opener, "batches", first, last, target)


def _workload(job: Job, setting: Setting, n_batches: int) -> Workload:
    """Return the workload of a job with token ids."""
    workload = open_workload(job.size, job.dtype, setting.device, setting.small)
    return workload._replace(ids=random_ids(n_batches * job.batch_size * CONTEXT), batch_size=job.batch_size)


def _open_energy(job: Job, setting: Setting) -> PrepareStage:
    """Return the function that prepares the measurement of costs in squared error."""
    return lambda n_batches: stages.measure_energy(_workload(job, setting, n_batches))


def _open_fisher(job: Job, setting: Setting) -> PrepareStage:
    """Return the function that prepares the measurement of costs in nats."""
    return lambda n_batches: stages.measure_fisher(_workload(job, setting, n_batches))


def _open_simulate(job: Job, setting: Setting) -> PrepareStage:
    """Return the function that prepares the training of a bottleneck student of a quarter of the teacher's width."""
    n_features, l0 = (SMALL_FEATURES, 20) if setting.small else (N_FEATURES[job.size], L0[job.size])
    width = 64 if job.size == "tiny-prose" or setting.small else 1024
    # Codes are sampled on the CPU, so a large SAE has fewer.
    n_tokens = (8 if n_features <= N_FEATURES["tiny-prose"] else 2) * TOKENS_PER_SIMULATION_STEP
    return partial(_simulate, n_features, width, l0, setting.device, n_tokens)


def _simulate(n_features: int, width: int, l0: int, device: str, n_tokens: int, steps: int) -> Stage:
    """Return the stage that trains a bottleneck student for some steps."""
    return stages.simulate(n_features, width, l0, steps, device, n_tokens)


def _open_distil(job: Job, setting: Setting) -> PrepareStage:
    """Build the students, and return the function that prepares their training."""
    start: StudentStart
    teacher = load_teacher(open_workload(job.size, job.dtype, setting.device, setting.small).model)
    d_model = int(teacher.model.cfg.d_model)
    widths, start = (STUDENT_WIDTHS, "svd") if job.size == "tiny-prose" else ([d_model // 2], "random")
    return stages.distil_students(teacher, widths, job.dtype, start, job.batch_size)


def _open_head(job: Job, setting: Setting) -> PrepareStage:
    """Return the function that prepares the head floor."""

    def prepare(steps: int) -> Stage:
        n_batches = -(-steps * TOKENS_PER_STEP // (job.batch_size * CONTEXT))
        workload = _workload(job, setting, max(2, n_batches))
        d_model = int(workload.model.cfg.d_model)
        all_widths = (
            student_widths(None, d_model).tolist()
            if job.size == "tiny-prose" and not setting.small
            else [d_model // 4, d_model // 2]
        )
        widths = [width for width in all_widths if width < d_model]
        n_tokens = workload.ids.numel()
        n_heldout = CONTEXT * max(1, min(N_HELDOUT_TOKENS, n_tokens // 8) // CONTEXT)
        ours = partial(
            head_floor, workload.model, workload.ids, widths=widths, steps=steps, n_tokens=n_tokens,
            n_heldout_tokens=n_heldout, batch_size=job.batch_size,
        )  # fmt: skip
        limit = partial(run_low_rank_losses, workload, widths, steps, n_heldout)
        description = (
            "the forward passes to the last hidden states, and the unembedding products with forward and backward pass"
            " of a softmax loss: once per training token and width, and once per held-out token and width"
        )
        return Stage("tokens/s", steps * TOKENS_PER_STEP * len(widths), ours, limit, description)

    return prepare


def run_low_rank_losses(workload: Workload, widths: Sequence[int], steps: int, n_heldout: int) -> None:
    """Compute last hidden states, and losses of low-rank logits with their gradients, without training anything."""
    device, dtype = workload.device, product_dtype(workload.device)
    hidden = torch.cat([_last_hidden(workload.model, batch) for batch in workload.batches()])
    weight = next(workload.model.unembed.parameters()).detach().float()
    teacher = weight.T if len(weight) != int(workload.model.cfg.d_vocab) else weight
    decoders = [torch.randn(len(teacher), width, device=device).mul_(0.01).requires_grad_() for width in widths]
    n_evaluated = tokens_per_chunk(len(teacher), device)
    batch_sizes = [TOKENS_PER_STEP] * steps + [n_evaluated] * -(-n_heldout // n_evaluated)
    for step, size in enumerate(batch_sizes):
        first = step * TOKENS_PER_STEP % max(1, len(hidden) - size)
        h = hidden[first : first + size].float()
        p = (h @ teacher.T).softmax(-1)
        for decode in decoders:
            z = h[:, : decode.shape[1]].clone().requires_grad_()
            logits = (z.to(dtype) @ decode.to(dtype).T).float()
            torch.autograd.grad(cross_entropy(logits, p), (z, decode))


@torch.no_grad()
def _last_hidden(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states [token, d_model] of a batch."""
    captured: list[torch.Tensor] = []
    with capture_input(model.unembed, captured):
        try:
            model(batch)
        except ReachedUnembeddingError:
            return captured[0].flatten(0, 1)
    raise AssertionError("the model has no unembedding")


def _open_tail(job: Job, setting: Setting) -> PrepareStage:
    """Return the function that prepares the tail loss."""

    def prepare(n_batches: int) -> Stage:
        workload = _workload(job, setting, n_batches)
        ranks = np.array(TAIL_RANKS)
        task = prepare_job(workload.model, [workload.sae], workload.ids, LoadConfig(batch_size=job.batch_size))
        ours = partial(
            measure_tail_loss, task, np.arange(workload.sae.cfg.d_sae), ranks, np.zeros(len(ranks)),
            np.arange(len(workload.ids)),
        )  # fmt: skip
        limit = partial(run_reruns, workload, len(ranks))
        description = "a forward pass, and for each rank another one from the hook point on"
        return Stage("tokens/s", workload.ids.numel(), ours, limit, description)

    return prepare


def run_reruns(workload: Workload, n_reruns: int) -> None:
    """Run forward passes, and run each several times again from the hook point on."""
    with torch.no_grad(), rerunner(workload.model, workload.hook_name) as teacher:
        for batch in workload.batches():
            activation = teacher.run(batch)
            for _ in range(n_reruns):
                teacher.rerun(activation)
