"""`FloorPrediction`: the predicted loss floor of every student width, saved beside the statistics it came from."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import CostUnit
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.calibration import CALIBRATION_FILE, Calibration
from tl_distill_floor.results.displayable import Displayable
from tl_distill_floor.results.feature_stats import STATS_FILE, FeatureStats
from tl_distill_floor.results.simulation import SIMULATION_FILE, Simulation
from tl_distill_floor.results.tail_loss import TAIL_FILE, TailLoss
from tl_distill_floor.storage.atomic import commit_together, write_atomically
from tl_distill_floor.storage.versioned import load_json, resolve_file, to_json
from tl_distill_floor.theory.allocation import Allocation, allocate, rank_by_cost, remaining_costs
from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.floors import independent_floor
from tl_distill_floor.theory.power_law import PowerLaw, power_law_with_intervals
from tl_distill_floor.theory.regression import PredictedLoss

if TYPE_CHECKING:
    pass

FLOOR_FILE = "floor.json"
Interval = tuple[float, float]
Curve = tuple[Int64[np.ndarray, " trained"], Callable[[float], Any]]


@dataclass(frozen=True, eq=False)
class FloorPrediction(Displayable):
    """The predicted loss floor over student widths. Losses are in `unit`, widths in dimensions, intervals are 95 %."""

    stats: FeatureStats
    min_count: int
    """A feature is alive when it fired on at least this many tokens."""
    n_features: int
    """F: alive features."""
    alpha: float
    """Sparsity: one less the mean firing rate of the alive features."""
    capacity: float
    """g(α), features per dimension."""
    critical_width: float
    """d* = F / g(α), dimensions."""
    n_features_interval: Interval
    alpha_interval: Interval
    critical_width_interval: Interval
    widths: Int64[np.ndarray, " width"]
    theorem: Float64[np.ndarray, " width"]
    """Theorem 1: what is lost without the features beyond the ⌊d · g(α)⌋ most costly; the tail loss, or summed cost."""
    independent: Float64[np.ndarray, " width"]
    """Water-filling: what training reaches on features of these costs and rates that fire independently."""
    interval: Float64[np.ndarray, "width 2"]
    """(low, high) of `expected` at each width, from a bootstrap over blocks of the text."""
    additive: Float64[np.ndarray, " width"]
    """Theorem 1 with costs summed as they stand; `theorem` itself where there is no tail loss."""
    simulation: Simulation | None = None
    """What bottleneck students reached on the real codes; None where there were none to train on."""
    tail: TailLoss | None = None
    """How much the teacher's output really loses, where costs are in nats: see `sized`."""
    warnings: tuple[str, ...] = ()
    calibration: Calibration | None = None
    """How trained students follow it; None where none were held against it."""

    def __post_init__(self) -> None:
        n = len(self.widths)
        for name in ("theorem", "independent", "interval", "additive"):
            values = getattr(self, name)
            if len(values) != n or (values < 0).any():
                raise ValueError(f"{name} must hold {n} losses of at least 0, one a width")
        if not 0 < self.alpha < 1 or min(self.capacity, self.critical_width, self.n_features, self.min_count) <= 0:
            raise ValueError("a sparsity lies between 0 and 1, and capacities and counts above 0")
        if n < 1 or (self.widths < 1).any() or (np.diff(self.widths) <= 0).any():
            raise ValueError("widths must be at least one whole number above 0, each once, in rising order")
        if self.simulation is not None and self.simulation.lost_cost.shape[1:] != self.stats.firing_count.shape:
            raise ValueError("the simulation is of another number of features")

    @property
    def unit(self) -> CostUnit:
        return self.stats.cost_unit

    @cached_property
    def simulated(self) -> Float64[np.ndarray, " width"] | None:
        """The bottleneck's floor on the real codes; between and beyond the widths that were trained, see `floor_at`."""
        if self.simulation is None:
            return None
        return np.array([self.floor_at(int(width)) for width in self.widths])

    @property
    def expected(self) -> Float64[np.ndarray, " width"]:
        """The better supported of the predictions that exist: simulated, else independent."""
        return self.independent if self.simulated is None else self.simulated

    @property
    def calibrated(self) -> Float64[np.ndarray, " width"] | None:
        """The student's own loss, C · floor + B, nats per token; None where no students were held against it."""
        if self.calibration is None:
            return None
        return np.array([self.calibrated_at(int(width)).value for width in self.widths])

    def calibrated_at(self, width: Number, level: float = 0.95) -> PredictedLoss:
        """The loss of a student of `width` dimensions, with the interval of a new student's.

        Raises:
            InputError: no students were held against this prediction.
        """
        if self.calibration is None:
            raise InputError("no students were held against this prediction; run tl-floor distill and calibrate")
        return self.calibration.fit.at(self.predicted(self.calibration.predictor, width), level)

    def predicted(self, predictor: str, width: Number) -> float:
        """One predictor's floor at any width, in `unit`.

        Args:
            predictor: "theorem", "independent" or "simulated".
            width: dimensions.

        Raises:
            InputError: there is no such predictor here.
        """
        if predictor == "theorem":
            order = self.ranked
            rank = min(int(float(width) * self.capacity), self.n_features)
            return float(self.sized(remaining_costs(self.stats.cost[order])[rank]))
        if predictor == "independent":
            return self._alone(width)
        if predictor != "simulated" or self.simulation is None:
            raise InputError(f"there is no prediction {predictor!r} here; measure with codes for simulated")
        return self.floor_at(width)

    @property
    def structure_gain(self) -> Float64[np.ndarray, " width"] | None:
        """independent ÷ simulated: how much better features pack because of which of them fire together."""
        if self.simulation is None:
            return None
        return np.array([self.structure_gain_at(int(width)) for width in self.widths])

    @property
    def total(self) -> float:
        """What a student loses that holds no feature: the loss without any, or their summed cost."""
        return float(self.sized(self.total_cost))

    @property
    def total_cost(self) -> float:
        """The summed cost of all alive features."""
        return float(self.stats.cost[self.stats.alive(self.min_count)].sum())

    def sized(self, cost: Any) -> Any:
        """Summed costs as the loss that they stand for: by the tail loss where there is one, else as they are."""
        return cost if self.tail is None else self.tail.of_additive(cost)

    @property
    def teacher_floor(self) -> float:
        """The expected floor at the teacher's own width, which holds its features in superposition too."""
        return self.floor_at(self.stats.d_model)

    def floor_at(self, width: Number) -> float:
        """The expected floor of a student of `width` dimensions, in `unit`.

        Between the widths that were simulated, a monotone cubic of the logarithms; beyond them `independent`, divided
        by the structure gain of the nearest.
        """
        return self._on_curve(width, self._simulated_curve, self._alone)

    def _additive_at(self, width: Number) -> float:
        """The expected floor in summed costs."""
        return self._on_curve(width, self._simulated_costs, self._alone_in_costs)

    def _on_curve(self, width: Number, curve: Curve | None, alone: Callable[[Number], float]) -> float:
        if curve is None:
            return alone(width)
        widths, log_floors = curve
        nearest = float(np.clip(float(width), widths[0], widths[-1]))
        floor = float(np.exp(log_floors(math.log(nearest))))
        if nearest == width:
            return floor
        of_nearest = alone(nearest)
        return floor * alone(width) / of_nearest if of_nearest > 0 else 0.0

    def structure_gain_at(self, width: Number) -> float:
        """independent ÷ simulated at one width; not a number where both are 0.

        Raises:
            InputError: nothing was simulated.
        """
        if self.simulation is None:
            raise InputError("nothing was simulated; measure with codes (n_codes above 0)")
        floor = self.floor_at(width)
        return self._alone(width) / floor if floor > 0 else math.nan

    def lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """The share of each feature's cost in `expected` at one width; 0 for features that are not alive."""
        cost, floor = self.stats.cost, self._additive_at(width)
        lost = self._independent(width).lost_cost if self.simulation is None else self.simulation.lost_at(width)
        there = (cost > 0) & self.stats.alive(self.min_count)
        share: np.ndarray = np.divide(lost, cost, out=np.zeros_like(cost), where=there)
        summed = float(share @ cost)
        share *= floor / summed if summed > 0 else 1.0
        return share

    def measured_error(self) -> Float64[np.ndarray, " width"]:
        """Standard error of `expected` from the tokens that losses were measured on."""
        if self.simulation is None:
            costs = [self._additive_at(int(width)) for width in self.widths]
            relative = np.array([0.0 if self.tail is None else self.tail.relative_error(cost) for cost in costs])
            of_tail: np.ndarray = self.expected * relative
            return of_tail
        in_nats = self.simulation.kl_error is not None and self.tail is not None
        known = self.simulation.kl_error if in_nats else self.simulation.standard_error
        assert known is not None
        error: np.ndarray = np.interp(np.log(self.widths), np.log(self.simulation.widths), known)
        if self.tail is not None and not in_nats:
            summed = np.array([self._additive_at(int(width)) for width in self.widths])
            error *= np.divide(self.expected, summed, out=np.ones_like(summed), where=summed > 0)
        return error

    def kept(self, width: Number) -> Bool[np.ndarray, " feature"]:
        """The features that a student of `width` dimensions is expected to hold.

        It loses at most half of what is lost of them when the output is their mean.
        """
        if self.simulation is None:
            return self._independent(width).kept
        return self.stats.alive(self.min_count) & (self.lost_share(width) <= 0.5 * self.stats.variance_share)

    @property
    def ranked(self) -> Int64[np.ndarray, " alive"]:
        """Indices of the alive features, the most costly first."""
        return rank_by_cost(self.stats.cost, self.stats.alive(self.min_count))

    def capacities(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Dimensions that water-filling gives each feature at one width; they sum to at most the width."""
        return self._independent(width).capacity

    def lost(self, width: Number) -> Int64[np.ndarray, " lost"]:
        """Indices of the other alive features, the most costly first."""
        return rank_by_cost(self.stats.cost, self.stats.alive(self.min_count) & ~self.kept(width))

    def width_for(self, max_loss: Number) -> int:
        """The narrowest student whose expected floor is at most `max_loss` (in `unit`), in dimensions, at least 1.

        Raises:
            ValueError: `max_loss` is negative or not a number.
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss must be at least 0, in {self.unit}, got {max_loss}")
        narrow, wide = 0, self.n_features  # a student as wide as there are features loses none
        while wide - narrow > 1:
            middle = (narrow + wide) // 2
            narrow, wide = (narrow, middle) if self.floor_at(middle) <= max_loss else (middle, wide)
        return wide

    def save(self, path: str | Path) -> Path:
        """Write `floor.json` and the `stats.safetensors` that it stands on into the directory `path`.

        Raises:
            InputError: the directory cannot be written.
        """
        directory = Path(path)
        fields = {f.name: getattr(self, f.name) for f in _stored_fields(type(self))}
        head = {"format": "tl-distill-floor/floor", "version": 1, "unit": self.unit, "stats": self.stats.digest()}
        head["has_tail"] = self.tail is not None
        curves = {"simulated": to_json(self.simulated), "expected": self.expected.tolist()}
        found = {**head, **{name: to_json(value) for name, value in fields.items()}, **curves}
        with commit_together():  # what they say of each other stays true
            self.stats.save(directory / STATS_FILE)
            if self.simulation is not None:
                self.simulation.save(directory / SIMULATION_FILE)
            if self.tail is not None:
                self.tail.save(directory / TAIL_FILE)
            if self.calibration is not None:
                self.calibration.save(directory)
            return write_atomically(directory / FLOOR_FILE, json.dumps(found, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | Path, *, with_calibration: bool = True) -> "FloorPrediction":
        """Read what `save` wrote into a directory.

        Args:
            path: the directory.
            with_calibration: read the calibration too, where one of this prediction lies there.

        Raises:
            InputError: a file is missing, truncated, foreign, or of another version, or the two do not belong together.
        """
        file = resolve_file(path, FLOOR_FILE)
        try:
            found = load_json(file, "floor")
            # Files of an earlier state of this version knew no tail loss.
            found = {"additive": found.get("theorem"), "has_tail": False} | found
            stats = FeatureStats.load(file.parent / STATS_FILE)
            if found["stats"] != stats.digest():
                raise ValueError(f"it was not computed from the {STATS_FILE} beside it")  # noqa: TRY301
            simulated = found["simulated"] is not None
            simulation = Simulation.load(file.parent / SIMULATION_FILE) if simulated else None
            tail = TailLoss.load(file.parent / TAIL_FILE) if found["has_tail"] else None
            fields = {f.name: _decode(f.name, found[f.name]) for f in _stored_fields(cls)}
            floor = cls(stats=stats, simulation=simulation, tail=tail, **fields)
            if floor.simulated is not None and not np.allclose(floor.simulated, found["simulated"], rtol=1e-3):
                raise ValueError(f"it was not computed from the {SIMULATION_FILE} beside it")  # noqa: TRY301
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{file} is missing or does not fit ({error}); run tl-floor measure") from error
        there = with_calibration and (file.parent / CALIBRATION_FILE).exists()
        return floor.calibrated_by(Calibration.load(file.parent)) if there else floor

    def calibrated_by(self, calibration: Calibration) -> "FloorPrediction":
        """With a calibration, where that is of this prediction; else as it is."""
        return dataclasses.replace(self, calibration=calibration) if _stands_on(calibration, self) else self

    @cached_property
    def power_law(self) -> PowerLaw | None:
        """Of the alive features' sorted costs; None where they are fewer than 10."""
        alive, blocks = self.stats.alive(self.min_count), self.stats.blocks
        return power_law_with_intervals(
            self.stats.cost[alive], blocks.cost[:, alive], blocks.firing_count[:, alive], min_count=self.min_count
        )

    def _independent(self, width: Number) -> Allocation:
        return allocate(*self.stats.costs_and_rates(self.stats.alive(self.min_count)), width)

    def _alone(self, width: Number) -> float:
        """The floor of independent features, in `unit`."""
        return float(self.sized(self._alone_in_costs(width)))

    def _alone_in_costs(self, width: Number) -> float:
        return float(independent_floor(*self.stats.costs_and_rates(self.stats.alive(self.min_count)), [width])[0])

    @cached_property
    def _simulated_curve(self) -> Curve | None:
        """What was simulated, in `unit`."""
        if self.simulation is None:
            return None
        if self.tail is None or self.simulation.kl is None:
            return self._curve(self.sized(self.simulation.floor.mean(1)))
        return self._curve(self.simulation.kl.mean(1))

    @cached_property
    def _simulated_costs(self) -> Curve | None:
        """The same in summed costs."""
        return None if self.simulation is None else self._curve(self.simulation.floor.mean(1))

    def _curve(self, floor: Float64[np.ndarray, " trained"]) -> Curve:
        """(widths, log floor as a function of log width); a wider student loses no more."""
        assert self.simulation is not None
        from scipy.interpolate import PchipInterpolator

        logs = np.log(np.maximum(np.minimum.accumulate(floor), 1e-9 * max(self.total, 1e-300)))
        if len(logs) == 1:
            return self.simulation.widths, lambda _: logs[0]
        return self.simulation.widths, PchipInterpolator(np.log(self.simulation.widths), logs)


def _stands_on(calibration: Calibration, floor: FloorPrediction) -> bool:
    """Whether a calibration is of this prediction, not of what was measured or simulated there before."""
    if calibration.stats != floor.stats.digest() or ("simulated" in calibration.predictors) != (
        floor.simulation is not None
    ):
        return False
    return all(
        np.allclose([floor.predicted(name, width) for width in calibration.widths], fit.x, rtol=1e-3)
        for name, fit in calibration.predictors.items()
    )


def _stored_fields(record: type[FloorPrediction]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(record) if f.name not in ("stats", "simulation", "tail", "calibration")]


def _decode(name: str, value: Any) -> Any:
    if name == "widths":
        return np.array(value, dtype=np.int64).reshape(-1)
    if name in ("theorem", "independent", "interval", "additive"):
        return np.array(value, dtype=np.float64).reshape((-1, 2) if name == "interval" else -1)
    if name.endswith("_interval"):
        low, high = (math.nan if bound is None else float(bound) for bound in value)
        return low, high
    if name == "warnings":
        return tuple(str(warning) for warning in value)
    return int(value) if name in ("min_count", "n_features") else float(value)
