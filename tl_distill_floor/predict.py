"""`predict_floor`: from a teacher and its SAE to the floor of every student width, in one call."""

from typing import Any

from tl_distill_floor.measuring.features import measure
from tl_distill_floor.prediction import FloorPrediction
from tl_distill_floor.theory.floor import STEPS, floor_from_stats


def predict_floor(
    model: Any, sae: Any = None, text: Any = None, *, widths: Any = None, steps: int = STEPS, **measure_options: Any
) -> FloorPrediction:
    """Measure the teacher's features and predict the loss floor of its students.

    Args:
        model, sae, text: see `measure`.
        widths: [width] student widths in dimensions; shares of the teacher's width when left out.
        steps: of the bottleneck students behind `simulated`; 0 trains none. See `floor_from_stats`.
        measure_options: see `measure`.

    Raises:
        InputError: see `measure` and `floor_from_stats`.
    """
    stats = measure(model, sae, text, **measure_options)
    device = measure_options.get("device", getattr(sae, "device", "cpu"))  # where an SAE in memory lies
    return floor_from_stats(stats, widths, steps=steps, device=str(device))
