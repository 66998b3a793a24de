"""`ProbeResult`, `Probes` and `Decodability`: what linear probes read off activations of a teacher and its students."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.stats import t as student_t

from tl_distill_floor.annotations import LabelLevel, Pooling, ProbedActivation
from tl_distill_floor.errors import check_choice
from tl_distill_floor.results.record_files import Displayable, JsonRecord

PROBE_FILE, PROBES_FILE = "probe.json", "probes.json"
TEST_PER_TRAIN = 1 / 3
"""Number of test documents divided by number of training documents."""


@dataclass(frozen=True, repr=False)
class ProbeResult(JsonRecord):
    """Linear probes for one kind of label on one activation, one probe for each split of the documents."""

    FILE_NAME: ClassVar[str] = PROBE_FILE
    KIND: ClassVar[str] = "probe"
    COMMAND: ClassVar[str] = "tl-floor probe"

    task: str
    """Name of the kind of label."""
    level: LabelLevel
    """"text" (coarse: one label for each text) or "word" (fine: one label for each word)."""
    pool: Pooling | Literal["word"]
    """Probed tokens: the "mean" of a text's tokens, its "last" token, or the last token of each "word"."""
    subject: str
    """What the activation belongs to: the name of a model, or of a reconstruction of the teacher's activation."""
    kind: ProbedActivation
    """"teacher", "student", or a forecast of a student: "kept" (the teacher's activation, reconstructed from the
    features that a student of this width is expected to keep) or "bottleneck" (the hidden state of the bottleneck
    student)."""
    width: int | None
    """Dimensions of the student or of the student that is forecast; None for the teacher."""
    hook_name: str
    """Hook point of the activation."""
    classes: tuple[str, ...]
    """Names of the classes."""
    n_items: int
    """Number of labelled texts or words."""
    n_documents: int
    """Number of documents that they come from."""
    accuracy: tuple[float, ...]
    """Share of the test items that are classified correctly, for each split."""
    auroc: tuple[float, ...]
    """Area under the ROC curve of each class against the rest, averaged over classes, for each split."""
    majority: tuple[float, ...]
    """Share of the test items in the most common class, for each split."""
    penalty: tuple[float, ...]
    """Inverse regularisation strength C of each split's logistic regression, chosen on its validation documents."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind about the labelled texts; those of the probes of a run are in `Probes.warnings`."""

    def __post_init__(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: a field has an impossible value.
        """
        check_choice("kind", self.kind, ProbedActivation)
        check_choice("level", self.level, LabelLevel)
        if len(self.classes) < 2:
            raise ValueError(f"a probe needs at least two classes, got {len(self.classes)}")
        n_splits = {len(values) for values in (self.accuracy, self.auroc, self.majority, self.penalty)}
        if len(n_splits) != 1 or n_splits == {0}:
            raise ValueError("a probe needs an accuracy, an AUROC, a majority and a penalty for each split")

    @property
    def mean_accuracy(self) -> float:
        """Accuracy averaged over splits."""
        return float(np.mean(self.accuracy))

    @property
    def mean_auroc(self) -> float:
        """AUROC averaged over splits."""
        return float(np.mean(self.auroc))

    @property
    def mean_majority(self) -> float:
        """Share of the most common class, averaged over splits."""
        return float(np.mean(self.majority))

    @property
    def chance(self) -> float:
        """Accuracy of uniform guessing: 1 divided by the number of classes."""
        return 1.0 / len(self.classes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `mean_accuracy` over splits; NaN with one split.

        Splits share documents, so the variance of the mean is the variance over splits times 1/n + 1/3 instead of 1/n,
        where 1/3 is the ratio of test to training documents (Nadeau and Bengio 2003, section 3).
        """
        return mean_interval(self.accuracy)

    @property
    def auroc_interval(self) -> tuple[float, float]:
        """95 % interval of `mean_auroc` over splits, computed as `interval` is."""
        return mean_interval(self.auroc)

    def retained(self, teacher: "ProbeResult") -> float:
        """Return how much of the teacher's gain over the most common class this activation retains.

        Args:
            teacher: the teacher's probes for the same labels.

        Returns:
            Ratio of the accuracies above `mean_majority`; NaN if the teacher's accuracy is not above it.

        Example:
            >>> student.retained(teacher)  # doctest: +SKIP
        """
        gain = teacher.mean_accuracy - teacher.mean_majority
        return (self.mean_accuracy - self.mean_majority) / gain if gain > 0 else math.nan

    def __repr__(self) -> str:
        """Return the labels, the activation and the scores in one line."""
        return (
            f"ProbeResult({self.task} from {self.subject} at {self.hook_name}: accuracy {self.mean_accuracy:.3f},"
            f" AUROC {self.mean_auroc:.3f}, {len(self.classes)} classes, {self.n_items:,} items)"
        )


@dataclass(frozen=True, repr=False)
class Decodability(Displayable):
    """How well a linear probe reads each of the teacher's features off one model's activation."""

    subject: str
    """Name of the model."""
    width: int | None
    """Dimensions of the student; None for the teacher."""
    hook_name: str
    """Hook point of the activation."""
    n_tokens: int
    """Number of held-out tokens that the scores were computed on."""
    feature: tuple[int, ...]
    """Index of each probed feature."""
    auroc: tuple[float, ...]
    """AUROC of predicting whether each feature fires, on held-out tokens."""
    explained: tuple[float, ...]
    """Share of the variance of each feature's activation that the probe explains on held-out tokens; negative if the
    probe is worse than the mean."""
    kept: tuple[bool, ...]
    """Whether a student of this width is expected to keep each feature; True for the teacher."""
    lost_share: tuple[float, ...]
    """Share of each feature's cost that a student of this width is expected to lose."""

    def __post_init__(self) -> None:
        """Check that the fields fit together.

        Raises:
            ValueError: the fields have different lengths.
        """
        lengths = {len(getattr(self, name)) for name in ("feature", "auroc", "explained", "kept", "lost_share")}
        if len(lengths) != 1:
            raise ValueError("each feature needs an AUROC, an explained variance, a prediction and a lost share")

    @property
    def separation(self) -> float:
        """AUROC of distinguishing kept from lost features by `auroc`; NaN if all are kept or all are lost."""
        return separation(self.auroc, self.kept)

    @property
    def separation_by_explained(self) -> float:
        """AUROC of distinguishing kept from lost features by `explained`; NaN if all are kept or all are lost."""
        return separation(self.explained, self.kept)

    def __repr__(self) -> str:
        """Return the activation and the separation in one line."""
        return (
            f"Decodability({self.subject} at {self.hook_name}: {len(self.feature):,} features, {sum(self.kept):,} of"
            f" them expected to be kept, separation {self.separation:.3f})"
        )


@dataclass(frozen=True, repr=False)
class Probes(JsonRecord):
    """All probes of one run."""

    FILE_NAME: ClassVar[str] = PROBES_FILE
    KIND: ClassVar[str] = "probes"
    COMMAND: ClassVar[str] = "tl-floor probe"
    INDENT: ClassVar[int | None] = None

    teacher: str
    """Name of the teacher."""
    hook_name: str
    """Hook point of the teacher."""
    labelled: str
    """Name of the labelled text."""
    stats: str
    """Digest of the feature statistics that the forecasts were computed from."""
    results: tuple[ProbeResult, ...]
    """Probes of every kind of label and activation."""
    features: tuple[Decodability, ...] = ()
    """Decodability of the features from each model."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the probes."""
    warnings: tuple[str, ...] = field(default=())
    """What to keep in mind when reading the results."""

    def __post_init__(self) -> None:
        """Check that every kind of label has exactly one result for the teacher.

        Raises:
            ValueError: a result is missing, or there are several.
        """
        if any(len(self.of(task, "teacher")) != 1 for task in self.tasks):
            raise ValueError("each kind of label needs exactly one result for the teacher")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the kinds of label, in the order of the results."""
        return tuple(dict.fromkeys(result.task for result in self.results))

    def of(self, task: str, kind: ProbedActivation) -> tuple[ProbeResult, ...]:
        """Return the probes for one kind of label on one kind of activation.

        Args:
            task: name of the kind of label.
            kind: "teacher", "student", "kept" or "bottleneck".

        Returns:
            The probes, ordered by width.

        Example:
            >>> probes.of("author", "student")  # doctest: +SKIP
        """
        results = [result for result in self.results if (result.task, result.kind) == (task, kind)]
        return tuple(sorted(results, key=lambda result: result.width or 0))

    def forecast_error(self, kind: ProbedActivation) -> float:
        """Return the mean absolute difference between the accuracies of a forecast and of the students.

        Args:
            kind: the forecast, "kept" or "bottleneck".

        Returns:
            Mean over labels and widths; NaN if no width has both a forecast and a student.

        Example:
            >>> probes.forecast_error("kept")  # doctest: +SKIP
        """
        errors = [
            abs(forecast.mean_accuracy - student.mean_accuracy)
            for task in self.tasks
            for forecast in self.of(task, kind)
            for student in self.of(task, "student")
            if student.width == forecast.width
        ]
        return float(np.mean(errors)) if errors else math.nan

    def __repr__(self) -> str:
        """Return the teacher, the labels and the number of results in one line."""
        return (
            f"Probes({self.teacher} at {self.hook_name}, {self.labelled}: {len(self.results)} results for"
            f" {', '.join(self.tasks)})"
        )


def separation(score: tuple[float, ...], kept: tuple[bool, ...]) -> float:
    """Compute the AUROC of distinguishing kept from lost features by a score.

    Args:
        score: score of each feature.
        kept: whether each feature is kept.

    Returns:
        AUROC; NaN if all features are kept or all are lost.

    Example:
        >>> separation((0.9, 0.5, 0.4, 0.2), (True, False, True, False))
        0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(kept, score)) if len(set(kept)) == 2 else math.nan


def mean_interval(values: tuple[float, ...]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean over splits that share documents; see `ProbeResult.interval`.

    Args:
        values: score of each split.

    Returns:
        Lower and upper end; NaN with one split.

    Example:
        >>> low, high = mean_interval((0.7, 0.8, 0.9))
        >>> round(low, 2), round(high, 2)
        (0.45, 1.15)
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return math.nan, math.nan
    standard_error = float(np.std(values, ddof=1)) * math.sqrt(1.0 / n + TEST_PER_TRAIN)
    margin = float(student_t.ppf(0.975, n - 1)) * standard_error
    return mean - margin, mean + margin
