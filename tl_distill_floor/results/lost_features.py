"""TODO: one line."""

from dataclasses import dataclass
from typing import NamedTuple

from tl_distill_floor.results.floor_prediction import FloorPrediction


class Context(NamedTuple):
    """A place where a feature fires."""

    activation: float
    before: str
    peak: str
    after: str


@dataclass(frozen=True)
class FeatureAt:
    """One feature, and what a student of one width holds of it."""

    feature: int
    rank: int
    """Among the alive features by cost, counted from 1."""
    cost: float
    firing_rate: float
    capacity: float
    """Dimensions that water-filling gives it."""
    lost_share: float
    """Of its cost, in `expected`."""
    kept: bool
    contexts: tuple[Context, ...]
    """The strongest first; none where they were not kept."""
    promoted: tuple[str, ...]
    neuronpedia: str | None
    """Its address."""


@dataclass(frozen=True)
class LostFeatures:
    """What a student of one width loses."""

    floor: FloorPrediction
    width: int
    lost: tuple[int, ...]
    """Indices of all of them, the most costly first."""
    cost_share: float
    """Of the summed cost of the alive features, what the lost ones hold."""
    shown: tuple[FeatureAt, ...]


@dataclass(frozen=True)
class OneFeature:
    """One feature over several widths."""

    floor: FloorPrediction
    widths: tuple[int, ...]
    at: tuple[FeatureAt, ...]
    """At each width."""
    survives_from: int | None
    """The smallest width from which on it is always kept, up to `widest`; None where `widest` loses it."""
    widest: int
