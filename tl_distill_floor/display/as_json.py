"""Predictions as JSON values, for other programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tl_distill_floor.display.comparison import largest_floor_index
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error
from tl_distill_floor.storage.versioned import to_json
from tl_distill_floor.theory.power_law import PowerLaw


def floor_json(floor: FloorPrediction) -> dict[str, Any]:
    """Return a prediction as one JSON object.

    Losses are in `unit`, widths in dimensions, intervals are [low, high] of 95 %, and unknown values are null.
    """
    stats = floor.stats
    curves = {name: getattr(floor, name) for name in ("theorem", "independent", "simulated", "feature_floor")}
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
        "head": to_json(floor.bound),
        "expected": to_json(floor.expected),
        "additive": to_json(floor.additive),
        "structure_gain": to_json(floor.structure_gain),
        "power_law": None if floor.power_law is None else power_law_json(floor.power_law),
        "tail_loss": None if floor.tail is None else tail_loss_json(floor.tail),
        "intervals": {
            "n_features": to_json(floor.n_features_interval),
            "alpha": to_json(floor.alpha_interval),
            "critical_width": to_json(floor.critical_width_interval),
            "sampling_interval": to_json(floor.sampling_interval),
            "expected": to_json(floor.expected_interval),
            "head": None if floor.head is None else to_json(head_intervals(floor.head)),
        },
        "growth": {"tokens": tokens.tolist(), "n_features": alive.tolist()},
        "warnings": list(floor.warnings),
    }


def head_intervals(head: HeadFloor) -> list[tuple[float, float]]:
    """Return the 95 % interval of the bound at each of its widths, from the number of held-out sequences."""
    pairs = zip(head.floor, head.standard_error, strict=True)
    return [(max(0.0, floor - 1.96 * error), floor + 1.96 * error) for floor, error in pairs]


def power_law_json(law: PowerLaw) -> dict[str, Any]:
    """Return the fields of a power law as JSON values."""
    return {name: to_json(value) for name, value in dataclasses.asdict(law).items()}


def tail_loss_json(tail: TailLoss) -> dict[str, Any]:
    """Return ranks, losses with their standard errors, and summed costs; all losses in nats per token."""
    return {
        "ranks": tail.ranks.tolist(),
        "loss": tail.mean.tolist(),
        "standard_error": to_json(ratio_standard_error(tail.loss, tail.n_tokens)),
        "additive": tail.additive.tolist(),
        "n_tokens": int(tail.n_tokens.sum()),
    }


def comparison_json(floors: Sequence[FloorPrediction]) -> dict[str, Any]:
    """Return several predictions as one JSON object, with the index of the largest floor at each width."""
    return {"predictions": [floor_json(floor) for floor in floors], "largest": largest_floor_index(floors)}
