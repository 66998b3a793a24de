"""Settings of the training of an SAE."""

import math
from dataclasses import dataclass
from numbers import Real

from tl_distill_floor.annotations import Dtype, SaeArchitecture
from tl_distill_floor.errors import InputError, check_choice, set_integers

TOKENS_PER_STEP = 4096
MIN_TOKENS = 2 * TOKENS_PER_STEP
"""Tokens of a training step, and fewest tokens of a training."""


@dataclass(frozen=True)
class SaeTrainingConfig:
    """Settings of the training of an SAE; `train_sae` takes each of them as a keyword.

    Raises:
        InputError: a setting is out of its range or none of its choices.

    Example:
        >>> SaeTrainingConfig(d_sae=4096, architecture="topk").k
        32
    """

    d_sae: int | None = None
    """Number of features; eight times the teacher's width if None."""
    k: int = 32
    """Active features per token."""
    n_tokens: int = 4_000_000
    """Tokens to train on, at least 8,192."""
    architecture: SaeArchitecture = "batchtopk"
    """"batchtopk", which SAELens saves as a JumpReLU SAE, or "topk"."""
    context_size: int = 256
    """Tokens per sequence."""
    batch_size: int = 16
    """Sequences per forward pass of the teacher."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    dtype: Dtype = "fp32"
    """Dtype of the teacher. The SAE is in fp32; with "bf16" it trains under autocast."""
    seed: int = 0
    """Seed of the SAE's initial weights and of the order of activations."""

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, SaeArchitecture)
        check_choice("dtype", self.dtype, Dtype)
        least = {"k": 1, "d_sae": 1, "n_tokens": MIN_TOKENS, "context_size": 2, "batch_size": 1, "seed": 0}
        set_integers(self, least)
        if self.d_sae is not None and self.k > self.d_sae:
            raise InputError(f"k must be at most {self.d_sae}, the number of features, got {self.k}; set --k")
        if not isinstance(self.lr, Real) or not 0 < self.lr < math.inf:
            raise InputError(f"lr must be a positive number, got {self.lr!r}; set --lr")
        object.__setattr__(self, "lr", float(self.lr))  # the JSON text of a checkpoint holds no number of NumPy
