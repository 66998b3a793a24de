"""`SparseProbes`: which SAE features a concept rests on, and what students that lose some of them still represent."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tl_distill_floor.annotations import LabelLevel
from tl_distill_floor.results.probes import mean_interval
from tl_distill_floor.results.record_files import JsonRecord

SPARSE_PROBES_FILE = "sparse_probes.json"
ENOUGH = 0.95
"""Share of the best gain above chance from which on a number of features is enough for a concept."""


@dataclass(frozen=True)
class ConceptScores:
    """Scores of probes for one concept, one value for each probe; all but the first on test documents."""

    validation_auroc: tuple[float, ...]
    """Area under the ROC curve on the validation documents."""
    auroc: tuple[float, ...]
    """Area under the ROC curve: the probability that an example with the concept is scored above one without it."""
    f1: tuple[float, ...]
    """Harmonic mean of precision and recall."""
    precision: tuple[float, ...]
    """Share of the predicted examples that have the concept; 0 if none is predicted."""
    recall: tuple[float, ...]
    """Share of the examples with the concept that are predicted."""

    def __post_init__(self) -> None:
        """Check that every probe has all scores.

        Raises:
            ValueError: a score is missing, or there is no probe.
        """
        lengths = {len(values) for values in (self.validation_auroc, self.auroc, self.f1, self.precision, self.recall)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError("each probe needs two AUROCs, an F1, a precision and a recall")

    @property
    def mean_auroc(self) -> float:
        """AUROC averaged over probes."""
        return float(np.mean(self.auroc))

    @property
    def mean_f1(self) -> float:
        """F1 averaged over probes."""
        return float(np.mean(self.f1))

    @property
    def mean_precision(self) -> float:
        """Precision averaged over probes."""
        return float(np.mean(self.precision))

    @property
    def mean_recall(self) -> float:
        """Recall averaged over probes."""
        return float(np.mean(self.recall))

    @property
    def auroc_interval(self) -> tuple[float, float]:
        """95 % interval of `mean_auroc` over splits, for one probe per split; see `ProbeResult.interval`."""
        return mean_interval(self.auroc)

    @property
    def auroc_range(self) -> tuple[float, float]:
        """5th and 95th percentile of the AUROC over probes."""
        low, high = np.quantile(self.auroc, (0.05, 0.95))
        return float(low), float(high)


@dataclass(frozen=True)
class ScoresAtK:
    """The probes of one number of features, and their controls."""

    k: int
    """Number of features that a probe reads."""
    selected: ConceptScores
    """Features selected on the training documents, one probe per split."""
    shuffled: ConceptScores
    """The same with labels that were shuffled between documents; several probes per split."""
    random: ConceptScores
    """Random features that fire on the training documents; several probes per split."""


@dataclass(frozen=True)
class ConceptFeature:
    """A feature that probes of a concept read."""

    feature: int
    """Index in the SAE."""
    mean_rank: float
    """Rank by the selection, from 1, averaged over splits; one more than the largest K where it was not selected."""
    n_splits: int
    """Number of splits in which it was selected."""
    rises: bool
    """Whether its mean activation is higher with the concept than without it."""
    survives_from: int | None
    """Least width in dimensions such that it and all wider ones keep the feature; None if the teacher's loses it."""
    peak: str | None
    """Token on which the feature fires most strongly in the measured text; None if contexts were not kept."""


@dataclass(frozen=True)
class ConceptInStudent:
    """A dense probe for a concept on one student's activation."""

    name: str
    """Name of the student."""
    scores: ConceptScores


@dataclass(frozen=True)
class ConceptAtWidth:
    """What students of one width are expected to lose of a concept, and what probes of them say."""

    width: int
    """Dimensions of the student."""
    lost: tuple[int, ...]
    """Features of the concept (`Concept.core`) that a student of this width is expected to lose."""
    remaining: ConceptScores
    """Sparse probes that read the selected features without `lost`."""
    kept: ConceptScores
    """Forecast: dense probes of the teacher's activation, reconstructed from the features that this width keeps."""
    bottleneck: ConceptScores | None
    """Forecast: dense probes of the hidden state of the bottleneck student; None if none was trained."""
    students: tuple[ConceptInStudent, ...]
    """Dense probes of the trained students of this width."""


