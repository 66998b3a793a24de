"""`FloorCurve`: the predicted floors at any student width, interpolated between the simulated widths."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import Predictor
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.expected_loss import LossPredictor, narrowest, student_losses
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import Cost, TailLoss
from tl_distill_floor.theory.allocation import Allocation, allocate, rank_by_cost, remaining_costs
from tl_distill_floor.theory.capacity import Number, n_features_held
from tl_distill_floor.theory.floors import independent_floor
from tl_distill_floor.theory.regression import PredictedLoss


@dataclass(frozen=True, eq=False)
class FloorCurve:
    """Floors as functions of the student width, from feature statistics and, if there are any, simulated students.

    Floors are in the unit of the prediction: losses from the tail loss if there is one, otherwise summed costs.
    """

    stats: FeatureStats
    """Statistics of the features."""
    min_count: int
    """A feature is alive if it fired on at least this many tokens."""
    capacity: float
    """g(α), features per dimension."""
    simulation: Simulation | None
    """Losses of bottleneck students; None if none were trained."""
    tail: TailLoss | None
    """Loss of removing the least costly features; None if costs are not converted to losses."""
    head: HeadFloor | None = None
    """Least loss that the rank of the logits allows; None if it was not computed."""

    @cached_property
    def alive(self) -> Bool[np.ndarray, " feature"]:
        """Mask of the alive features."""
        return self.stats.alive(self.min_count)

    @cached_property
    def ranked_features(self) -> Int64[np.ndarray, " alive"]:
        """Indices of the alive features in falling order of cost."""
        return rank_by_cost(self.stats.cost, self.alive)

    @cached_property
    def total_cost(self) -> float:
        """Summed cost of all alive features."""
        return float(self.stats.cost[self.alive].sum())

    def loss_of_cost(self, cost: Cost) -> Cost:
        """Convert summed costs to losses by the tail loss; without a tail loss they are returned unchanged."""
        return cost if self.tail is None else self.tail.loss_of_cost(cost)

    def allocation_at(self, width: Number) -> Allocation:
        """Return the water-filling allocation at a width."""
        return allocate(*self._costs_and_rates, width)

    def theorem_at(self, width: Number) -> float:
        """Return Theorem 1's floor at a width."""
        rank = n_features_held(width, self.capacity, len(self.ranked_features))
        return self.loss_of_cost(float(remaining_costs(self.stats.cost[self.ranked_features])[rank]))

    def independent_at(self, width: Number) -> float:
        """Return the water-filling floor at a width."""
        return self.loss_of_cost(self._independent_cost_at(width))

    def predicted(self, predictor: Predictor, width: Number) -> float:
        """Return the floor of one predictor at a width.

        Raises:
            InputError: there is no such predictor, nothing was simulated, or the head floor was not computed.
        """
        check_choice("predictor", predictor, Predictor)
        if predictor == "head":
            if self.head is None:
                raise InputError("this prediction has no head floor; measure with a teacher, in nats and with steps")
            return self.head.floor_at(float(width))
        if predictor == "theorem":
            return self.theorem_at(width)
        if predictor == "independent":
            return self.independent_at(width)
        self.check_simulated()
        return self.feature_floor_at(width)

    def check_simulated(self) -> None:
        """Raise an InputError if nothing was simulated."""
        if self.simulation is None:
            raise InputError("this prediction has no simulated floors; measure with codes (n_codes above 0)")

    def has_head_at(self, width: Number) -> bool:
        """Return whether there is a head floor at a width."""
        return self.head is not None and float(width) >= self.head.widths[0]

    def expects_at(self, width: Number) -> bool:
        """Return whether the loss of a trained student is predicted at a width: in nats, with a head floor."""
        return self.stats.cost_unit == "nats" and self.has_head_at(width)

    def expected_at(self, width: Number, level: float, losses: Mapping[int, float]) -> PredictedLoss:
        """Return the loss that a trained student is expected to reach; see `FloorPrediction.expected_at`.

        Raises:
            InputError: losses are not in nats, or there is no head floor at this width.
        """
        if self.head is None or self.stats.cost_unit != "nats":
            raise InputError(
                "the loss of a trained student is predicted from costs in nats and the head floor; measure with --cost"
                " fisher and without --no-head"
            )
        if float(width) >= self.head.d_model:  # the student can be its teacher
            return PredictedLoss(0.0, 0.0, 0.0)
        narrower = {seen: loss for seen, loss in losses.items() if seen < self.head.d_model}
        seen = [(self._loss_predictor_at(seen_width), loss) for seen_width, loss in narrower.items()]
        loss = student_losses(self.loss_predictor).at(self._loss_predictor_at(width), level, seen)
        bound = self.head.floor_at(float(width))
        return PredictedLoss(*(max(part, bound) for part in loss))

    @property
    def loss_predictor(self) -> LossPredictor:
        """What the expected loss of a trained student is computed from."""
        return "head" if self.simulation is None else "head and simulated"

    def _loss_predictor_at(self, width: Number) -> float:
        """Return what the expected loss of a trained student is computed from, nats per token."""
        assert self.head is not None
        simulated = 0.0 if self.simulation is None else self.feature_floor_at(width)
        return self.head.encoded_at(float(width)) + simulated

    def was_calibrated(self, calibration: Calibration) -> bool:
        """Return whether a calibration was fitted to these floors, and not to earlier ones of the same run."""
        if calibration.stats != self.stats.digest():
            return False
        if ("simulated" in calibration.predictors) != (self.simulation is not None):
            return False
        if "head" in calibration.predictors and not self.has_head_at(min(calibration.widths)):
            return False
        return all(
            np.allclose([self.predicted(name, width) for width in calibration.widths], fit.x, rtol=1e-3)
            for name, fit in calibration.predictors.items()
        )

    def feature_floor_at(self, width: Number) -> float:
        """Return the simulated floor at a width; the water-filling floor if nothing was simulated."""
        return self._extrapolated(width, self._log_loss, self.independent_at)

    def feature_floor_cost_at(self, width: Number) -> float:
        """Return the feature floor at a width as a summed cost."""
        return self._extrapolated(width, self._log_cost, self._independent_cost_at)

    def lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the share of each feature's cost that is lost at a width; 0 for features that are not alive."""
        cost, floor = self.stats.cost, self.feature_floor_cost_at(width)
        lost = self.allocation_at(width).lost_cost if self.simulation is None else self.simulation.lost_at(width)
        share: np.ndarray = np.divide(lost, cost, out=np.zeros_like(cost), where=(cost > 0) & self.alive)
        summed = float(share @ cost)
        share *= floor / summed if summed > 0 else 1.0
        return share

    def kept(self, width: Number) -> Bool[np.ndarray, " feature"]:
        """Return the features that are kept at a width; see `FloorPrediction.kept`."""
        if self.simulation is None:
            return self.allocation_at(width).kept
        return self.alive & (self.lost_share(width) <= 0.5 * self.stats.variance_share)

    def width_for(self, max_loss: Number) -> int:
        """Return the smallest width whose feature floor is at most `max_loss`, by bisection."""
        most = len(self.ranked_features)  # one dimension for each feature: nothing is lost
        return narrowest(1, most, lambda width: self.feature_floor_at(width) <= float(max_loss))

    def standard_error(self, widths: Int64[np.ndarray, " width"]) -> Float64[np.ndarray, " width"]:
        """Return the standard error of `feature_floor_at` that comes from the tokens on which losses were measured.

        Args:
            widths: student widths in dimensions.

        Returns:
            Standard errors in the unit of the floors.
        """
        floors = np.array([self.feature_floor_at(int(width)) for width in widths])
        costs = np.array([self.feature_floor_cost_at(int(width)) for width in widths])
        if self.simulation is None:
            relative = [0.0 if self.tail is None else self.tail.relative_error(float(cost)) for cost in costs]
            errors: np.ndarray = floors * np.array(relative)
            return errors
        judged = self.tail is not None and self.simulation.kl_error is not None
        trained = self.simulation.kl_error if judged else self.simulation.standard_error
        assert trained is not None
        errors = np.interp(np.log(widths), np.log(self.simulation.widths), trained)
        if self.tail is not None and not judged:  # errors are summed costs: convert them as the floors are converted
            errors *= np.divide(floors, costs, out=np.ones_like(costs), where=costs > 0)
        return errors

    def _independent_cost_at(self, width: Number) -> float:
        """Return the water-filling floor at a width as a summed cost."""
        return float(independent_floor(*self._costs_and_rates, [float(width)])[0])

    def _extrapolated(
        self, width: Number, log_floor: Callable[[float], float] | None, independent_at: Callable[[Number], float]
    ) -> float:
        """Return the simulated floor at a width.

        Outside of the simulated widths it is the water-filling floor times the ratio of simulated to water-filling
        floor at the nearest simulated width.
        """
        if log_floor is None or self.simulation is None:
            return independent_at(width)
        nearest = float(np.clip(float(width), self.simulation.widths[0], self.simulation.widths[-1]))
        floor = float(np.exp(log_floor(math.log(nearest))))
        if nearest == width:
            return floor
        independent = independent_at(nearest)
        return floor * independent_at(width) / independent if independent > 0 else 0.0

    @cached_property
    def _costs_and_rates(self) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
        """Costs and firing rates, 0 for features that are not alive."""
        return self.stats.costs_and_rates(self.alive)

    @cached_property
    def _log_loss(self) -> Callable[[float], float] | None:
        """Log of the simulated floor over log width; None if nothing was simulated."""
        if self.simulation is None:
            return None
        if self.tail is None or self.simulation.kl is None:
            return self._interpolation(self.loss_of_cost(self.simulation.floor.mean(1)))
        return self._interpolation(self.simulation.kl.mean(1))

    @cached_property
    def _log_cost(self) -> Callable[[float], float] | None:
        """Log of the simulated floor as a summed cost over log width; None if nothing was simulated."""
        return None if self.simulation is None else self._interpolation(self.simulation.floor.mean(1))

    def _interpolation(self, floor: Float64[np.ndarray, " trained"]) -> Callable[[float], float]:
        """Interpolate the log floor over log width by a monotone cubic (PCHIP).

        A wider student can do what a narrower one does, so the floors are first made non-increasing over widths. Floors
        below 1e-9 of the total loss are raised to it, because the logarithm of 0 is not finite.
        """
        from scipy.interpolate import PchipInterpolator

        assert self.simulation is not None
        least = 1e-9 * max(self.loss_of_cost(self.total_cost), 1e-300)
        log_floor = np.log(np.maximum(np.minimum.accumulate(floor), least))
        if len(log_floor) == 1:
            return lambda _: float(log_floor[0])
        interpolator = PchipInterpolator(np.log(self.simulation.widths), log_floor)
        return lambda log_width: float(interpolator(log_width))
