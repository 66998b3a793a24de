"""Settings of distillation: `StudentSpec`, which student is trained, and `DistillConfig`, how."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from tl_distill_floor.annotations import Dtype, OptimizerName, ScheduleName, StudentStart
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match
from tl_distill_floor.errors import InputError, check_choice, set_integers

FIRST_EVALUATION = 0.02
"""Share of the steps before the first point of a learning curve."""


@dataclass(frozen=True)
class StudentSpec:
    """A student to train.

    Raises:
        InputError: `start` is none of the choices, a number is not an integer, or `name` is not that of a directory.

    Example:
        >>> StudentSpec(64, start="random", seed=1).directory
        'width64'
    """

    width: int
    """Width of the residual stream (d_model), dimensions."""
    depth: int | None = None
    """Number of layers; the teacher's if None."""
    start: StudentStart = "svd"
    """Initial weights; see `build_student`."""
    seed: int = 0
    """Seed of random initial weights."""
    match: Match | None = None
    """Layer that is matched with a hook point of the teacher; None for no hook matching."""
    target: KeptReconstruction | None = field(default=None, compare=False, repr=False)
    """Part of the teacher's activation that is matched; all of it if None."""
    name: str = ""
    """Name of the student's directory; "width" and the width if empty."""

    def __post_init__(self) -> None:
        check_choice("start", self.start, StudentStart)
        if self.name.startswith(".") or Path(self.name).name != self.name:
            raise InputError(
                f"a student's name is that of a directory, without . at its start and /, got {self.name!r}"
            )
        set_integers(self, {"width": None, "depth": None, "seed": None})

    @property
    def directory(self) -> str:
        """Name of the directory that the student is saved in."""
        return self.name or f"width{self.width}"


@dataclass(frozen=True)
class DistillConfig:
    """Settings of the training, which are the same for all students that are trained together.

    Raises:
        InputError: a setting is out of its range or none of its choices.

    Example:
        >>> DistillConfig(n_tokens=500_000, optimizer="adamw", lr=1e-3).schedule
        'constant'
    """

    n_tokens: int = 2_000_000
    """Training tokens, including repetitions of the text."""
    lr: float = 3e-3
    """Peak learning rate."""
    batch_size: int = 16
    """Sequences per step, over all processes."""
    accumulate: int = 1
    """Parts of a batch that are run one after the other, to save memory."""
    optimizer: OptimizerName = "muon"
    """"muon": Muon for the weight matrices of the layers, AdamW for the rest; "adamw": AdamW for all."""
    schedule: ScheduleName = "constant"
    """"constant": constant until the last steps, then linear to 0; "cosine": a cosine to 0."""
    decay: float = 0.2
    """Share of the steps in which the constant schedule falls to 0."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises linearly from 0."""
    clip: float = 1.0
    """Largest norm of a student's gradient."""
    objective: Objective = field(default_factory=Objective)
    """Training loss of every position."""
    dtype: Dtype = "fp32"
    """Precision of the forward passes; weights and losses are in fp32."""
    n_evaluations: int = 24
    """Points of the learning curve, evenly spaced in the logarithm of tokens."""
    n_heldout_tokens: int = 32_768
    """Held-out tokens per evaluation."""
    early_stop: bool = True
    """Whether a student stops when its learning curve has saturated."""
    seed: int = 0
    """Seed of the order of the training sequences."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OptimizerName)
        check_choice("schedule", self.schedule, ScheduleName)
        check_choice("dtype", self.dtype, Dtype)
        at_least_one = ("n_tokens", "batch_size", "accumulate", "n_evaluations", "n_heldout_tokens")
        set_integers(self, {**dict.fromkeys(at_least_one, 1), "seed": None})
        if not 0 < self.lr < math.inf or not self.clip > 0:
            raise InputError(
                f"the learning rate and clip must be above 0, the first finite, got {self.lr} and {self.clip}"
            )
        if not 0 <= self.decay <= 1 or not 0 <= self.warmup < 1:
            raise InputError(
                f"decay must be from 0 to 1 and warmup from 0 to below 1, got {self.decay} and {self.warmup}"
            )

    def lr_at(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / max(1.0, self.warmup * n_steps))
        if self.schedule == "cosine":
            return self.lr * rising * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        falling = min(1.0, (n_steps - step) / max(1.0, self.decay * n_steps))
        return self.lr * min(rising, falling)

    def evaluation_steps(self, n_steps: int) -> list[int]:
        """Return the steps after which the held-out loss is computed, counted from 1. They include the last step."""
        last = max(self.n_evaluations - 1, 1)
        shares = [FIRST_EVALUATION ** (1 - i / last) for i in range(self.n_evaluations)]
        return sorted({max(1, round(n_steps * share)) for share in shares} | {n_steps})
