"""`StudentFloors`: what trained students are expected to lose, at any width."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from tl_distill_floor.annotations import CostUnit, Predictor
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.results.calibration import Calibration
from tl_distill_floor.results.expected_loss import (
    LossPredictor,
    expected_loss_at,
    expected_loss_fit,
    narrowest,
    upper_bound,
)
from tl_distill_floor.results.feature_floors import FeatureFloors
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.results.head_floor import HEAD_ADVICE, HeadFloor
from tl_distill_floor.results.simulation import Simulation
from tl_distill_floor.results.student_loss import StudentLoss, as_student_losses, refuse_impossible
from tl_distill_floor.theory.capacity import Number
from tl_distill_floor.theory.regression import PredictedLoss


class StudentFloors(FeatureFloors):
    """The part of a `FloorPrediction` that says what trained students lose: bound, expected and calibrated loss."""

    head: HeadFloor | None
    stats: FeatureStats | None
    calibration: Calibration | None
    simulation: Simulation | None

    @property
    def unit(self) -> CostUnit:
        """Unit of the losses: "nats" (per token) or "mse" (squared error per token)."""
        return "nats" if self.stats is None else self.stats.cost_unit

    @property
    def d_model(self) -> int:
        """Width of the teacher, in dimensions."""
        return self.head_floor.d_model if self.stats is None else self.stats.width

    @property
    def head_floor(self) -> HeadFloor:
        """The head floor.

        Raises:
            InputError: it was not computed.
        """
        if self.head is None:
            raise InputError(f"this prediction has no head floor; {HEAD_ADVICE}")
        return self.head

    @property
    def bound(self) -> Float64[np.ndarray, " width"] | None:
        """Head floor at each width, nats per token: an estimate, from above, of the least loss of any student, whose
        logits have no higher rank than its width; None if it was not computed."""
        if self.head is None or not self._has_head_at(int(self.widths[0])):
            return None
        return np.array([self.head.floor_at(int(width)) for width in self.widths])

    @property
    def loss_predictor(self) -> LossPredictor:
        """What `expected` is computed from. The fit is to simulated floors of the residual stream: those of another
        activation are not those of students as wide."""
        has_simulated = self.simulation is not None and self.stats is not None and self.stats.reads_residual_stream
        return "encoded and simulated" if has_simulated else "encoded"

    @cached_property
    def expected(self) -> Float64[np.ndarray, " width"] | None:
        """Loss that a trained student is expected to reach at each width, nats per token; see `expected_at`. None if
        losses are not in nats, or the head floor was not computed."""
        if self.unit != "nats" or not self._has_head_at(int(self.widths[0])):
            return None
        return np.array([self.expected_at(int(width)).value for width in self.widths])

    @property
    def interval(self) -> Float64[np.ndarray, "width 2"] | None:
        """95 % prediction interval of `expected` at each width, for a new teacher; None without `expected`."""
        if self.expected is None:
            return None
        return np.array([self.expected_at(int(width))[1:] for width in self.widths])

    @property
    def student_losses(self) -> dict[int, StudentLoss]:
        """Mean loss of the calibration's students of each width that narrows `expected`, nats per token: one that has a
        head floor and is narrower than the teacher. Empty if the losses do not fall with the width."""
        losses = {} if self.calibration is None else self.calibration.student_losses
        return {width: loss for width, loss in losses.items() if self._has_head_at(width) and width < self.d_model}

    @property
    def calibrated(self) -> Float64[np.ndarray, " width"] | None:
        """Predicted loss of trained students, C · floor + B, nats per token; None if there is no calibration."""
        if self.calibration is None:
            return None
        return np.array([self.calibrated_at(int(width)).value for width in self.widths])

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
        self, width: Number, level: float = 0.95, losses: Mapping[int, StudentLoss | float] | None = None
    ) -> PredictedLoss:
        """Return the loss that a trained student is expected to reach, with its prediction interval.

        It is fitted to students of other teachers (`benchmarks/atlas`). The interval is that for a new teacher;
        students of this teacher narrow it.

        Args:
            width: dimensions.
            level: probability of the two-sided interval.
            losses: losses of trained students of this teacher by width, nats per token; `student_losses` if None.
                Numbers, or `StudentLoss` with an error. Students as wide as the teacher are ignored.

        Returns:
            Loss with lower and upper bound, KL(teacher ‖ student) in nats per token; at least the head floor, and 0 at
            the teacher's width and above.

        Raises:
            InputError: losses are not in nats, there is no head floor at this width, the level is not inside [0, 1), or
                the losses given are impossible: below what their width allows, above that of equal probabilities, or
                not falling with the width.

        Example:
            >>> floor.expected_at(96, level=0.8)  # doctest: +SKIP
            >>> floor.expected_at(96, losses={16: 0.91, 32: 0.52})  # doctest: +SKIP
        """
        head = self.head
        if head is None or self.unit != "nats":
            raise InputError(
                f"the loss of a trained student is predicted from costs in nats and the head floor; {HEAD_ADVICE}"
            )
        seen = self.student_losses
        if losses is not None:
            seen = as_student_losses(losses)
            refuse_impossible(seen, head.least_at, head.vocab_size)
        if float(width) >= head.d_model:  # the student can be its teacher
            return PredictedLoss(0.0, 0.0, 0.0)
        narrower = {seen_width: loss for seen_width, loss in seen.items() if seen_width < head.d_model}
        fit = expected_loss_fit(self.loss_predictor, head.known_share)

        def x_at(x_width: float) -> float:
            simulated = self.floor_at(x_width) if self.loss_predictor == "encoded and simulated" else 0.0
            return head.encoded_at(x_width) + simulated

        return expected_loss_at(fit, x_at, float(width), level, narrower, head.floor_at(width), head.vocab_size)

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
                expected loss is compared with `max_loss`; the feature floor is, if `expected` is None.

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

    def _has_head_at(self, width: Number) -> bool:
        """Return whether there is a head floor at a width."""
        return self.head is not None and float(width) >= self.head.widths[0]
