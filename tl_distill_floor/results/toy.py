"""`ToyResult`: the floors that trained toy models reached."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.results.record_files import ArrayRecord
from tl_distill_floor.theory.floors import PREDICTORS

TOY_FILE = "toy.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class ToyResult(ArrayRecord):
    """Floors that toy models reached, in importance-weighted squared error per input."""

    FILE_NAME: ClassVar[str] = TOY_FILE
    KIND: ClassVar[str] = "toy"

    widths: Int64[np.ndarray, " width"]
    """Hidden dimensions of the models."""
    cost: Float64[np.ndarray, " feature"]
    """I_i E[x_i²] = I_i p_i / 3, the cost of each feature as `theorem_floor` and `allocate` take it."""
    firing_rate: Float64[np.ndarray, " feature"]
    """Probability that each feature is active."""
    floor: Float64[np.ndarray, "width seed"]
    """Σ I_i (x_i − x̂_i)² on new inputs."""
    standard_error: Float64[np.ndarray, "width seed"]
    """Standard error of `floor` from the number of new inputs."""
    kept: Int64[np.ndarray, "width seed"]
    """Number of features with ‖W_i‖² > 0.5."""
    to_teacher: Float64[np.ndarray, "width seed"] | None = None
    """Σ I_i (x̂_i of the teacher − x̂_i)² on new inputs; None without a teacher."""

    @property
    def error_of_mean(self) -> Float64[np.ndarray, " width"]:
        """Standard error of the mean floor, from its spread over seeds and from the number of new inputs.

        All seeds are measured on the same inputs, so that the second part does not show in the spread.
        """
        n_seeds = self.floor.shape[1]
        of_inputs: np.ndarray = self.standard_error.mean(1)
        if n_seeds == 1:
            return of_inputs
        return np.asarray(np.hypot(self.floor.std(1, ddof=1) / np.sqrt(n_seeds), of_inputs))

    def predicted(self) -> dict[str, list[float]]:
        """Return the floor of every predictor at each width."""
        return {
            name: predict(self.cost, self.firing_rate, self.widths).tolist() for name, predict in PREDICTORS.items()
        }

    def __repr__(self) -> str:
        """Return the task, the widths and the range of the floors in one line."""
        mean = self.floor.mean(1)
        return (
            f"ToyResult({len(self.cost):,} features, widths {self.widths[0]:,} to {self.widths[-1]:,},"
            f" {self.floor.shape[1]} seeds, floors {mean[0]:.4g} to {mean[-1]:.4g})"
        )
