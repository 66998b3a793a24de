"""Hook matching: train a learned projection of a student's residual stream towards an activation of its teacher."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from tl_distill_floor.annotations import SaeModule
from tl_distill_floor.errors import InputError, set_integers
from tl_distill_floor.measuring.encoding import encode_tokens
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.sources.saes import sae_digest

SMALLEST_VARIANCE = 1e-12
"""Variance that distances are divided by if all targets are equal."""


@dataclass(frozen=True)
class Match:
    """A layer of the student whose residual stream is matched with a hook point of the teacher.

    Example:
        >>> Match("blocks.2.hook_resid_post", layer=1, weight=10.0).weight_at(0.5)
        5.0
    """

    teacher_hook: str
    """Hook point of the teacher."""
    layer: int
    """Layer of the student, counted from 0; the residual stream after it is projected."""
    weight: float = 20.0
    """Nats per token of the loss for a squared error as large as the target's variance, at the first step."""
    until: float = 1.0
    """Share of the steps over which the weight falls linearly to 0."""

    def __post_init__(self) -> None:
        set_integers(self, {"layer": None})
        if not 0 < self.weight < math.inf or not 0 < self.until <= 1:
            raise InputError(
                "hook matching needs a finite weight above 0, and until above 0 and at most 1, got"
                f" {self.weight} and {self.until}"
            )

    def weight_at(self, share: float) -> float:
        """Return the weight after a share of the steps."""
        return self.weight * max(0.0, 1.0 - share / self.until)


class KeptReconstruction:
    """The SAE's reconstruction of a teacher's activation from the features that a student keeps.

    Errors are weighted by their cost. The reconstruction is multiplied by the square root of Σ_i ρ_i ŵ_i ŵ_iᵀ over the
    kept features, where ŵ_i is the direction of decoder row i and ρ_i is the cost of a squared error in what the
    feature writes. The squared distance of two such targets is their summed cost if features are orthogonal.

    Args:
        sae: SAE of the teacher's hook point.
        kept: features that the student keeps.
        weight: cost of a squared error in what each feature writes, see `FeatureStats.error_weight`.

    Raises:
        InputError: the SAE has another number of features, or no feature is kept.
    """

    def __init__(
        self,
        sae: SaeModule,
        kept: Bool[np.ndarray, " feature"],
        weight: Float64[np.ndarray, " feature"],
    ) -> None:
        self._sae = sae
        decoder = self._decoder()
        if len(kept) != len(decoder):
            raise InputError(f"the prediction has {len(kept):,} features, the SAE has {len(decoder):,}; name its SAE")
        if not kept.any():
            raise InputError(
                "a student of this width keeps no feature, so there is nothing to match; match the full activation"
            )
        self._kept = torch.from_numpy(kept).to(decoder.device)
        of_kept = np.where(kept, weight, 0.0)
        scale = torch.from_numpy(np.sqrt(of_kept)).float().to(decoder)[:, None]
        scaled_rows = nn.functional.normalize(decoder, dim=1) * scale
        values, vectors = torch.linalg.eigh(scaled_rows.T @ scaled_rows)
        self._root = vectors * values.clamp(min=0).sqrt()
        self.digest = hashlib.sha256(kept.tobytes() + of_kept.tobytes()).hexdigest()[:16]
        """Digest of the kept features and their weights."""

    @torch.no_grad()
    def __call__(self, activation: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """Return the target of some tokens, on their device."""
        # The heads of hook_z are already concatenated, as those of a teacher with one head are.
        codes = encode_tokens(self._sae, activation, n_heads=1) * self._kept
        target: Tensor = codes @ self._decoder() @ self._root
        return target.to(activation.device)

    def _decoder(self) -> Float[Tensor, "feature d_model"]:
        decoder: Tensor = self._sae.W_dec.detach().float()  # type: ignore[attr-defined]
        return decoder


def kept_reconstruction(floor: FloorPrediction, sae: SaeModule, width: int) -> KeptReconstruction:
    """Return the target of hook matching that holds only the features a student of `width` is expected to keep.

    Args:
        floor: prediction for the teacher, measured with this SAE.
        sae: SAE of the hook point that is matched.
        width: the student's width, dimensions.

    Raises:
        InputError: the prediction was measured without an SAE or with another one, or no feature is kept.

    Example:
        >>> target = kept_reconstruction(floor, sae, width=64)  # doctest: +SKIP
        >>> spec = StudentSpec(64, match=Match(floor.stats.hook_name, layer=1), target=target)  # doctest: +SKIP
    """
    floor = floor.with_features()
    stats = floor.stats
    measured_with = stats.settings.get("sae")
    if measured_with is not None and measured_with != sae_digest(sae):
        raise InputError(
            f"the prediction was measured with {stats.sae_name}, and this SAE has other weights; name that"
            " one with --sae"
        )
    return KeptReconstruction(sae, floor.kept(width), stats.error_weight)


def matching_target(
    activation: Float[Tensor, "..."],
    tokens: tuple[Tensor, ...] | Tensor,
    target: KeptReconstruction | None,
    d_model: int,
) -> Float[Tensor, "token d_model"]:
    """Return what a student's residual stream is matched with at some tokens.

    Args:
        activation: the teacher's activation at the hook point, [batch, position, ...].
        tokens: index of the tokens in a batch, or a mask.
        target: part of the activation that is matched; all of it if None.
        d_model: the teacher's width, dimensions.

    Raises:
        InputError: the activation is not one vector of this width for each token.
    """
    if math.prod(activation.shape[2:]) != d_model:
        raise InputError(
            f"the activation at the teacher's hook point has the shape {tuple(activation.shape)}, and hook matching"
            f" compares [batch, position, {d_model}]; name a hook point of the residual stream"
        )
    vectors = activation[tokens].flatten(1)
    return vectors if target is None else target(vectors)


class ActivationMatcher(nn.Module):
    """The learned projection, and its squared distance from the target as a share of the target's variance.

    Args:
        width: the student's width, dimensions.
        d_target: dimensions of the target.
        seed: seed of the projection's initial weights.
    """

    def __init__(self, width: int, d_target: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            torch.default_generator.manual_seed(seed)
            self.projection = nn.Linear(width, d_target)
        self._variance = 1.0

    def set_variance(self, target: Float[Tensor, "token d_target"]) -> None:
        """Divide all later distances by the variance of these targets."""
        self._variance = max(float(target.float().var(dim=0, correction=0).sum()), SMALLEST_VARIANCE)

    def forward(
        self, student: Float[Tensor, "token width"], target: Float[Tensor, "token d_target"]
    ) -> Float[Tensor, ""]:
        """Return the distance, summed over the tokens."""
        distance: Tensor = (self.projection(student.float()) - target.float()).square().sum() / self._variance
        return distance
