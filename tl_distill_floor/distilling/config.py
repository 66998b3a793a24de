"""TODO."""

import math
from dataclasses import dataclass, field

from tl_distill_floor.distilling.losses import Objective
from tl_distill_floor.distilling.matching import KeptPart, Match
from tl_distill_floor.errors import InputError

OPTIMIZERS, SCHEDULES, DTYPES = ("muon", "adamw"), ("constant", "cosine"), ("fp32", "bf16")


@dataclass(frozen=True)
class StudentSpec:
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
class DistillConfig:
    """How every student of a sweep is trained."""

    n_tokens: int = 2_000_000
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
    n_evaluations: int = 24
    """Points of the learning curve, evenly spaced in log tokens from a fiftieth of them on."""
    n_heldout_tokens: int = 32_768
    early_stop: bool = True
    """A student that has reached its floor goes no further."""
    seed: int = 0
    """Of the order of the text."""

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if min(self.n_tokens, self.batch_size, self.accumulate, self.n_evaluations, self.n_heldout_tokens) < 1:
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
        shares = [0.02 ** (1 - i / max(self.n_evaluations - 1, 1)) for i in range(self.n_evaluations)]
        return sorted({max(1, round(steps * share)) for share in shares} | {steps})
