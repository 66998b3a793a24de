"""`FloorPrediction`: the predicted loss of students of every width, saved with the measurements behind it."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.results import floor_files
from tl_distill_floor.results.calibration import CALIBRATION_FILE, Calibration
from tl_distill_floor.results.feature_floors import NEEDS_FEATURES
from tl_distill_floor.results.feature_stats import STATS_FILE, FeatureStats
from tl_distill_floor.results.floor_curve import FloorCurve
from tl_distill_floor.results.head_floor import HEAD_FILE, HeadFloor
from tl_distill_floor.results.promoted_tokens import PROMOTED_FILE, PromotedTokens
from tl_distill_floor.results.simulation import SIMULATION_FILE, Simulation
from tl_distill_floor.results.student_floors import StudentFloors
from tl_distill_floor.results.tail_loss import TAIL_FILE, TailLoss
from tl_distill_floor.storage.versioned import resolve_file
from tl_distill_floor.theory.bootstrap import Interval
from tl_distill_floor.theory.power_law import PowerLaw, power_law_with_intervals


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FloorPrediction(StudentFloors):
    """The predicted loss of students over widths. Losses are in `unit`, widths in dimensions, intervals are 95 %.

    Without an SAE only `bound` and `expected` are known, and all fields that need features are None. With one, it is a
    `FeatureFloorPrediction`.

    Example:
        >>> floor = predict_floor("EleutherAI/pythia-160m", layer=6, widths=[64, 128, 256])  # doctest: +SKIP
        >>> floor.expected_at(96), floor.width_for(max_loss=0.1, confidence=0.9)  # doctest: +SKIP
    """

    widths: Int64[np.ndarray, " width"]
    """Student widths in rising order."""
    head: HeadFloor | None = None
    """Least loss that the rank of the students' logits allows; None if it was not computed."""
    warnings: tuple[str, ...] = ()
    """What to keep in mind when using the prediction."""
    calibration: Calibration | None = None
    """Fit of trained students' losses to this prediction; None if there is none."""
    stats: FeatureStats | None = None
    """Statistics of the features. This field and all that follow are None without an SAE."""
    min_count: int | None = None
    """A feature is alive if it fired on at least this many tokens."""
    n_features: int | None = None
    """F, the number of alive features."""
    alpha: float | None = None
    """Sparsity α: 1 minus the mean firing rate of the alive features."""
    capacity: float | None = None
    """g(α), features per dimension."""
    critical_width: float | None = None
    """Critical width d* = F / g(α), in dimensions."""
    n_features_interval: Interval | None = None
    """Interval of `n_features`; NaN if the text is one block."""
    alpha_interval: Interval | None = None
    """Interval of `alpha`; NaN if the text is one block."""
    critical_width_interval: Interval | None = None
    """Interval of `critical_width`; NaN if the text is one block."""
    theorem: Float64[np.ndarray, " width"] | None = None
    """Theorem 1's floor: the loss without all but the ⌊d · g(α)⌋ most costly features."""
    independent: Float64[np.ndarray, " width"] | None = None
    """Water-filling floor: the loss of a trained student whose features have these costs and firing rates, and fire
    independently."""
    sampling_interval: Float64[np.ndarray, "width 2"] | None = None
    """95 % interval of `feature_floor` at each width [width, 2]: the sampling error of the text, from a bootstrap over
    its blocks, and the error of the simulation. How far trained students are from the floor is in `expected_at`."""
    theorem_interval: Float64[np.ndarray, "width 2"] | None = None
    """95 % interval of `theorem` at each width [width, 2]: the sampling error of the text."""
    independent_interval: Float64[np.ndarray, "width 2"] | None = None
    """95 % interval of `independent` at each width [width, 2]: the sampling error of the text."""
    additive: Float64[np.ndarray, " width"] | None = None
    """Theorem 1's floor as a summed cost; equal to `theorem` without a tail loss."""
    simulation: Simulation | None = None
    """Losses of bottleneck students trained on the SAE's codes; None if there were no codes."""
    tail: TailLoss | None = None
    """Measured loss of removing the least costly features; None if costs are not in nats."""
    promoted: PromotedTokens | None = None
    """Tokens that some of the features promote; see `add_promoted_tokens`. None if none were computed."""

    def __post_init__(self) -> None:
        """Raise a ValueError if a field has an impossible value."""
        if len(self.widths) < 1 or (self.widths < 1).any() or (np.diff(self.widths) <= 0).any():
            raise ValueError("widths must be at least one integer above 0, each once, in rising order")
        if self.stats is None and self.head is None:
            raise ValueError("a prediction needs a head floor or features")
        if self.stats is None and tuple(self.widths.tolist()) != self.head_floor.widths:
            raise ValueError("without features the widths must be those of the head floor")

    @property
    def model_name(self) -> str:
        """Name of the teacher."""
        return self.head_floor.model_name if self.stats is None else self.stats.model_name

    @property
    def digest(self) -> str:
        """Hash of the measurements that the prediction was computed from."""
        return self.head_floor.digest() if self.stats is None else self.stats.digest()

    @cached_property
    def simulated(self) -> Float64[np.ndarray, " width"] | None:
        """Floor of bottleneck students on the SAE's codes at each width; None if nothing was simulated."""
        if self.simulation is None:
            return None
        return np.array([self.floor_at(int(width)) for width in self.widths])

    @property
    def feature_floor(self) -> Float64[np.ndarray, " width"] | None:
        """Floor that the features alone predict at each width: `simulated` if it exists, otherwise `independent`."""
        return self.independent if self.simulated is None else self.simulated

    @property
    def power_law(self) -> PowerLaw | None:
        """Power law fitted to the sorted costs of the alive features; None if there are fewer than 10."""
        return None

    @classmethod
    def from_head(cls, head: HeadFloor) -> "FloorPrediction":
        """Return the prediction of a teacher that was measured without an SAE.

        Args:
            head: the result of `head_floor`.

        Example:
            >>> FloorPrediction.from_head(head_floor("tiny-prose")).expected  # doctest: +SKIP
        """
        return FloorPrediction(widths=np.array(head.widths, dtype=np.int64), head=head, warnings=head.warnings)

    def with_features(self) -> "FeatureFloorPrediction":
        """Return this prediction as one that has features.

        Raises:
            InputError: the teacher was measured without an SAE.

        Example:
            >>> floor.with_features().critical_width  # doctest: +SKIP
        """
        raise InputError(NEEDS_FEATURES)

    def calibrated_by(self, calibration: Calibration) -> "FloorPrediction":
        """Return this prediction with a calibration, or unchanged if the calibration belongs to another prediction.

        Args:
            calibration: the result of `calibrate`.

        Example:
            >>> floor.calibrated_by(calibrate(floor, students)).calibrated_at(96)  # doctest: +SKIP
        """
        return dataclasses.replace(self, calibration=calibration) if self._was_calibrated(calibration) else self

    def save(self, path: str | Path) -> Path:
        """Save the prediction with its statistics and everything else that it holds.

        Args:
            path: a directory; it is created if it is missing.

        Returns:
            Path of `floor.json` in this directory.

        Raises:
            InputError: the directory cannot be written.

        Example:
            >>> floor.save("runs/tiny")  # doctest: +SKIP
        """
        names = (*floor_files.STORED_FIELDS, "simulated", "feature_floor", "bound")
        fields = {
            "unit": self.unit,
            "stats": None if self.stats is None else self.stats.digest(),
            "has_tail": self.tail is not None,
            "has_head": self.head is not None,
            **{name: getattr(self, name) for name in names},
        }
        records = {
            STATS_FILE: self.stats,
            SIMULATION_FILE: self.simulation,
            TAIL_FILE: self.tail,
            HEAD_FILE: self.head,
            CALIBRATION_FILE: self.calibration,
            PROMOTED_FILE: self.promoted,
        }
        return floor_files.save_floor(Path(path), fields, records)

    @classmethod
    def load(cls, path: str | Path, *, with_calibration: bool = True) -> "FloorPrediction":
        """Load a prediction that `save` wrote.

        Args:
            path: the directory, or its `floor.json`.
            with_calibration: load `calibration.json` too, if the directory has one for this prediction.

        Returns:
            The prediction.

        Raises:
            InputError: a file is missing, truncated, in another format, or of another version, or the files do not
                belong together.

        Example:
            >>> floor = FloorPrediction.load("runs/tiny")  # doctest: +SKIP
        """
        file = resolve_file(path, floor_files.FLOOR_FILE)
        if floor_files.holds_head_only(file.parent):
            floor = cls.from_head(HeadFloor.load(file.parent))
        else:
            with floor_files.report_damaged_floor(file):
                stored = floor_files.load_floor(file)
                kind = FloorPrediction if stored.records["stats"] is None else FeatureFloorPrediction
                floor = kind(**stored.records, **stored.fields)
                floor_files.check_curve(floor.simulated, stored.curves["simulated"], SIMULATION_FILE)
                floor_files.check_curve(floor.bound, stored.curves["bound"], HEAD_FILE)
        if with_calibration and (file.parent / CALIBRATION_FILE).exists():
            return floor.calibrated_by(Calibration.load(file.parent))
        return floor

    def __repr__(self) -> str:
        """Return the teacher and the widths in one line."""
        return (
            f"FloorPrediction({self.model_name}: no features, widths {self.widths[0]:,} to {self.widths[-1]:,},"
            f" {self.unit})"
        )

    def _was_calibrated(self, calibration: Calibration) -> bool:
        """Return whether a calibration was fitted to this prediction, and not to an earlier one of the same run."""
        if calibration.stats != self.digest:
            return False
        if ("simulated" in calibration.predictors) != (self.simulation is not None):
            return False
        if "head" in calibration.predictors and not self._has_head_at(min(calibration.widths)):
            return False
        return all(
            np.allclose([self.predicted(name, width) for width in calibration.widths], fit.x, rtol=1e-3)
            for name, fit in calibration.predictors.items()
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureFloorPrediction(FloorPrediction):
    """A prediction from the teacher's features, of which none of the fields below is None.

    Example:
        >>> floor = floor_from_stats(measure("tiny-prose"), widths=[16, 64])  # doctest: +SKIP
        >>> floor.critical_width, floor.theorem  # doctest: +SKIP
    """

    stats: FeatureStats
    min_count: int
    n_features: int
    alpha: float
    capacity: float
    critical_width: float
    n_features_interval: Interval
    alpha_interval: Interval
    critical_width_interval: Interval
    theorem: Float64[np.ndarray, " width"]
    independent: Float64[np.ndarray, " width"]
    sampling_interval: Float64[np.ndarray, "width 2"]
    theorem_interval: Float64[np.ndarray, "width 2"]
    independent_interval: Float64[np.ndarray, "width 2"]
    additive: Float64[np.ndarray, " width"]

    def __post_init__(self) -> None:
        """Raise a ValueError if a field has an impossible value."""
        super().__post_init__()
        n = len(self.widths)
        names = "theorem", "independent", "sampling_interval", "theorem_interval", "independent_interval", "additive"
        for name in names:
            values = getattr(self, name)
            if len(values) != n or (values < 0).any():
                raise ValueError(f"{name} must have {n} losses of at least 0, one for each width")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha, the sparsity, must be inside (0, 1), got {self.alpha}")
        if min(self.capacity, self.critical_width, self.n_features, self.min_count) <= 0:
            raise ValueError("capacity, critical_width, n_features and min_count must be above 0")
        if self.tail is not None and self.stats.cost_unit != "nats":
            raise ValueError("a tail loss converts costs in nats, and these are in squared error")
        if self.simulation is not None and self.simulation.lost_cost.shape[1:] != self.stats.firing_count.shape:
            raise ValueError("the simulation has another number of features")

    @property
    def feature_floor(self) -> Float64[np.ndarray, " width"]:
        """Floor that the features alone predict at each width: `simulated` if it exists, otherwise `independent`."""
        return self.independent if self.simulated is None else self.simulated

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """Power law fitted to the sorted costs of the alive features; None if there are fewer than 10."""
        alive, blocks = self.feature_curve.alive, self.stats.independent_blocks
        cost = np.where(alive, self.stats.cost, 0.0)
        return power_law_with_intervals(cost, blocks.cost, blocks.firing_count, min_count=self.min_count)

    @cached_property
    def feature_curve(self) -> FloorCurve:
        """Floors that the features predict, at any width."""
        return FloorCurve(self.stats, self.min_count, self.capacity, self.simulation, self.tail)

    def with_features(self) -> "FeatureFloorPrediction":
        """Return this prediction, which has features."""
        return self

    def __repr__(self) -> str:
        """Return the teacher, the features and the widths in one line."""
        return (
            f"FloorPrediction({self.model_name}, {self.stats.hook_name}: {self.n_features:,} features,"
            f" d* = {self.critical_width:,.1f}, widths {self.widths[0]:,} to {self.widths[-1]:,}, {self.unit})"
        )
