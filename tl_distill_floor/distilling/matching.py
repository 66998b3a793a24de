"""Hook matching: a student's residual stream, through a learned projection, is drawn to what the teacher's holds."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from tl_distill_floor.errors import InputError


@dataclass(frozen=True)
class Match:
    """A layer of the student, matched with a hook point of the teacher."""

    teacher_hook: str
    layer: int
    """Of the student, whose residual stream after it is projected."""
    weight: float = 20.0
    """Of the matching loss (a share of the target's variance) beside the objective (nats per token)."""
    until: float = 1.0
    """Share of the training after which the weight has fallen to 0, linearly."""

    def __post_init__(self) -> None:
        if not self.weight > 0 or not 0 < self.until <= 1:
            raise InputError(
                f"matching needs a weight above 0 and an end from 0 to 1, got {self.weight} and {self.until}"
            )

    def weight_at(self, share: float) -> float:
        """The weight once a share of the training is done."""
        return self.weight * max(0.0, 1.0 - share / self.until)


class KeptPart:
    """What of a teacher's activation a student is to hold: the SAE's reconstruction from the features kept.

    Errors count by what they cost: the target is multiplied by the square root of Σ_i ρ_i ŵ_i ŵ_iᵀ over the kept
    features, ŵ_i the direction of decoder row i and ρ_i the feature's cost per unit of its squared norm, so that the
    squared distance of two targets is their summed cost where features are orthogonal.

    Args:
        sae: of the teacher's hook point.
        kept: features that the width can hold.
        cost: of every feature, any one unit.
        mean_square: mean squared norm of what each feature writes, E[a²]·‖w‖².
    """

    def __init__(
        self,
        sae: Any,
        kept: Bool[np.ndarray, " feature"],
        cost: Float64[np.ndarray, " feature"],
        mean_square: Float64[np.ndarray, " feature"],
    ) -> None:
        decoder = sae.W_dec.detach().float()
        if len(kept) != len(decoder):
            raise InputError(f"the prediction is of {len(kept):,} features, the SAE has {len(decoder):,}")
        if not kept.any():
            raise InputError("a student of this width holds no feature, so there is nothing to match; match all of it")
        self._sae = sae
        self._kept = torch.from_numpy(kept).to(decoder.device)
        share = np.divide(cost, mean_square, out=np.zeros_like(cost), where=kept & (mean_square > 0))
        direction = (
            nn.functional.normalize(decoder, dim=1) * torch.from_numpy(np.sqrt(share)).float().to(decoder)[:, None]
        )
        values, vectors = torch.linalg.eigh(direction.T @ direction)
        self._root = vectors * values.clamp(min=0).sqrt()
        self.digest = hashlib.sha256(kept.tobytes() + share.tobytes()).hexdigest()[:16]
        """Differs when the target does."""

    @torch.no_grad()
    def __call__(self, activation: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """The target of some tokens."""
        codes = self._sae.encode(activation.to(self._sae.dtype)).float() * self._kept
        found: Tensor = codes @ self._sae.W_dec.detach().float() @ self._root
        return found


class Matcher(nn.Module):
    """The learned projection, and its distance from the target: squared error as a share of the target's variance."""

    def __init__(self, width: int, d_target: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.projection = nn.Linear(width, d_target)
        self._variance = 1.0

    def scale(self, target: Float[Tensor, "token d_target"]) -> None:
        """Take the variance of these targets as what a distance of 1 for each token is."""
        self._variance = max(float(target.float().var(dim=0, correction=0).sum()), 1e-12)

    def forward(
        self, student: Float[Tensor, "token width"], target: Float[Tensor, "token d_target"]
    ) -> Float[Tensor, ""]:
        """Summed over the tokens."""
        found: Tensor = (self.projection(student.float()) - target.float()).square().sum() / self._variance
        return found
