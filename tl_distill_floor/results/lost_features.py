"""`LostFeatures` and `OneFeature`: the features that a student loses, and one feature over several widths."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.results.record_files import JsonRecord

LOST_FILE, FEATURE_FILE = "lost.json", "feature.json"


class FeatureContext(NamedTuple):
    """A position of the text where a feature fires, with the text around it."""

    activation: float
    """Absolute activation of the feature."""
    before: str
    """Text before the token."""
    peak: str
    """Text of the token on which the feature fires."""
    after: str
    """Text after the token."""


@dataclass(frozen=True)
class FeatureAtWidth:
    """One feature, and how much of it a student of one width is expected to lose."""

    feature: int
    """Index of the feature in the SAE."""
    rank: int
    """Rank by cost among the alive features, from 1 for the most costly."""
    cost: float
    """Cost of the feature, in the unit of the record that holds it."""
    firing_rate: float
    """Share of the tokens on which the feature fires."""
    capacity: float
    """Dimensions that water-filling allocates to the feature."""
    lost_share: float
    """Share of the feature's cost that the student is expected to lose."""
    kept: bool
    """Whether the student is expected to keep the feature."""
    contexts: tuple[FeatureContext, ...]
    """Where the feature fires most strongly, in falling order of activation; empty if contexts were not kept."""
    promoted: tuple[str, ...] | None
    """Tokens whose logits the feature raises most; empty if it has none, None if they were not computed."""
    neuronpedia: str | None
    """Address of the feature on Neuronpedia; None if the SAE is not known there."""


@dataclass(frozen=True, repr=False)
class LostFeatures(JsonRecord):
    """The features that a student of one width is expected to lose."""

    FILE_NAME: ClassVar[str] = LOST_FILE
    KIND: ClassVar[str] = "lost-features"
    COMMAND: ClassVar[str] = "tl-floor lost"

    model_name: str
    """Name of the teacher."""
    hook_name: str
    """Hook point of the SAE."""
    sae_name: str
    """Name of the SAE."""
    unit: CostUnit
    """Unit of the costs: "nats" or "mse"."""
    n_features: int
    """Number of alive features."""
    width: int
    """Dimensions of the student."""
    lost: tuple[int, ...]
    """Indices of all lost features, in falling order of cost."""
    cost_share: float
    """Summed cost of the lost features divided by the summed cost of all alive features."""
    shown: tuple[FeatureAtWidth, ...]
    """Details of the most costly lost features."""

    def __repr__(self) -> str:
        """Return the teacher, the width and the number of lost features in one line."""
        return (
            f"LostFeatures({self.model_name}, {self.hook_name}: width {self.width:,} loses {len(self.lost):,} of"
            f" {self.n_features:,} features, {self.cost_share:.1%} of the cost)"
        )


@dataclass(frozen=True, repr=False)
class OneFeature(JsonRecord):
    """One feature over several student widths."""

    FILE_NAME: ClassVar[str] = FEATURE_FILE
    KIND: ClassVar[str] = "feature"
    COMMAND: ClassVar[str] = "tl-floor lost --feature"

    model_name: str
    """Name of the teacher."""
    hook_name: str
    """Hook point of the SAE."""
    sae_name: str
    """Name of the SAE."""
    unit: CostUnit
    """Unit of the costs: "nats" or "mse"."""
    n_features: int
    """Number of alive features."""
    total_cost: float
    """Summed cost of all alive features, in `unit`."""
    widths: tuple[int, ...]
    """Student widths in dimensions."""
    at: tuple[FeatureAtWidth, ...]
    """The feature at each width."""
    survives_from: int | None
    """Smallest width such that every width from it up to `widest` keeps the feature; None if `widest` loses it."""
    widest: int
    """Largest width that was checked, in dimensions."""

    def __repr__(self) -> str:
        """Return the teacher, the feature and the width from which it survives in one line."""
        survival = f"no width up to {self.widest:,}" if self.survives_from is None else f"width {self.survives_from:,}"
        return (
            f"OneFeature({self.model_name}, {self.hook_name}: feature {self.at[0].feature:,}, rank"
            f" {self.at[0].rank:,} of {self.n_features:,}, survives from {survival})"
        )