@dataclass(frozen=True)
class Concept:
    """One class of a label against all others."""

    name: str
    """Name of the label, followed by the class unless that only affirms it."""
    level: LabelLevel
    """What is labelled: a "text" or a "word"."""
    n_items: int
    """Number of labelled texts or words."""
    n_documents: int
    """Number of documents that they come from."""
    share: float
    """Share of the items that have the concept: the precision of always predicting it."""
    at: tuple[ScoresAtK, ...]
    """Scores in rising order of the number of features."""
    dense: ConceptScores
    """Dense probes of the teacher's activation: the reference for all others."""
    features: tuple[ConceptFeature, ...]
    """As many features as the largest K, in rising order of `mean_rank`."""
    widths: tuple[ConceptAtWidth, ...]
    """Students in rising order of width."""

    def __post_init__(self) -> None:
        """Check that there are probes and features.

        Raises:
            ValueError: something is missing, or the numbers of features do not rise.
        """
        ks = [scores.k for scores in self.at]
        if not ks or ks != sorted(set(ks)) or ks[0] < 1 or len(self.features) < ks[-1]:
            raise ValueError("a concept needs scores in rising order of K, and as many features as the largest K")

    @property
    def enough(self) -> int:
        """Least number of features that has 95 % of the best gain above chance, by AUROC on validation documents."""
        return enough_features(self.at)

    @property
    def core(self) -> tuple[ConceptFeature, ...]:
        """The features that the concept rests on: the first `enough` of `features`."""
        return self.features[: self.enough]

    @property
    def best(self) -> ScoresAtK:
        """Scores of the probes with `enough` features."""
        return next(scores for scores in self.at if scores.k == self.enough)

    @property
    def first_loss(self) -> ConceptAtWidth | None:
        """The widest of the students that is expected to lose some of `core`; None if all keep them."""
        return next((at for at in reversed(self.widths) if at.lost), None)


def enough_features(at: tuple[ScoresAtK, ...]) -> int:
    """Return the least number of features that has 95 % of the best gain above chance; see `Concept.enough`.

    Args:
        at: scores in rising order of the number of features.

    Returns:
        One of their numbers of features; the smallest if none is above chance.

    Example:
        >>> enough_features(concept.at)  # doctest: +SKIP
    """
    gains = [float(np.mean(scores.selected.validation_auroc)) - 0.5 for scores in at]
    least = ENOUGH * max(gains) if max(gains) > 0 else -math.inf
    return next(scores.k for scores, gain in zip(at, gains, strict=True) if gain >= least)


@dataclass(frozen=True, repr=False)
class SparseProbes(JsonRecord):
    """The k-sparse probes of one run: concepts, their features, and the students that lose them."""

    FILE_NAME: ClassVar[str] = SPARSE_PROBES_FILE
    KIND: ClassVar[str] = "sparse-probes"
    COMMAND: ClassVar[str] = "tl-floor probe --sparse"
    INDENT: ClassVar[int | None] = None

    teacher: str
    """Name of the teacher."""
    hook_name: str
    """Hook point of the teacher."""
    sae_name: str
    """Name of the SAE."""
    labelled: str
    """Name of the labelled text."""
    stats: str
    """Digest of the feature statistics that the forecasts were computed from."""
    n_features: int
    """Number of alive features."""
    concepts: tuple[Concept, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the probes."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind when reading the results."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return tuple(concept.name for concept in self.concepts)

    def of(self, name: str) -> Concept:
        """Return one concept.

        Args:
            name: name of the concept.

        Raises:
            KeyError: there is no such concept.

        Example:
            >>> probes.of("sentiment: good").core  # doctest: +SKIP
        """
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise KeyError(f"there is no concept {name!r}; choose from {', '.join(self.names)}")

    def forecast_error(self) -> dict[str, float]:
        """Return the mean absolute difference between the AUROCs of each forecast and of the students.

        Returns:
            Mean over concepts and students, for "remaining", "kept" and "bottleneck"; NaN where there are none.

        Example:
            >>> probes.forecast_error()["kept"]  # doctest: +SKIP
        """
        errors: dict[str, list[float]] = {"remaining": [], "kept": [], "bottleneck": []}
        for concept in self.concepts:
            for at in concept.widths:
                for name, values in errors.items():
                    forecast: ConceptScores | None = getattr(at, name)
                    if forecast is not None:
                        values += [abs(forecast.mean_auroc - each.scores.mean_auroc) for each in at.students]
        return {name: float(np.mean(values)) if values else math.nan for name, values in errors.items()}

    def __repr__(self) -> str:
        """Return the teacher, the labels and the concepts in one line."""
        return f"SparseProbes({self.teacher} at {self.hook_name}, {self.labelled}: {', '.join(self.names)})"
