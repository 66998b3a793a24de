"""TODO."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from tl_distill_floor.errors import InputError
from tl_distill_floor.storage.versioned import load_arrays, resolve_file, save_arrays
from tl_distill_floor.theory.capacity import Number

SIMULATION_FILE = "simulated.safetensors"


@dataclass(frozen=True, eq=False)
class Simulation:
    """What bottleneck students x̂ = ReLU(WᵀWf + b) reached on an SAE's codes f, in the unit of the costs."""

    widths: Int64[np.ndarray, " width"]
    """Widths that were trained, in dimensions, rising."""
    floor: Float64[np.ndarray, "width seed"]
    """Summed cost of what is lost, on tokens that training did not see, when training ends; see `reached`."""
    reached: Float64[np.ndarray, "width seed"]
    """The same after `steps`, from which and from half the steps `floor` is extrapolated."""
    standard_error: Float64[np.ndarray, " width"]
    """Of `floor`, from the sequences it was measured on and from the extrapolation."""
    lost_cost: Float64[np.ndarray, "width feature"]
    """The part of each feature, mean over seeds; sums to the mean floor."""
    on_training_text: Float64[np.ndarray, "width seed"]
    """Summed cost of what is lost on tokens that training did see: far below `reached`, more codes would lower that."""
    held_out_sequences: float
    """How many sequences of equal cost would scatter as the ones that it was measured on."""
    steps: int
    kl: Float64[np.ndarray, "width seed"] | None = None
    """KL(teacher ‖ teacher with the students' codes at the hook point), nats per token, when training ends; None where
    it was not measured."""
    kl_reached: Float64[np.ndarray, "width seed"] | None = None
    """The same after `steps`."""
    kl_error: Float64[np.ndarray, " width"] | None = None
    """Standard error of `kl`, from the sequences it was measured on and from the extrapolation."""

    def __post_init__(self) -> None:
        n = len(self.widths)
        losses = [self.floor, self.reached, self.standard_error, self.lost_cost, self.on_training_text]
        losses += [a for a in (self.kl, self.kl_reached, self.kl_error) if a is not None]
        if any(len(loss) != n for loss in losses) or n < 1 or (np.diff(self.widths, prepend=0) <= 0).any():
            raise ValueError("a simulation needs rising widths above 0, and a floor, an error and lost costs for each")
        if any(not np.isfinite(a).all() or (a < 0).any() for a in losses):
            raise ValueError("the floors of a simulation must be finite numbers of at least 0")

    def lost_at(self, width: Number) -> Float64[np.ndarray, " feature"]:
        """Lost cost of every feature: linear in log width between the widths that were trained, constant beyond."""
        places = np.interp(math.log(float(width)), np.log(self.widths), np.arange(len(self.widths)))
        below, above, share = int(places), math.ceil(places), places % 1.0
        lost: np.ndarray = self.lost_cost[below] * (1.0 - share) + self.lost_cost[above] * share
        return lost

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; a directory gets `simulated.safetensors`."""
        arrays = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), np.ndarray)}
        scalars = {"held_out_sequences": self.held_out_sequences, "steps": self.steps}
        return save_arrays(resolve_file(path, SIMULATION_FILE), "simulation", arrays, scalars)

    @classmethod
    def load(cls, path: str | Path) -> "Simulation":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, truncated, foreign, or of a newer version.
        """
        file = resolve_file(path, SIMULATION_FILE)
        arrays, scalars = load_arrays(file, "simulation")
        try:
            found: dict[str, Any] = {**arrays, **scalars}
            return cls(**found)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{file} does not hold a complete simulation ({error}); measure again") from error
