"""Predictions as plain JSON values, for other programs."""

import dataclasses
from typing import Any

from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error
from tl_distill_floor.storage.versioned import to_json


def floor_json(floor: FloorPrediction) -> dict[str, Any]:
    """One JSON object; losses in `unit`, widths in dimensions, intervals (low, high) of 95 %, null for unknown."""
    stats = floor.stats
    curves = {name: getattr(floor, name) for name in ("theorem", "independent", "simulated", "expected")}
    tokens, alive = stats.growth(floor.min_count)
    return {
        "model": stats.model_name,
        "hook": stats.hook_name,
        "sae": stats.sae_name,
        "text": stats.text_name,
        "n_tokens": stats.n_tokens,
        "n_features": floor.n_features,
        "alpha": floor.alpha,
        "capacity": floor.capacity,
        "critical_width": floor.critical_width,
        "teacher_width": stats.d_model,
        "teacher_floor": floor.teacher_floor,
        "l0": stats.l0,
        "expected_l0": stats.expected_l0,
        "fvu": to_json(stats.fvu),
        "unit": floor.unit,
        "widths": floor.widths.tolist(),
        **{name: to_json(curve) for name, curve in curves.items()},
        "additive": to_json(floor.additive),
        "structure_gain": to_json(floor.structure_gain),
        "power_law": None if floor.power_law is None else plain_fields(floor.power_law),
        "tail_loss": None if floor.tail is None else tail_json(floor.tail),
        "intervals": {
            "n_features": to_json(floor.n_features_interval),
            "alpha": to_json(floor.alpha_interval),
            "critical_width": to_json(floor.critical_width_interval),
            "expected": to_json(floor.interval),
        },
        "growth": {"tokens": tokens.tolist(), "n_features": alive.tolist()},
        "warnings": list(floor.warnings),
    }


def plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a record."""
    return {name: to_json(value) for name, value in dataclasses.asdict(record).items()}


def tail_json(tail: TailLoss) -> dict[str, Any]:
    """Ranks, losses and their standard errors (nats per token), and the summed costs beside them."""
    return {
        "ranks": tail.ranks.tolist(),
        "loss": tail.mean.tolist(),
        "standard_error": to_json(ratio_standard_error(tail.loss, tail.n_tokens)),
        "additive": tail.additive.tolist(),
        "n_tokens": int(tail.n_tokens.sum()),
    }


def several_json(floors: list[FloorPrediction]) -> dict[str, Any]:
    """One JSON object: each prediction, and at each width the place of the largest floor among them."""
    from tl_distill_floor.display.comparison import binding

    return {"predictions": [floor_json(floor) for floor in floors], "largest": binding(floors)}
