"""TODO: one line."""

import numpy as np
from jaxtyping import Int

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.lost_features import Context, FeatureAt, LostFeatures, OneFeature

NEURONPEDIA = "https://www.neuronpedia.org"

N_SCANNED = 12
"""Widths between 1 and the teacher's that a feature's probe_run is looked for at, beside those of the prediction."""


def lost_features(floor: FloorPrediction, width: int | None, top: int) -> LostFeatures:
    """The features that a student of `width` loses, the narrowest of the prediction's where it is left out.

    Raises:
        InputError: the width or the number of features to describe is below 1.
    """
    size = _checked_width(int(floor.widths[0]) if width is None else width)
    if top < 1:
        raise InputError(f"the number of features to list must be at least 1, got {top}; try --top 20")
    lost, cost = floor.lost(size), floor.stats.cost
    return LostFeatures(
        floor=floor,
        width=size,
        lost=tuple(lost.tolist()),
        cost_share=float(cost[lost].sum()) / floor.total_cost if floor.total_cost else 0.0,
        shown=features_at(floor, size, lost[:top]),
    )


def one_feature(floor: FloorPrediction, feature: int, width: int | None) -> OneFeature:
    """One feature at the prediction's widths, or at one.

    Raises:
        InputError: there is no such feature, it was never alive, or the width is below 1.
    """
    stats = floor.stats
    n = len(stats.firing_count)
    if not 0 <= feature < n:
        raise InputError(f"the SAE has features 0 to {n - 1}, got {feature}; tl-floor lost RUN --width lists some")
    if not stats.alive(floor.min_count)[feature]:
        raise InputError(
            f"feature {feature} fired on {stats.firing_count[feature]:,} of {stats.n_tokens:,} tokens and so is not"
            " alive; measure more with tl-floor measure --tokens, or name another feature"
        )
    widths = floor.widths.tolist() if width is None else [_checked_width(width)]
    widest = max(stats.d_model, *widths, *floor.widths.tolist())
    return OneFeature(
        floor=floor,
        widths=tuple(widths),
        at=tuple(features_at(floor, size, np.array([feature]))[0] for size in widths),
        survives_from=survives_from(floor, feature, widest),
        widest=widest,
    )


def survives_from(floor: FloorPrediction, feature: int, widest: int) -> int | None:
    """The smallest width from which on the feature is kept at every width up to `widest`; None where that loses it.

    Looked at are the prediction's widths, the trained ones and some between; beyond the last of them that loses the
    feature, by halving.
    """
    trained = () if floor.simulation is None else floor.simulation.widths
    between = np.geomspace(1, widest, N_SCANNED).round()
    scanned = np.unique(np.concatenate([between, floor.widths, trained, [1, widest]]).astype(np.int64))
    scanned = scanned[scanned <= widest].tolist()
    above = None
    for width in reversed(scanned):
        if not floor.kept(width)[feature]:
            return None if above is None else _first_kept(floor, feature, width, above)
        above = width
    return above


def _first_kept(floor: FloorPrediction, feature: int, lost: int, kept: int) -> int:
    while kept - lost > 1:
        middle = (lost + kept) // 2
        lost, kept = (lost, middle) if floor.kept(middle)[feature] else (middle, kept)
    return kept


def features_at(floor: FloorPrediction, width: int, features: Int[np.ndarray, " feature"]) -> tuple[FeatureAt, ...]:
    """What is known of some alive features, and what a student of `width` holds of them."""
    stats = floor.stats
    alive = stats.alive(floor.min_count)
    rank = np.zeros(len(alive), dtype=np.int64)
    rank[floor.ranked] = np.arange(1, floor.n_features + 1)
    capacity, share, kept = floor.capacities(width), floor.lost_share(width), floor.kept(width)
    return tuple(
        FeatureAt(
            feature=feature,
            rank=int(rank[feature]),
            cost=float(stats.cost[feature]),
            firing_rate=float(stats.firing_rate[feature]),
            capacity=float(capacity[feature]),
            lost_share=float(share[feature]),
            kept=bool(kept[feature]),
            contexts=_contexts(stats, feature),
            promoted=() if stats.contexts is None else tuple(stats.contexts.promoted_tokens(feature)),
            neuronpedia=stats.neuronpedia_id and f"{NEURONPEDIA}/{stats.neuronpedia_id}/{feature}",
        )
        for feature in features.tolist()
    )


def _contexts(stats: FeatureStats, feature: int) -> tuple[Context, ...]:
    found = stats.contexts
    if found is None:
        return ()
    strengths = found.activation[feature, : found.n_contexts(feature)].tolist()
    return tuple(Context(strength, *found.text(feature, k)) for k, strength in enumerate(strengths))


def _checked_width(width: int) -> int:
    if width < 1:
        raise InputError(f"the width must be at least 1 dimension, got {width}; try --width 64")
    return width
