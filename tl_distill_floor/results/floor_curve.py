"""`FloorCurve`: the predicted floors at any student width, interpolated between the simulated widths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.annotations import FeaturePredictor
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.expected_loss import narrowest
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.tail_loss import Cost, TailLoss
from tl_distill_floor.theory.allocation import Allocation, allocate, rank_by_cost, remaining_costs
from tl_distill_floor.theory.capacity import Number, n_features_held
from tl_distill_floor.theory.floors import independent_floor

LARGEST_LOG = 700.0
"""Largest logarithm of a float, about."""


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
        cost = float(remaining_costs(self.stats.cost[self.ranked_features])[rank])
        return cost if self.tail is None else self.tail.loss_at_rank(rank, cost)

    def independent_at(self, width: Number) -> float:
        """Return the water-filling floor at a width."""
        return self.loss_of_cost(self._independent_cost_at(width))

    def predicted(self, predictor: FeaturePredictor, width: Number) -> float:
        """Return the floor of one predictor that needs features at a width.

        Raises:
            InputError: nothing was simulated.
        """
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

    def feature_floor_at(self, width: Number) -> float:
        """Return the simulated floor at a width; the water-filling floor if nothing was simulated."""
        return self._extrapolated(width, self._log_loss, self.independent_at)

    def feature_floor_cost_at(self, width: Number) -> float:
        """Return the feature floor at a width as a summed cost."""
        return self._extrapolated(width, self._log_cost, self._independent_cost_at)

    def lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the share of each feature's cost that is lost at a width; 0 for features that are not alive."""
        cost, floor = self.stats.cost, self.feature_floor_cost_at(width)
        share = self.independent_lost_share(width) if self.simulation is None else self._simulated_lost_share(width)
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

    def theorem_lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return 1 for each alive feature that a student of a width does not hold by Theorem 1, otherwise 0."""
        share = np.zeros_like(self.stats.cost)
        share[self.ranked_features[n_features_held(width, self.capacity, len(self.ranked_features)) :]] = 1.0
        return share

    def independent_lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the share of each feature's cost that water-filling loses at a width."""
        cost, allocation = self.stats.cost, self.allocation_at(width)
        without_cost = (self.alive & ~allocation.kept).astype(np.float64)
        share: np.ndarray = np.divide(allocation.lost_cost, cost, out=without_cost, where=(cost > 0) & self.alive)
        return share

    def independent_costs(self, widths: Int64[np.ndarray, " width"]) -> Float64[np.ndarray, " width"]:
        """Return the water-filling floors at some widths as summed costs."""
        return independent_floor(*self._costs_and_rates, widths)

    def conversion_errors(self, costs: Float64[np.ndarray, " width"]) -> Float64[np.ndarray, " width"]:
        """Return the relative standard error of the tail loss where it converts these summed costs; 0 without one."""
        errors: np.ndarray = np.array([0.0 if self.tail is None else self.tail.relative_error(float(c)) for c in costs])
        return errors

    def standard_error(self, widths: Int64[np.ndarray, " width"]) -> Float64[np.ndarray, " width"]:
        """Return the standard error of `feature_floor_at` that comes from the tokens on which losses were measured.

        Args:
            widths: student widths in dimensions.

        Returns:
            Standard errors in the unit of the floors.
        """
        floors, costs = (
            np.array([floor_at(int(width)) for width in widths])
            for floor_at in (self.feature_floor_at, self.feature_floor_cost_at)
        )
        errors: np.ndarray = floors * self.conversion_errors(costs)
        if self.simulation is None:
            return errors
        kl_error = None if self.tail is None else self.simulation.kl_error
        trained = self.simulation.standard_error if kl_error is None else kl_error
        # Errors are converted to losses, and extrapolated beyond the simulated widths, as the floors are.
        at = self.feature_floor_cost_at if kl_error is None else self.feature_floor_at
        nearest = np.clip(widths, self.simulation.widths[0], self.simulation.widths[-1])
        simulated = np.array([at(int(width)) for width in nearest])
        scale = np.divide(floors, simulated, out=np.zeros_like(floors), where=simulated > 0)
        of_training: np.ndarray = scale * np.interp(np.log(widths), np.log(self.simulation.widths), trained)
        if kl_error is None:
            of_training = np.hypot(of_training, errors)
        return of_training

    def _simulated_lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the share of each feature's cost that simulated students lose at a width.

        Below the simulated widths it is a power of the limit at width 0: a student loses the variance of every feature.
        """
        assert self.simulation is not None
        cost, lost, narrowest_width = self.stats.cost, self.simulation.lost_at(width), float(self.simulation.widths[0])
        share: np.ndarray = np.divide(lost, cost, out=np.zeros_like(cost), where=(cost > 0) & self.alive)
        self._set_unmeasured_shares(share, lost)
        if width >= narrowest_width:
            return share
        variance = self.stats.variance_share
        ratio = np.divide(share, variance, out=np.zeros_like(share), where=variance > 0)
        extrapolated: np.ndarray = variance * ratio ** (float(width) / narrowest_width)
        return extrapolated

    def _set_unmeasured_shares(
        self, share: Float64[np.ndarray, " feature"], lost: Float64[np.ndarray, " feature"]
    ) -> None:
        """Set the share of alive features of cost 0 to that of all features together that fire as rarely.

        They do not fire on the tokens on which costs were measured, so what they cost, and what of it is lost, is not
        known.
        """
        cost, count = self.stats.cost, self.stats.firing_count
        unmeasured = self.alive & (cost == 0)
        as_rare = self.alive & (cost > 0) & (count <= count[unmeasured].max(initial=0))
        share[unmeasured] = lost[as_rare].sum() / cost[as_rare].sum() if as_rare.any() else 1.0

    def _independent_cost_at(self, width: Number) -> float:
        """Return the water-filling floor at a width as a summed cost."""
        return float(independent_floor(*self._costs_and_rates, [float(width)])[0])

    def _extrapolated(
        self, width: Number, log_floor: Callable[[float], float] | None, independent_at: Callable[[Number], float]
    ) -> float:
        """Return the simulated floor at a width.

        Outside of the simulated widths it is the water-filling floor divided by a gain: above them the gain continues
        the power law of the two widest; below them it falls linearly to 1 at width 0, where a student loses everything.
        """
        if log_floor is None or self.simulation is None:
            return independent_at(width)
        simulated = [float(simulated_width) for simulated_width in self.simulation.widths]
        nearest = min(max(float(width), simulated[0]), simulated[-1])
        floor = math.exp(log_floor(math.log(nearest)))
        if nearest == width:
            return floor
        gain = independent_at(nearest) / floor
        if gain <= 0:
            return 0.0
        if width < nearest:  # a narrower student loses no less
            return max(independent_at(width) / (1.0 + max(gain - 1.0, 0.0) * float(width) / nearest), floor)
        if len(simulated) > 1:
            before = simulated[-2]
            gain_before = independent_at(before) / math.exp(log_floor(math.log(before)))
            exponent = math.log(gain / gain_before) / math.log(nearest / before)
            gain *= math.exp(min(max(exponent, 0.0) * math.log(float(width) / nearest), LARGEST_LOG))
        return independent_at(width) / gain

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
