"""Predictions as plain JSON values, for other programs."""

import dataclasses
from typing import Any

from tl_distill_floor.files import plain
from tl_distill_floor.prediction import FloorPrediction
from tl_distill_floor.tail_loss import TailLoss, standard_error


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
        "fvu": plain(stats.fvu),
        "unit": floor.unit,
        "widths": floor.widths.tolist(),
        **{name: plain(curve) for name, curve in curves.items()},
        "additive": plain(floor.additive),
        "structure_gain": plain(floor.structure_gain),
        "power_law": None if floor.power_law is None else plain_fields(floor.power_law),
        "tail_loss": None if floor.tail is None else tail_json(floor.tail),
        "intervals": {
            "n_features": plain(floor.n_features_interval),
            "alpha": plain(floor.alpha_interval),
            "critical_width": plain(floor.critical_width_interval),
            "expected": plain(floor.interval),
        },
        "growth": {"tokens": tokens.tolist(), "n_features": alive.tolist()},
        "warnings": list(floor.warnings),
    }


def plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a record."""
    return {name: plain(value) for name, value in dataclasses.asdict(record).items()}


def tail_json(tail: TailLoss) -> dict[str, Any]:
    """Ranks, losses and their standard errors (nats per token), and the summed costs beside them."""
    return {
        "ranks": tail.ranks.tolist(),
        "loss": tail.mean.tolist(),
        "standard_error": plain(standard_error(tail.loss, tail.n_tokens)),
        "additive": tail.additive.tolist(),
        "n_tokens": int(tail.n_tokens.sum()),
    }


def several_json(floors: list[FloorPrediction]) -> dict[str, Any]:
    """One JSON object: each prediction, and at each width the place of the largest floor among them."""
    from tl_distill_floor.present.several import binding

    return {"predictions": [floor_json(floor) for floor in floors], "largest": binding(floors)}
