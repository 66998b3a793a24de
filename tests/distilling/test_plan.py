"""Tests of the choice of a student."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.models import WIDTH
from tests.helpers.records import made_head_floor, stats_of
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor.distilling.planning.calibrate import calibrate
from tl_distill_floor.distilling.planning.pilots import choose_pilots
from tl_distill_floor.distilling.planning.plan import plan
from tl_distill_floor.distilling.students import family_checks
from tl_distill_floor.distilling.students.student_config import student_config
from tl_distill_floor.errors import InputError
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.results.floor_prediction import FloorPrediction
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.sources.teachers import load_teacher


@pytest.fixture(scope="module")
def floor(teacher_dir: Path) -> FloorPrediction:
    """Predict floors from synthetic features, for a teacher whose name is its directory."""
    sampled = np.zeros(WIDTH)
    stats = stats_of(1.0 / np.arange(1, 65), d_model=WIDTH, model_name=str(teacher_dir), sampled_sum=sampled)
    return floor_from_stats(stats, widths=[4, 8, 16, WIDTH])


def without_speed(chosen: Plan) -> Plan:
    """Return a plan with the measured speeds removed."""
    speeds = [chosen.speed, *(candidate.speed for candidate in chosen.candidates)]
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds)
    candidates = tuple(dataclasses.replace(candidate, speed=1.0) for candidate in chosen.candidates)
    return dataclasses.replace(chosen, speed=1.0, candidates=candidates)


def test_accepts_all_teachers_that_load_teacher_accepts(floor: FloorPrediction, bridge: Any, teacher_dir: Path) -> None:
    from_floor = without_speed(plan(floor, max_width=16, divisor=8))
    assert (from_floor.width, from_floor.teacher_depth) == (16, 3)
    for teacher in (bridge, load_teacher(bridge), teacher_dir, str(teacher_dir)):
        assert without_speed(plan(floor, teacher, max_width=16, divisor=8)) == from_floor


@pytest.mark.parametrize(("losses", "used"), [({4: 0.9, 8: 0.6, 16: 0.2}, True), ({4: 0.5, 8: 0.6, 16: 0.7}, False)])
def test_a_plan_is_calibrated_by_the_students_that_it_uses(bridge: Any, losses: dict[int, float], used: bool) -> None:
    """Losses that rise with the width do not enter the expected loss."""
    columns = {"floor": (0.4, 0.2), "standard_error": (0.0, 0.0), "half_steps": (0.4, 0.2), "encoded": (0.6, 0.35)}
    head = made_head_floor(d_model=WIDTH, widths=(8, 16), **columns)
    floor = FloorPrediction.from_head(head)
    calibration = dataclasses.replace(calibrate(floor, {8: 0.6, 12: 0.5, 16: 0.4}), widths=(4, 8, 16),
                                      losses=tuple(losses.values()))  # fmt: skip
    before, after = (plan(record, bridge, max_width=16, divisor=8)
                     for record in (floor, dataclasses.replace(floor, calibration=calibration)))  # fmt: skip
    assert (before.calibrated, after.calibrated) == (False, used)
    assert (after.loss == before.loss) == (not used)
    assert any("students of this teacher, of widths 8, 16, which" in known for known in after.known) == used


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "a plan needs a limit; set at least one of max_loss=, max_width=, max_params=, max_memory=, min_sp"),
        ({"divisor": 8, "depth": 2}, "a plan needs a limit"),
        ({"max_loss": -0.1}, "the loss must be above 0, got -0.1"),
        ({"max_width": 0}, "max_width= must be a finite number above 0, got 0"),
        ({"max_memory": -1}, "max_memory= must be a finite number above 0"),
        ({"min_speedup": float("nan")}, "min_speedup= must be a finite number above 0, got nan"),
        ({"max_width": 8.5}, "max_width must be an integer, got 8.5"),
        ({"max_width": 8, "divisor": 0}, "divisor= must be a finite number above 0, got 0"),
    ],
)
def test_rejects_no_limit_and_limits_out_of_range(floor: FloorPrediction, limits: Any, message: str) -> None:
    with without_type_checks(), pytest.raises(InputError, match=message):
        plan(floor, "no-teacher", **limits)


def test_the_teacher_must_have_the_width_that_was_measured(floor: FloorPrediction, bridge: Any) -> None:
    """Otherwise the sizes of one teacher's students would be listed with the losses of another's."""
    head = made_head_floor(model_name="other")
    message = "the prediction is for other, which has 64 dimensions, and the teacher has 24; give the teacher that was"
    with pytest.raises(InputError, match=message):
        plan(head, bridge, max_width=16)
    with pytest.raises(InputError, match=message):
        choose_pilots(head, bridge, width=16)
    stats = dataclasses.replace(floor.with_features().stats, teacher_width=64)
    with pytest.raises(InputError, match="which has 64 dimensions, and the teacher has 24"):
        plan(floor_from_stats(stats, widths=[4, 8]), bridge, max_width=16)


def test_a_plan_with_limits_such_as_2e9_can_be_loaded(floor: FloorPrediction, tmp_path: Path) -> None:
    with without_type_checks():
        chosen = plan(floor, max_memory=2e9, max_params=1e6, divisor=4.0, depth=np.int64(2), context=16.0)  # type: ignore[arg-type]
    chosen.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded == chosen
    assert (loaded.limits.max_memory, loaded.limits.divisor, loaded.depth, loaded.context) == (2_000_000_000, 4, 2, 16)


@pytest.fixture(scope="module")
def wide_heads(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Create a teacher with heads wider than its residual stream, and one with a head size of its own."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import Mamba2Config, Mamba2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    models = {
        "qwen3": Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
                num_key_value_heads=4, head_dim=8, max_position_embeddings=64,
            )
        ),
        "mamba2": Mamba2ForCausalLM(
            Mamba2Config(
                vocab_size=300, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, n_groups=1, state_size=8,
                chunk_size=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
            )
        ),
    }  # fmt: skip
    bridges = {}
    for name, model in models.items():
        directory = tmp_path_factory.mktemp(name)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        bridges[name] = TransformerBridge.boot_transformers(str(directory), device="cpu")
        bridges[name].expected_parameters = sum(weight.numel() for weight in model.parameters())
    return bridges


def floor_of_width(width: int) -> FloorPrediction:
    """Predict floors from synthetic features of a teacher of some width."""
    stats = stats_of(1.0 / np.arange(1, 65), d_model=width, model_name="tiny", sampled_sum=np.zeros(width))
    return floor_from_stats(stats, widths=[4, 8, 16, width])


def test_states_the_size_of_a_teacher_whose_heads_are_wider_than_its_residual_stream(wide_heads: Any) -> None:
    teacher = wide_heads["qwen3"]
    chosen = plan(floor_of_width(32), teacher, max_width=32)
    assert chosen.teacher_parameters == teacher.expected_parameters
    assert chosen.n_parameters == teacher.expected_parameters


def test_offers_only_widths_that_can_be_built(wide_heads: Any) -> None:
    """Twice the width must be a number of heads times 16, so that only multiples of 8 can be built."""
    teacher = wide_heads["mamba2"]
    floor = floor_of_width(32)
    assert plan(floor, teacher, max_width=23).width == 16
    narrowest = plan(floor, teacher, max_loss=float(floor.feature_floor[0]) * 1.5)
    assert narrowest.width % 8 == 0
    with pytest.raises(
        InputError, match="wider than max_width=7, and a Mamba2 student of width 7 cannot be configured"
    ):
        plan(floor, teacher, max_width=7)


def test_names_the_reason_for_which_a_family_is_refused(wide_heads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is as if the field of the neurons had a name that is not known."""

    def forget_neurons(teacher: Any, width: int, depth: int | None = None) -> Any:
        config = student_config(teacher, width, depth)
        config.intermediate_size = teacher.intermediate_size
        return config

    monkeypatch.setattr(family_checks, "student_config", forget_neurons)
    monkeypatch.setattr(family_checks, "_REFUSALS", {})
    teacher, floor = wide_heads["qwen3"], floor_of_width(32)
    reason = "Qwen3 models keeps its size of 64 when the width is halved"
    with pytest.raises(
        InputError, match=rf"as small as that: [\d.]*mlp\.gate_proj.weight of {reason}.*; raise max_width="
    ):
        plan(floor, teacher, max_width=31)
