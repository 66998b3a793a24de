"""`FloorPrediction`: the predicted loss of students of every width, saved with the measurements behind it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.annotations import CostUnit, Predictor
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.results import floor_files
from tl_distill_floor.results.calibration import CALIBRATION_FILE, Calibration
from tl_distill_floor.results.expected_curve import ExpectedCurve
from tl_distill_floor.results.expected_loss import narrowest, upper_bound
from tl_distill_floor.results.feature_floors import NEEDS_FEATURES, FeatureFloors
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.floor_curve import FloorCurve
from tl_distill_floor.results.head_floor import HEAD_FILE, HeadFloor
from tl_distill_floor.results.promoted_tokens import PromotedTokens
from tl_distill_floor.results.simulation import SIMULATION_FILE, Simulation
from tl_distill_floor.results.tail_loss import TailLoss
from tl_distill_floor.storage.versioned import resolve_file
from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.power_law import PowerLaw, power_law_with_intervals
from tl_distill_floor.theory.regression import PredictedLoss

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FloorPrediction(FeatureFloors):
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
    def head_floor(self) -> HeadFloor:
        """The head floor.

        Raises:
            InputError: it was not computed.
        """
        if self.head is None:
            raise InputError("this prediction has no head floor; measure with a teacher, in nats and with steps")
        return self.head

    @property
    def model_name(self) -> str:
        """Name of the teacher."""
        return self.head_floor.model_name if self.stats is None else self.stats.model_name

    @property
    def d_model(self) -> int:
        """Width of the teacher, in dimensions."""
        return self.head_floor.d_model if self.stats is None else self.stats.d_model

    @property
    def unit(self) -> CostUnit:
        """Unit of the losses: "nats" (per token) or "mse" (squared error per token)."""
        return "nats" if self.stats is None else self.stats.cost_unit

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
    def bound(self) -> Float64[np.ndarray, " width"] | None:
        """Head floor at each width, nats per token: an estimate, from above, of the least loss of any student, whose
        logits have no higher rank than its width; None if it was not computed."""
        if self.head is None or not self._expected.has_head_at(int(self.widths[0])):
            return None
        return np.array([self.head.floor_at(int(width)) for width in self.widths])

    @cached_property
    def expected(self) -> Float64[np.ndarray, " width"] | None:
        """Loss that a trained student is expected to reach at each width, nats per token; see `expected_at`. None if
        losses are not in nats, or the head floor was not computed."""
        if not self._expected.is_known_at(int(self.widths[0])):
            return None
        return np.array([self.expected_at(int(width)).value for width in self.widths])

    @property
    def interval(self) -> Float64[np.ndarray, "width 2"] | None:
        """95 % prediction interval of `expected` at each width, for a teacher that was not fitted; None without
        `expected`."""
        if self.expected is None:
            return None
        return np.array([self.expected_at(int(width))[1:] for width in self.widths])

    @property
    def student_losses(self) -> dict[int, float]:
        """Mean loss of the calibration's students of each width that has a head floor, nats per token."""
        losses = {} if self.calibration is None else self.calibration.mean_losses
        return {width: loss for width, loss in losses.items() if self._expected.has_head_at(width)}

    @property
    def calibrated(self) -> Float64[np.ndarray, " width"] | None:
        """Predicted loss of trained students, C · floor + B, nats per token; None if there is no calibration."""
        if self.calibration is None:
            return None
        return np.array([self.calibrated_at(int(width)).value for width in self.widths])

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

    def predicted(self, predictor: Predictor, width: Number) -> float:
        """Return the floor of one predictor at any width.

        Args:
            predictor: "theorem", "independent", "simulated" or "head".
            width: dimensions.

        Returns:
            Loss in `unit`.

        Raises:
            InputError: there is no such predictor, or this one was not computed.

        Example:
            >>> floor.predicted("theorem", 96)  # doctest: +SKIP
        """
        check_choice("predictor", predictor, Predictor)
        if predictor == "head":
            return self.head_floor.floor_at(float(width))
        return self._curve.predicted(predictor, width)

    def expected_at(
        self, width: Number, level: float = 0.95, losses: Mapping[int, float] | None = None
    ) -> PredictedLoss:
        """Return the loss that a trained student is expected to reach, with its prediction interval.

        It is fitted to students of other teachers (`benchmarks/atlas`). The interval is of a teacher that was not among
        them. Students of this teacher narrow it.

        Args:
            width: dimensions.
            level: probability of the two-sided interval.
            losses: losses of trained students of this teacher by width, nats per token; `student_losses` if None. Of
                students as wide as the teacher nothing is learned.

        Returns:
            Loss with lower and upper bound, KL(teacher ‖ student) in nats per token; at least the head floor, and 0 at
            the teacher's width and above.

        Raises:
            InputError: losses are not in nats, or there is no head floor at this width.

        Example:
            >>> floor.expected_at(96, level=0.8)  # doctest: +SKIP
            >>> floor.expected_at(96, losses={16: 0.91, 32: 0.52})  # doctest: +SKIP
        """
        return self._expected.at(width, level, self.student_losses if losses is None else losses)

    def calibrated_at(self, width: Number, level: float = 0.95) -> PredictedLoss:
        """Return the predicted loss of a trained student at any width, with its prediction interval.

        Args:
            width: dimensions.
            level: probability of the interval.

        Returns:
            Loss with lower and upper bound: KL(teacher ‖ student) in nats per token.

        Raises:
            InputError: there is no calibration.

        Example:
            >>> floor.calibrated_at(96).value  # doctest: +SKIP
        """
        if self.calibration is None:
            raise InputError("this prediction has no calibration; run tl-floor distill and calibrate")
        return self.calibration.fit.at(self.predicted(self.calibration.predictor, width), level)

    def width_for(self, max_loss: Number, confidence: float | None = None) -> int:
        """Return the width of the narrowest student whose loss is at most `max_loss`.

        Args:
            max_loss: loss in `unit`, at least 0.
            confidence: probability with which a trained student stays below `max_loss`, inside (0, 1). If None, its
                expected loss is at most `max_loss`; the feature floor is where `expected` is None.

        Returns:
            Width in dimensions: at least 1, and at least the narrowest one of the head floor if a loss is expected.

        Raises:
            ValueError: `max_loss` is negative or NaN, or `confidence` is outside (0, 1).
            InputError: `confidence` is given and `expected` is None.

        Example:
            >>> floor.width_for(max_loss=0.1), floor.width_for(max_loss=0.1, confidence=0.9)  # doctest: +SKIP
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss must be at least 0, in {self.unit}, got {max_loss}")
        if self.head is None or self.expected is None:
            if confidence is not None:
                self.expected_at(int(self.widths[0]))  # says what is missing
            return self._curve.width_for(max_loss)
        least, d_model = self.head.widths[0], self.d_model
        if confidence is None:
            return narrowest(least, d_model, lambda width: self.expected_at(width).value <= float(max_loss))
        return narrowest(
            least, d_model, lambda width: upper_bound(self.expected_at, width, confidence) <= float(max_loss)
        )

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
        fields = {name: getattr(self, name) for name in floor_files.STORED_FIELDS}
        records = {
            name: getattr(self, name) for name in ("stats", "simulation", "tail", "head", "calibration", "promoted")
        }
        return floor_files.save_floor(
            Path(path), fields, **records, simulated=self.simulated, feature_floor=self.feature_floor, bound=self.bound
        )

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

    @property
    def feature_curve(self) -> FloorCurve | None:
        """Floors that the features predict, at any width; None without features."""
        return None

    @cached_property
    def _expected(self) -> ExpectedCurve:
        """Expected losses at any width."""
        simulated_at = None if self.simulation is None else self.floor_at
        return ExpectedCurve(self.head, simulated_at, self.unit == "nats")

    def _was_calibrated(self, calibration: Calibration) -> bool:
        """Return whether a calibration was fitted to this prediction, and not to an earlier one of the same run."""
        if calibration.stats != self.digest:
            return False
        if ("simulated" in calibration.predictors) != (self.simulation is not None):
            return False
        if "head" in calibration.predictors and not self._expected.has_head_at(min(calibration.widths)):
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
    additive: Float64[np.ndarray, " width"]

    def __post_init__(self) -> None:
        """Raise a ValueError if a field has an impossible value."""
        super().__post_init__()
        n = len(self.widths)
        for name in ("theorem", "independent", "sampling_interval", "additive"):
            values = getattr(self, name)
            if len(values) != n or (values < 0).any():
                raise ValueError(f"{name} must have {n} losses of at least 0, one for each width")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha, the sparsity, must be inside (0, 1), got {self.alpha}")
        if min(self.capacity, self.critical_width, self.n_features, self.min_count) <= 0:
            raise ValueError("capacity, critical_width, n_features and min_count must be above 0")
        if self.simulation is not None and self.simulation.lost_cost.shape[1:] != self.stats.firing_count.shape:
            raise ValueError("the simulation has another number of features")

    @property
    def feature_floor(self) -> Float64[np.ndarray, " width"]:
        """Floor that the features alone predict at each width: `simulated` if it exists, otherwise `independent`."""
        return self.independent if self.simulated is None else self.simulated

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """Power law fitted to the sorted costs of the alive features; None if there are fewer than 10."""
        alive, blocks = self.feature_curve.alive, self.stats.blocks
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
