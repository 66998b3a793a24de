"""How students are trained: what each of them is, the schedule, the optimisers, the running average of the weights."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tl_distill_floor.errors import InputError
from tl_distill_floor.students.forward import Body, layers_of
from tl_distill_floor.students.losses import Objective
from tl_distill_floor.students.matching import KeptPart, Match, Matcher

OPTIMIZERS, SCHEDULES, DTYPES = ("muon", "adamw"), ("constant", "cosine"), ("fp32", "bf16")
AVERAGE_POWER = 16.0
"""The running average weighs the weights of step t by about t to this power: 6 % of the training, as a width."""


@dataclass(frozen=True)
class Spec:
    """One student of a sweep."""

    width: int
    depth: int | None = None
    """Layers; the teacher's when None."""
    start: str = "svd"
    seed: int = 0
    match: Match | None = None
    target: KeptPart | None = field(default=None, compare=False, repr=False)
    """What of the matched activation is the target; all of it when None."""
    name: str = ""
    """Of the directory it is saved in."""

    @property
    def directory(self) -> str:
        return self.name or f"width{self.width}"


@dataclass(frozen=True)
class Training:
    """How every student of a sweep is trained."""

    tokens: int = 2_000_000
    """Tokens read, repetitions of the text included."""
    lr: float = 3e-3
    """Peak learning rate."""
    batch_size: int = 16
    """Sequences a step, of all processes together."""
    accumulate: int = 1
    """Parts that a step's batch is run in, one after the other, to save memory."""
    optimizer: str = "muon"
    """"muon" for the matrices of the layers with AdamW for the rest, or "adamw" for all."""
    schedule: str = "constant"
    """"constant" until the last `decay` of the steps, then linearly to 0; or "cosine"."""
    decay: float = 0.2
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises from 0."""
    clip: float = 1.0
    """Largest norm of a student's gradient."""
    objective: Objective = field(default_factory=Objective)
    dtype: str = "fp32"
    """"fp32" or "bf16": what the forward passes compute in; weights and losses stay in fp32."""
    evaluations: int = 24
    """Points of the learning curve, evenly spaced in log tokens from a fiftieth of them on."""
    heldout_tokens: int = 32_768
    early_stop: bool = True
    """A student that has reached its floor goes no further."""
    seed: int = 0
    """Of the order of the text."""

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if min(self.tokens, self.batch_size, self.accumulate, self.evaluations, self.heldout_tokens) < 1:
            raise InputError("tokens, batch size, accumulation, evaluations and held-out tokens must be at least 1")
        if not self.lr > 0 or not self.clip > 0 or not 0 <= self.decay <= 1 or not 0 <= self.warmup < 1:
            raise InputError("the learning rate and the clipping must be above 0, decay and warm-up shares from 0 to 1")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / max(1.0, self.warmup * steps))
        if self.schedule == "cosine":
            return self.lr * rising * 0.5 * (1 + math.cos(math.pi * step / steps))
        falling = min(1.0, (steps - step) / max(1.0, self.decay * steps))
        return self.lr * min(rising, falling)

    def evaluated_at(self, steps: int) -> list[int]:
        """Steps after which the held-out loss is taken, the last among them."""
        shares = [0.02 ** (1 - i / max(self.evaluations - 1, 1)) for i in range(self.evaluations)]
        return sorted({max(1, round(steps * share)) for share in shares} | {steps})


class Trainee(nn.Module):
    """A student up to its unembedding, and the projection that hook matching learns beside it."""

    def __init__(self, student: nn.Module, spec: Spec, d_target: int) -> None:
        super().__init__()
        self.body = Body(student, spec.match.layer if spec.match else None)
        self.matcher = Matcher(spec.width, d_target, spec.seed) if spec.match else None

    def forward(self, ids: Tensor, counts: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(last hidden states of the tokens that count, matching loss)."""
        hidden, matched = self.body(ids)
        if self.matcher is None:
            return hidden[counts], None
        assert matched is not None
        assert target is not None
        return hidden[counts], self.matcher(matched[counts], target)

    @property
    def student(self) -> nn.Module:
        return self.body.model


def optimizers_of(trainee: Trainee, training: Training) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the layers where it was asked for (Jordan et al. 2024)."""
    matrices = [weight for weight in layers_of(trainee.student).parameters() if weight.ndim == 2]
    of_muon = {id(weight) for weight in matrices} if training.optimizer == "muon" else set()
    rest = [weight for weight in trainee.parameters() if id(weight) not in of_muon]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, training.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if of_muon:
        made.append(torch.optim.Muon(matrices, training.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return made


class Average:
    """The running average of a student's weights, wider the longer it has run (Karras et al. 2024, eq. 7).

    At a constant learning rate it stands about where a decay of the rate would end (Hägele et al. 2024, sec. 4), so
    that every point of a learning curve is one that training could have ended at.
    """

    def __init__(self, student: nn.Module) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in student.named_parameters()}

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1."""
        share = 1.0 - (1.0 - 1.0 / step) ** (AVERAGE_POWER + 1.0)
        torch._foreach_lerp_(list(self.weights.values()), [w.detach() for w in student.parameters()], share)

    @torch.no_grad()
    def swapped(self, student: nn.Module) -> None:
        """Exchange the average and the weights; twice is as before."""
        for name, weight in student.named_parameters():
            mine = self.weights[name]
            mine_data = mine.clone()
            mine.copy_(weight)
            weight.copy_(mine_data)
