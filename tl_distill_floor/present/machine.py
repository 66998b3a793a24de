"""Predictions as plain JSON values, for other programs."""

from typing import Any

from tl_distill_floor.prediction import FloorPrediction, plain


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
        "structure_gain": plain(floor.structure_gain),
        "intervals": {
            "n_features": plain(floor.n_features_interval),
            "alpha": plain(floor.alpha_interval),
            "critical_width": plain(floor.critical_width_interval),
            "expected": plain(floor.interval),
        },
        "growth": {"tokens": tokens.tolist(), "n_features": alive.tolist()},
        "warnings": list(floor.warnings),
    }
