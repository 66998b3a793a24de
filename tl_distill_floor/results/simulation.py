"""`Simulation`: the losses that bottleneck students reached on an SAE's codes."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.record_files import ArrayRecord
from tl_distill_floor.theory.capacity import Number

SIMULATION_FILE = "simulated.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class Simulation(ArrayRecord):
    """Losses of bottleneck students x̂ = ReLU(WᵀWf + b), trained on an SAE's codes f.

    Losses are summed costs, in the unit of the costs, unless the field says otherwise.
    """

    FILE_NAME: ClassVar[str] = SIMULATION_FILE
    KIND: ClassVar[str] = "simulation"

    widths: Int64[np.ndarray, " width"]
    """Trained widths in dimensions, in rising order."""
    floor: Float64[np.ndarray, "width seed"]
    """Loss on held-out tokens, extrapolated to the end of training from the losses after half of the steps and after
    all of them."""
    reached: Float64[np.ndarray, "width seed"]
    """Loss on held-out tokens after `steps` steps."""
    standard_error: Float64[np.ndarray, " width"]
    """Standard error of `floor`, from the held-out sequences and from the extrapolation."""
    lost_cost: Float64[np.ndarray, "width feature"]
    """Contribution of each feature to `floor`, averaged over seeds. Each row sums to the mean floor of its width."""
    on_training_text: Float64[np.ndarray, "width seed"]
    """Loss on training tokens after `steps` steps. If it is far below `reached`, more codes would lower the floor."""
    held_out_sequences: float
    """Effective number of held-out sequences: as many sequences of equal cost would have the same standard error."""
    steps: int
    """Training steps of each student."""
    kl: Float64[np.ndarray, "width seed"] | None = None
    """KL(teacher ‖ teacher with the students' codes at the hook point), nats per token, extrapolated as `floor` is;
    None if it was not measured."""
    kl_reached: Float64[np.ndarray, "width seed"] | None = None
    """The same KL after `steps` steps."""
    kl_error: Float64[np.ndarray, " width"] | None = None
    """Standard error of `kl`, from the held-out sequences and from the extrapolation."""

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            ValueError: a shape or a value does not fit.
        """
        n = len(self.widths)
        losses = [self.floor, self.reached, self.standard_error, self.lost_cost, self.on_training_text]
        losses += [a for a in (self.kl, self.kl_reached, self.kl_error) if a is not None]
        if any(len(loss) != n for loss in losses) or n < 1 or (np.diff(self.widths, prepend=0) <= 0).any():
            raise ValueError("a simulation needs rising widths above 0, and a floor, an error and lost costs for each")
        if any(not np.isfinite(a).all() or (a < 0).any() for a in losses):
            raise ValueError("the floors of a simulation must be finite numbers of at least 0")

    def lost_at(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Return the cost that a student of any width loses of each feature.

        Args:
            width: dimensions. Costs are linear in the logarithm of the width between trained widths, and constant
                outside of them.

        Returns:
            Lost cost [feature], in the unit of the costs.

        Example:
            >>> floor.simulation.lost_at(48).sum()  # doctest: +SKIP
        """
        position = np.interp(math.log(float(width)), np.log(self.widths), np.arange(len(self.widths)))
        below, above, weight = int(position), math.ceil(position), position % 1.0
        lost: np.ndarray = self.lost_cost[below] * (1.0 - weight) + self.lost_cost[above] * weight
        return lost

    def __repr__(self) -> str:
        """Return the widths, seeds and steps in one line."""
        return (
            f"Simulation({self.lost_cost.shape[1]:,} features, {len(self.widths)} widths {self.widths[0]:,} to"
            f" {self.widths[-1]:,}, {self.floor.shape[1]} seeds, {self.steps:,} steps)"
        )
