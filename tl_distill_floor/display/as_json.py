"""Predictions as JSON values, for other programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tl_distill_floor.display.comparison import largest_floor_index
from tl_distill_floor.results.floor_prediction import FeatureFloorPrediction, FloorPrediction
from tl_distill_floor.results.head_floor import HeadFloor
from tl_distill_floor.results.tail_loss import TailLoss, ratio_standard_error
from tl_distill_floor.storage.versioned import to_json
from tl_distill_floor.theory.bootstrap import Z_95
from tl_distill_floor.theory.power_law import PowerLaw

FEATURE_CURVES = ("theorem", "independent", "simulated", "feature_floor", "additive", "structure_gain")
"""Losses at each width that depend on features."""
FEATURE_KEYS = (
    "hook", "sae", "n_cost_tokens", "n_features", "alpha", "capacity", "critical_width", "teacher_floor", "l0",
    "expected_l0", "fvu", *FEATURE_CURVES, "power_law", "tail_loss", "growth",
)  # fmt: skip
"""Keys that are null if the teacher was measured without an SAE."""
HEAD_FIELDS = (
    "widths", "floor", "standard_error", "half_steps", "encoded", "steps", "n_train_tokens", "n_heldout_tokens"
)  # fmt: skip
"""Fields of a head floor in the JSON object."""
SAMPLING_INTERVALS = ("n_features_interval", "alpha_interval", "critical_width_interval")
"""Fields of a prediction with an interval; the keys of the JSON object lack the suffix."""


def floor_json(floor: FloorPrediction) -> dict[str, Any]:
    """Return a prediction as one JSON object.

    Losses are in `unit`, widths in dimensions, intervals are [low, high] of 95 %. Unknown values are null, as is what
    needs features if the teacher was measured without an SAE.
    """
    features = dict.fromkeys(FEATURE_KEYS) if floor.stats is None else _feature_json(floor.with_features())
    head = None if floor.head is None else head_json(floor.head)
    intervals = {name: to_json(getattr(floor, name)) for name in SAMPLING_INTERVALS}
    return {
        "model": floor.model_name,
        "text": floor.head_floor.text_name if floor.stats is None else floor.stats.text_name,
        "n_tokens": floor.head_floor.n_tokens if floor.stats is None else floor.stats.n_tokens,
        "teacher_width": floor.d_model,
        "unit": floor.unit,
        "widths": floor.widths.tolist(),
        **features,
        "head": to_json(floor.bound),
        "head_floor": head,
        "expected": to_json(floor.expected),
        "intervals": {
            **{name.removesuffix("_interval"): interval for name, interval in intervals.items()},
            "sampling_interval": to_json(floor.sampling_interval),
            "theorem": to_json(floor.theorem_interval),
            "independent": to_json(floor.independent_interval),
            "expected": to_json(floor.interval),
            "head": None if floor.head is None else to_json(head_intervals(floor.head)),
        },
        "warnings": list(floor.warnings),
    }


def _feature_json(floor: FeatureFloorPrediction) -> dict[str, Any]:
    """Return what was measured and predicted of the features."""
    stats = floor.stats
    curves = {name: to_json(getattr(floor, name)) for name in FEATURE_CURVES}
    tokens, alive = stats.growth(floor.min_count)
    return {
        "hook": stats.hook_name,
        "sae": stats.sae_name,
        "n_cost_tokens": stats.n_cost_tokens,
        "n_features": floor.n_features,
        "alpha": floor.alpha,
        "capacity": floor.capacity,
        "critical_width": floor.critical_width,
        "teacher_floor": floor.teacher_floor,
        "l0": stats.l0,
        "expected_l0": stats.expected_l0,
        "fvu": to_json(stats.fvu),
        **curves,
        "power_law": None if floor.power_law is None else power_law_json(floor.power_law),
        "tail_loss": None if floor.tail is None else tail_loss_json(floor.tail),
        "growth": {"tokens": tokens.tolist(), "n_features": alive.tolist()},
    }


def head_json(head: HeadFloor) -> dict[str, Any]:
    """Return how a head floor was computed, and its losses at its own widths, in nats per token."""
    return {name: to_json(getattr(head, name)) for name in HEAD_FIELDS}


def head_intervals(head: HeadFloor) -> list[tuple[float, float]]:
    """Return the 95 % interval of the bound at each of its widths, from the number of held-out sequences."""
    pairs = zip(head.floor, head.standard_error, strict=True)
    return [(max(0.0, floor - Z_95 * error), floor + Z_95 * error) for floor, error in pairs]


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


def comparison_json(floors: Sequence[FeatureFloorPrediction]) -> dict[str, Any]:
    """Return several predictions as one JSON object, with the index of the largest floor at each width."""
    return {"predictions": [floor_json(floor) for floor in floors], "largest": largest_floor_index(floors)}
