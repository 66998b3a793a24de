"""Describe the features that a student of some width loses, and one feature over several widths."""

from typing import Any

import numpy as np
from jaxtyping import Int

from tl_distill_floor.errors import InputError, as_integer
from tl_distill_floor.results.expected_loss import narrowest
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.lost_features import FeatureAtWidth, FeatureContext, LostFeatures, OneFeature
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.theory.capacity import Number

NEURONPEDIA = "https://www.neuronpedia.org"
N_SHOWN = 20
"""Number of lost features that are described by default."""
N_SCANNED = 12
"""Number of widths between 1 and the widest at which `survives_from` looks, in addition to those of the prediction."""


@neutral_torch_state()
def lost_features(floor: FloorPrediction, width: Number | None = None, top: int = N_SHOWN) -> LostFeatures:
    """Describe the features that a student of one width is expected to lose.

    Args:
        floor: a prediction.
        width: width of the student in dimensions; the narrowest of the prediction if None.
        top: number of features to describe, the most costly first.

    Returns:
        LostFeatures: `.lost`, the indices of all lost features, and `.shown`, descriptions of the first `top`. The
        tokens that a feature promotes are None where the prediction lacks them; see `add_promoted_tokens`.

    Raises:
        InputError: `width` or `top` is not an integer above 0, or the prediction has no features.

    Example:
        >>> lost = lost_features(floor, width=64)  # doctest: +SKIP
        >>> lost.cost_share, lost.shown[0].promoted  # doctest: +SKIP
    """
    floor = floor.with_features()
    size = as_integer("the width", floor.widths[0] if width is None else width, 1)
    top = as_integer("the number of features to list", top, 1)
    lost, cost = floor.lost(size), floor.stats.cost
    return LostFeatures(
        **_source_fields(floor),
        width=size,
        lost=tuple(lost.tolist()),
        cost_share=float(cost[lost].sum()) / floor.total_cost if floor.total_cost else 0.0,
        shown=features_at(floor, size, lost[:top]),
    )


@neutral_torch_state()
def one_feature(floor: FloorPrediction, feature: Number, width: Number | None = None) -> OneFeature:
    """Describe one feature at the widths of a prediction, or at one width.

    Args:
        floor: a prediction.
        feature: index of the feature in the SAE.
        width: width of the student in dimensions; all widths of the prediction if None.

    Returns:
        OneFeature: `.at`, the feature at each width, and `.survives_from`, the width from which on it is kept.

    Raises:
        InputError: the prediction has no features, the SAE has no such feature, the feature is not alive, or the width
            is not an integer above 0.

    Example:
        >>> one_feature(floor, 17).survives_from  # doctest: +SKIP
    """
    floor = floor.with_features()
    stats = floor.stats
    n, index = len(stats.firing_count), as_integer("the feature", feature)
    if not 0 <= index < n:
        raise InputError(f"the SAE has features 0 to {n - 1}, got {index}; tl-floor lost RUN --width lists some")
    if not stats.alive(floor.min_count)[index]:
        raise InputError(
            f"feature {index} fired on {stats.firing_count[index]:,} of {stats.n_tokens:,} tokens and so is not"
            " alive; measure more with tl-floor measure --tokens, or name another feature"
        )
    widths = floor.widths.tolist() if width is None else [as_integer("the width", width, 1)]
    widest = max(stats.d_model, *widths, *floor.widths.tolist())
    return OneFeature(
        **_source_fields(floor),
        total_cost=floor.total_cost,
        widths=tuple(widths),
        at=tuple(features_at(floor, size, np.array([index]))[0] for size in widths),
        survives_from=survives_from(floor, index, widest),
        widest=widest,
    )


