"""`FeatureFloors`: the floors that a teacher's features predict, at any student width."""

import math

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.results.floor_curve import FloorCurve
from tl_distill_floor.results.record_files import Displayable
from tl_distill_floor.results.tail_loss import Cost
from tl_distill_floor.theory.allocation import rank_by_cost
from tl_distill_floor.theory.capacity import Number

NEEDS_FEATURES = (
    "the teacher was measured without an SAE, so nothing is known of its features; measure it with one: tl-floor"
    " measure MODEL --sae SAE (tl-floor train-sae makes one), or predict_floor(model, sae)"
)
"""Message if a prediction without features is asked for them."""


class FeatureFloors(Displayable):
    """The part of a `FloorPrediction` that depends on features. Without features it raises an InputError."""

    widths: Int64[np.ndarray, " width"]

    @property
    def feature_curve(self) -> FloorCurve | None:
        """Floors that the features predict, at any width; None without features."""
        return None

    @property
    def structure_gain(self) -> Float64[np.ndarray, " width"] | None:
        """Ratio `independent` ÷ `simulated` at each width: the gain from features that do not fire independently."""
        if self.feature_curve is None or self.feature_curve.simulation is None:
            return None
        return np.array([self.structure_gain_at(int(width)) for width in self.widths])

    @property
    def total_loss(self) -> float:
        """Loss of a student that keeps no feature, in `unit`."""
        return self.loss_of_cost(self.total_cost)

    @property
    def total_cost(self) -> float:
        """Summed cost of all alive features, in `unit`."""
        return self._curve.total_cost

    @property
    def teacher_floor(self) -> float:
        """Feature floor at the width of the teacher's activation, in `unit`; above 0 if it uses superposition."""
        return self.floor_at(self._curve.stats.d_model)

    @property
    def ranked_features(self) -> Int64[np.ndarray, " alive"]:
        """Indices of the alive features in falling order of cost."""
        return self._curve.ranked_features

    def loss_of_cost(self, cost: Cost) -> Cost:
        """Convert summed costs of removed features to the loss of removing them.

        Args:
            cost: summed cost, a number or an array.

        Returns:
            Loss in `unit`: by the tail loss if there is one, otherwise `cost` itself.

        Example:
            >>> floor.loss_of_cost(0.5 * floor.total_cost)  # doctest: +SKIP
        """
        return self._curve.loss_of_cost(cost)

    def floor_at(self, width: Number) -> float:
        """Return the feature floor at any width.

        Between the simulated widths the log floor is interpolated over log width by a monotone cubic. Outside of them
        the floor is `independent` divided by the structure gain: above them it continues the power law of the two
        widest; below them it falls linearly to 1 at width 0.

        Args:
            width: dimensions.

        Returns:
            Loss in `unit`.

        Example:
            >>> floor.floor_at(96)  # doctest: +SKIP
        """
        return self._curve.feature_floor_at(width)

    def structure_gain_at(self, width: Number) -> float:
        """Return the ratio of the independent to the simulated floor at one width.

        Args:
            width: dimensions.

        Returns:
            The ratio; NaN if the simulated floor is 0.

        Raises:
            InputError: nothing was simulated.

        Example:
            >>> floor.structure_gain_at(96)  # doctest: +SKIP
        """
        self._curve.check_simulated()
        floor = self.floor_at(width)
        return self._curve.independent_at(width) / floor if floor > 0 else math.nan

    def lost_share(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the share of each feature's cost that a student is expected to lose.

        Args:
            width: dimensions.

        Returns:
            Shares [feature]; 0 for features that are not alive. Shares times costs sum to the feature floor, as a
            summed cost.

        Example:
            >>> floor.lost_share(96).max()  # doctest: +SKIP
        """
        return self._curve.lost_share(width)

    def kept(self, width: Number) -> Bool[np.ndarray, " feature"]:
        """Return the features that a student is expected to keep.

        A feature is kept if at most half of its variance is lost, where a student that outputs the feature's mean loses
        all of it.

        Args:
            width: dimensions.

        Returns:
            Mask [feature].

        Example:
            >>> floor.kept(96).sum()  # doctest: +SKIP
        """
        return self._curve.kept(width)

    def lost(self, width: Number) -> Int64[np.ndarray, " lost"]:
        """Return the alive features that a student is expected to lose.

        Args:
            width: dimensions.

        Returns:
            Indices [lost], in falling order of cost.

        Example:
            >>> floor.lost(96)[:10]  # doctest: +SKIP
        """
        return rank_by_cost(self._curve.stats.cost, self._curve.alive & ~self.kept(width))

    def capacities(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the dimensions that water-filling allocates to each feature.

        Args:
            width: dimensions of the student.

        Returns:
            Dimensions [feature], which sum to at most the width.

        Example:
            >>> floor.capacities(96).sum() <= 96  # doctest: +SKIP
            True
        """
        return self._curve.allocation_at(width).capacity

    def measured_error(self) -> Float64[np.ndarray, " width"]:
        """Return the standard error of `feature_floor` that comes from the tokens on which losses were measured.

        Returns:
            Standard error at each width, in `unit`.

        Example:
            >>> floor.measured_error() / floor.feature_floor  # doctest: +SKIP
        """
        return self._curve.standard_error(self.widths)

    @property
    def _curve(self) -> FloorCurve:
        """The floors at any width.

        Raises:
            InputError: the teacher was measured without an SAE.
        """
        if self.feature_curve is None:
            raise InputError(NEEDS_FEATURES)
        return self.feature_curve
