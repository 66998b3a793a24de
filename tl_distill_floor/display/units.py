"""Names of the units of losses."""

from tl_distill_floor.annotations import CostUnit

SHORT_UNIT: dict[CostUnit, str] = {"nats": "nats/token", "mse": "MSE"}
"""For table headings."""
LONG_UNIT: dict[CostUnit, str] = {
    "nats": "nats per token",
    "mse": "squared error per token, summed over the dimensions of the hook point",
}
"""For sentences and axes."""
STUDENT_LOSS = "KL(teacher ‖ student)"
"""Loss of a student, with its direction."""
