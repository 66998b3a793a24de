"""Compute the tokens that features promote, only for the features that are shown."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, SaeLike, TeacherLike
from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.measuring.direct_logits import promoted_strings
from tl_distill_floor.measuring.reloading import load_measured_sae, load_measured_teacher
from tl_distill_floor.predicting.lost_features import promoted_by
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.promoted_tokens import PromotedTokens
from tl_distill_floor.sources.torch_state import neutral_torch_state


@neutral_torch_state()
def add_promoted_tokens(
    floor: FloorPrediction,
    features: Int[np.ndarray, " feature"] | Bool[np.ndarray, " feature"] | Sequence[int],
    teacher: TeacherLike | None = None,
    sae: SaeLike | None = None,
    *,
    device: str = "cpu",
) -> FeatureFloorPrediction:
    """Compute the tokens that some features promote, and add them to a prediction.

    `predict_floor` computes them for the 20 most costly features that each width loses. The teacher and the SAE
    are loaded only if the prediction lacks the tokens of a feature.

    Args:
        floor: a prediction.
        features: [feature] indices in the SAE, or a mask as `kept` returns it.
        teacher: the teacher that was measured; see `load_teacher`. Loaded by the name in `floor` if None.
        sae: the SAE that was measured; see `load_sae`. Loaded by the name in `floor` if None.
        device: torch device of what is loaded here.

    Returns:
        FeatureFloorPrediction: the prediction, whose `.promoted` has the tokens of these features. `lost_features` and
        `one_feature` show them; `floor.promoted.save(directory)` keeps them in a run directory.

    Raises:
        InputError: the prediction has no features, the SAE has no such feature, a mask has another length, the teacher
            or the SAE cannot be loaded, or one of them is not the one that was measured.

    Example:
        >>> floor = add_promoted_tokens(floor, floor.lost(96)[:50])  # doctest: +SKIP
        >>> floor.promoted.tokens[int(floor.lost(96)[0])]  # doctest: +SKIP
    """
    floor = floor.with_features()
    stats, n = floor.stats, len(floor.stats.firing_count)
    chosen = np.asarray(list(features))
    if chosen.dtype == bool and chosen.shape != (n,):
        raise InputError(f"a mask of features must have one value for each of the {n} features, got {chosen.shape}")
    indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    wanted = [as_integer("a feature", feature) for feature in indices.tolist()]
    if wanted and not 0 <= min(wanted) <= max(wanted) < n:
        outside = next(feature for feature in wanted if not 0 <= feature < n)
        raise InputError(f"the SAE has features 0 to {n - 1}, got {outside}; floor.lost(width) lists some")
    missing = [feature for feature in wanted if promoted_by(floor, feature) is None]
    if not missing:
        return floor
    source = load_measured_sae(stats, stats.sae_name if sae is None else sae, device)
    loaded, _ = load_measured_teacher(stats, teacher, source, device)
    return compute_promoted_tokens(floor, missing, loaded.model, source.sae.W_dec)


def compute_promoted_tokens(
    floor: FeatureFloorPrediction,
    features: Iterable[int],
    model: HookedModel,
    W_dec: Float[Tensor, "feature *d_model"],
) -> FeatureFloorPrediction:
    """Return a prediction with the promoted tokens of some features.

    Args:
        floor: a prediction.
        features: indices in the SAE.
        model: the teacher's model.
        W_dec: the SAE's decoder, with a row for every feature.
    """
    rows = sorted(set(features))
    strings = promoted_strings(model, W_dec.detach()[rows], floor.stats.hook_name) if rows else []
    known = PromotedTokens(floor.stats.digest(), {}) if floor.promoted is None else floor.promoted
    promoted = known.merge(PromotedTokens(known.stats, dict(zip(rows, strings, strict=True))))
    return dataclasses.replace(floor, promoted=promoted)
