"""Names of the units of losses."""

from tl_distill_floor.annotations import CostUnit

SHORT_UNIT: dict[CostUnit, str] = {"nats": "nats/token", "mse": "MSE"}
"""For table headings."""
LONG_UNIT: dict[CostUnit, str] = {
    "nats": "nats per token",
    "mse": "squared error per token, summed over the dimensions of the hook point",
}
"""For sentences and axes."""
AXIS_UNIT: dict[CostUnit, str] = {"nats": LONG_UNIT["nats"], "mse": "squared error per token"}
"""For axes with losses of several hook points."""
STUDENT_LOSS = "KL(teacher ‖ student)"
"""Loss of a student, with its direction."""


def loss_with_unit(unit: CostUnit) -> str:
    """Return the name of a student's loss and its unit, for axes: a divergence with its direction, or an error."""
    return f"{STUDENT_LOSS}, {LONG_UNIT[unit]}" if unit == "nats" else LONG_UNIT[unit]
