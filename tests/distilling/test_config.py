"""Tests of the settings of a training."""

from typing import Any

import numpy as np
import pytest

from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.losses import Objective
from tl_distill_floor.distilling.training.matching import Match
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
        ({"lr": 0.0}, "the learning rate and clip must be above 0, the first finite, got 0.0 and 1.0"),
        ({"lr": float("inf")}, "the first finite, got inf and 1.0"),
        ({"n_tokens": 0}, "n_tokens must be at least 1, got 0"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"warmup": 1.0}, "warmup from 0 to below 1, got 0.2 and 1.0"),
    ],
)
def test_rejects_settings_out_of_range(fields: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(InputError, match=message):
        DistillConfig(**fields)


def test_whole_numbers_of_any_type_are_integers() -> None:
    with without_type_checks():
        spec = StudentSpec(np.int64(64), depth=2.0, seed=np.int64(1))  # type: ignore[arg-type]
        assert spec == StudentSpec(64, depth=2, seed=1)
        match = Match("blocks.1.hook_resid_post", layer=np.int64(1))  # type: ignore[arg-type]
        assert [type(number) for number in (spec.width, spec.depth, spec.seed, match.layer)] == [int] * 4
        with pytest.raises(InputError, match="width must be an integer"):
            StudentSpec(8.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a/b", "../width8", "/tmp/width8", ".width8", ".."])
def test_names_of_students_are_those_of_directories_that_are_found_again(name: str) -> None:
    with pytest.raises(InputError, match="a student's name is that of a directory, without"):
        StudentSpec(8, name=name)
    assert StudentSpec(8, name="width8-wide.v2").directory == "width8-wide.v2"


def test_an_infinite_clip_means_no_clipping() -> None:
    assert DistillConfig(clip=float("inf")).clip == float("inf")


def test_an_infinite_temperature_is_refused() -> None:
    with pytest.raises(InputError, match="the temperature must be above 0 and finite, got inf"):
        Objective(temperature=float("inf"))
