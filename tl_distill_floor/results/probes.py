"""`ProbeResult` and `Probes`: what a line reads off activations of a teacher, its students and forecasts."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from tl_distill_floor.results.displayable import Displayable
from tl_distill_floor.storage.atomic import write_atomically
from tl_distill_floor.storage.versioned import load_record, resolve_file

PROBES_FILE = "probes.json"
TEST_PER_TRAIN = 1 / 3
"""Documents tested on for each trained on."""
KINDS = ("teacher", "student", "kept", "bottleneck")


@dataclass(frozen=True)
class ProbeResult(Displayable):
    """Linear probes for one kind of label on one activation, one for each split of the documents."""

    task: str
    """The kind of label."""
    level: str
    """"text" (coarse: one label a text) or "word" (fine: one label a word)."""
    pool: str
    """What of a text is probed: the "mean" of its tokens, its "last" token, or the last token of every "word"."""
    subject: str
    """Whose activation: a model's name, or what is rebuilt of the teacher's."""
    kind: str
    """"teacher", "student", or a forecast: "kept" (the teacher's activation, rebuilt from the features that a width is
    expected to keep) or "bottleneck" (the hidden state of the bottleneck student of that width)."""
    width: int | None
    """Dimensions of the student, or of the one that the forecast is of; None of the teacher."""
    hook_name: str
    classes: tuple[str, ...]
    n_items: int
    n_documents: int
    accuracy: tuple[float, ...]
    """Share of the test items that are classified rightly, for each split."""
    auroc: tuple[float, ...]
    """Area under the ROC curve for each split, the mean over the classes, each against the rest."""
    majority: tuple[float, ...]
    """Share of the test items that are of the commonest class, for each split."""
    penalty: tuple[float, ...]
    """C of each split's logistic regression, chosen on its validation documents."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.level not in ("text", "word") or len(self.classes) < 2:
            raise ValueError(f"a probe is of one of {', '.join(KINDS)}, of texts or words, and of two classes or more")
        splits = {len(values) for values in (self.accuracy, self.auroc, self.majority, self.penalty)}
        if len(splits) != 1 or splits == {0}:
            raise ValueError("a probe needs an accuracy, an AUROC, a majority and a penalty for every split")

    @property
    def mean_accuracy(self) -> float:
        return float(np.mean(self.accuracy))

    @property
    def mean_auroc(self) -> float:
        return float(np.mean(self.auroc))

    @property
    def mean_majority(self) -> float:
        return float(np.mean(self.majority))

    @property
    def chance(self) -> float:
        """Accuracy of guessing all classes alike."""
        return 1.0 / len(self.classes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `mean_accuracy`: Student's t over the splits, whose variance counts 1/n + 1/3 instead of 1/n, since
        they share documents and test on a third of what they train on (Nadeau and Bengio 2003, section 3)."""
        return _interval(self.accuracy)

    @property
    def auroc_interval(self) -> tuple[float, float]:
        """95 % of `mean_auroc`, as `interval`."""
        return _interval(self.auroc)

    def retained(self, teacher: "ProbeResult") -> float:
        """Share of the teacher's accuracy above the commonest class that is left; not a number where it had none."""
        gain = teacher.mean_accuracy - teacher.mean_majority
        return (self.mean_accuracy - self.mean_majority) / gain if gain > 0 else math.nan


@dataclass(frozen=True)
class Decodability:
    """How well a line reads off one model's activation whether each of the teacher's features fires."""

    subject: str
    width: int | None
    """Dimensions of the student; None of the teacher."""
    hook_name: str
    n_tokens: int
    """Held-out tokens that it was judged on."""
    feature: tuple[int, ...]
    auroc: tuple[float, ...]
    """Of predicting that the feature fires, on held-out tokens."""
    explained: tuple[float, ...]
    """Share of the variance of the feature's activation that the line explains there; negative where it is worse than
    the mean."""
    kept: tuple[bool, ...]
    """Whether a student of that width is expected to hold the feature; all of them for the teacher."""
    lost_share: tuple[float, ...]
    """Of the feature's cost, in the prediction."""

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in ("feature", "auroc", "explained", "kept", "lost_share")}
        if len(lengths) != 1:
            raise ValueError("every feature needs an AUROC, a share explained, a prediction and a share lost")

    @property
    def separation(self) -> float:
        """AUROC with which decodability (`auroc`) tells kept from lost features; not a number where all are alike."""
        return separation(self.auroc, self.kept)

    @property
    def separation_by_explained(self) -> float:
        """The same of the variance explained."""
        return separation(self.explained, self.kept)


@dataclass(frozen=True)
class Probes(Displayable):
    """What was probed in one run."""

    teacher: str
    hook_name: str
    labelled: str
    """Name of the labelled text."""
    stats: str
    """Digest of the statistics that the forecasts stand on."""
    results: tuple[ProbeResult, ...]
    features: tuple[Decodability, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """How probes were fitted."""
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if any(len(self.of(task, "teacher")) != 1 for task in self.tasks):
            raise ValueError("every label needs the teacher's own probes, once")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(result.task for result in self.results))

    def of(self, task: str, kind: str) -> tuple[ProbeResult, ...]:
        """The probes for one kind of label on one kind of activation, the narrowest first."""
        found = [result for result in self.results if (result.task, result.kind) == (task, kind)]
        return tuple(sorted(found, key=lambda result: result.width or 0))

    def forecast_error(self, kind: str) -> float:
        """Mean |accuracy of the forecast − accuracy of the student| over tasks and widths; NaN without both."""
        errors = [
            abs(forecast.mean_accuracy - student.mean_accuracy)
            for task in self.tasks
            for forecast in self.of(task, kind)
            for student in self.of(task, "student")
            if student.width == forecast.width
        ]
        return float(np.mean(errors)) if errors else math.nan

    def save(self, path: str | Path) -> Path:
        """Write JSON; a directory gets `probes.json`."""
        head = {"format": "tl-distill-floor/probes", "version": 1}
        stored = json.dumps({**head, **dataclasses.asdict(self)}, allow_nan=False)
        return write_atomically(resolve_file(path, PROBES_FILE), stored.encode())

    @classmethod
    def load(cls, path: str | Path) -> "Probes":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, truncated, foreign, or of another version.
        """
        return load_record(cls, resolve_file(path, PROBES_FILE), "probes", "tl-floor probe")


def separation(score: tuple[float, ...], kept: tuple[bool, ...]) -> float:
    """AUROC of telling kept from lost features by a score; not a number where there are only kept or only lost."""
    from scipy.stats import rankdata

    chosen = np.array(kept)
    n_kept, n_lost = int(chosen.sum()), int((~chosen).sum())
    if not n_kept or not n_lost:
        return math.nan
    ranks = rankdata(score)
    return float((ranks[chosen].sum() - n_kept * (n_kept + 1) / 2) / (n_kept * n_lost))


def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return math.nan, math.nan
    reach = float(student_t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1.0 / n + TEST_PER_TRAIN)
    return mean - reach, mean + reach
