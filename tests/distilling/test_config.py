"""Tests of the settings of a training."""

from typing import Any

import pytest

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.errors import InputError


def test_learning_rate_matches_hand_computed_values() -> None:
    config = DistillConfig(lr=1.0, warmup=0.1, decay=0.2)
    # 100 steps: the rate rises over 10 steps to 1, and falls over the last 20. Step 90 has 10 of these 20 left.
    assert [config.lr_at(step, 100) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 0.5, 0.05]
    )
    assert DistillConfig(lr=1.0, warmup=0.0, schedule="cosine").lr_at(50, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of muon, adamw, got 'sgd'"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, got 'linear'"),
        ({"dtype": "fp16"}, "dtype must be one of fp32, bf16, got 'fp16'"),
        ({"lr": 0.0}, "the learning rate and clip must be above 0, got 0.0"),
        ({"n_tokens": 0}, "n_tokens must be at least 1, got 0"),
        ({"warmup": 1.0}, "warmup from 0 to below 1, got 0.2 and 1.0"),
    ],
)
def test_rejects_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(InputError, match=message):
        DistillConfig(**fields)