def survives_from(floor: FeatureFloorPrediction, feature: int, widest: int) -> int | None:
    """Return the smallest width such that every wider student, up to `widest`, keeps the feature.

    The widths of the prediction, the trained widths and some others are checked. Above the last of them that loses the
    feature, the width is bisected.

    Args:
        floor: a prediction.
        feature: index of an alive feature.
        widest: largest width to check, in dimensions.

    Returns:
        The width; None if `widest` loses the feature.

    Example:
        >>> survives_from(floor, feature=17, widest=256)  # doctest: +SKIP
    """
    trained = () if floor.simulation is None else floor.simulation.widths
    scanned = np.geomspace(1, widest, N_SCANNED).round()
    widths = np.unique(np.concatenate([scanned, floor.widths, trained, [1, widest]]).astype(np.int64))
    narrowest_keeping = None
    for width in reversed(widths[widths <= widest].tolist()):
        if not floor.kept(width)[feature]:
            if narrowest_keeping is None:
                return None
            return narrowest(width + 1, narrowest_keeping, lambda wider: bool(floor.kept(wider)[feature]))
        narrowest_keeping = width
    return narrowest_keeping


def features_at(
    floor: FeatureFloorPrediction, width: int, features: Int[np.ndarray, " feature"]
) -> tuple[FeatureAtWidth, ...]:
    """Describe some alive features, and what a student of one width is expected to lose of them.

    Args:
        floor: a prediction.
        width: width of the student in dimensions.
        features: [feature] indices in the SAE.

    Example:
        >>> features_at(floor, 64, np.array([17]))[0].kept  # doctest: +SKIP
        True
    """
    stats = floor.stats
    rank = np.zeros(len(stats.cost), dtype=np.int64)
    rank[floor.ranked_features] = np.arange(1, floor.n_features + 1)
    capacity, share, kept = floor.capacities(width), floor.lost_share(width), floor.kept(width)
    return tuple(
        FeatureAtWidth(
            feature=feature,
            rank=int(rank[feature]),
            cost=float(stats.cost[feature]),
            firing_rate=float(stats.firing_rate[feature]),
            capacity=float(capacity[feature]),
            lost_share=float(share[feature]),
            kept=bool(kept[feature]),
            contexts=_contexts(stats, feature),
            promoted=promoted_by(floor, feature),
            neuronpedia=stats.neuronpedia_id and f"{NEURONPEDIA}/{stats.neuronpedia_id}/{feature}",
        )
        for feature in features.tolist()
    )


def features_shown_by_default(floor: FeatureFloorPrediction) -> list[int]:
    """Return the `N_SHOWN` most costly features that each width of a prediction loses, each once."""
    return sorted({feature for width in floor.widths.tolist() for feature in floor.lost(width)[:N_SHOWN].tolist()})


def promoted_by(floor: FeatureFloorPrediction, feature: int) -> tuple[str, ...] | None:
    """Return the tokens that a feature promotes; None if they were not computed.

    Args:
        floor: a prediction. In older files the contexts hold the tokens of every feature that fired.
        feature: index in the SAE.
    """
    contexts = floor.stats.contexts
    if contexts is not None and (tokens := contexts.promoted_tokens(feature)):
        return tuple(tokens)
    return None if floor.promoted is None else floor.promoted.tokens.get(feature)


def _contexts(stats: FeatureStats, feature: int) -> tuple[FeatureContext, ...]:
    """Return the contexts of one feature, the strongest activation first."""
    contexts = stats.contexts
    if contexts is None:
        return ()
    activations = contexts.activation[feature, : contexts.n_contexts(feature)].tolist()
    return tuple(FeatureContext(value, *contexts.text(feature, k)) for k, value in enumerate(activations))


def _source_fields(floor: FeatureFloorPrediction) -> dict[str, Any]:
    """Return the fields that say where the features come from."""
    stats = floor.stats
    return {
        "model_name": stats.model_name,
        "hook_name": stats.hook_name,
        "sae_name": stats.sae_name,
        "unit": floor.unit,
        "n_features": floor.n_features,
    }
