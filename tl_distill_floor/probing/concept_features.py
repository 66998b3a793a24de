"""The features that the probes of a concept read, and the widths that keep them."""

from collections.abc import Sequence

from tl_distill_floor.predicting.lost_features import survives_from
from tl_distill_floor.probing.sparse_scores import RankedFeatures
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction
from tl_distill_floor.results.sparse_probes import ConceptFeature


class FeatureFates:
    """Which features each width keeps, and from which width on a feature is kept."""

    def __init__(self, floor: FeatureFloorPrediction, widths: Sequence[int]) -> None:
        self.floor = floor
        self.kept = {width: floor.kept(width) for width in widths}
        self._widest = max(floor.stats.d_model, *widths, *floor.widths.tolist())
        self._survives_from: dict[int, int | None] = {}

    def survives_from(self, feature: int) -> int | None:
        """Return the least width from which on a feature is kept; see `predicting.lost_features.survives_from`."""
        if feature not in self._survives_from:
            self._survives_from[feature] = survives_from(self.floor, feature, self._widest)
        return self._survives_from[feature]


def concept_features(ranked: Sequence[RankedFeatures], fates: FeatureFates, k: int) -> tuple[ConceptFeature, ...]:
    """Return the `k` features with the least mean rank over splits; equal ranks in the order of their index.

    Args:
        ranked: [split] the `k` features that were selected.
        fates: which features each width keeps.
        k: number of features; also those of each split.
    """
    rank: dict[int, list[int]] = {}
    score: dict[int, float] = {}
    for of_split in ranked:
        selected = zip(of_split.feature.tolist(), of_split.score.tolist(), strict=True)
        for position, (feature, value) in enumerate(selected):
            rank.setdefault(feature, []).append(position + 1)
            score[feature] = score.get(feature, 0.0) + value
    n = len(ranked)
    mean_rank = {feature: (sum(ranks) + (n - len(ranks)) * (k + 1)) / n for feature, ranks in rank.items()}
    return tuple(
        ConceptFeature(
            feature=feature,
            mean_rank=round(mean_rank[feature], 3),
            n_splits=len(rank[feature]),
            rises=score[feature] > 0,
            survives_from=fates.survives_from(feature),
            peak=_peak(fates.floor, feature),
        )
        for feature in sorted(mean_rank, key=lambda each: (mean_rank[each], each))[:k]
    )


def _peak(floor: FeatureFloorPrediction, feature: int) -> str | None:
    """Return the token on which a feature fires most strongly, or None if contexts were not kept."""
    contexts = floor.stats.contexts
    return None if contexts is None or not contexts.n_contexts(feature) else contexts.text(feature, 0)[1]
