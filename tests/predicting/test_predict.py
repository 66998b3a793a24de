"""Tests of `predict_floor`: invalid options are rejected before anything is loaded; stages have progress bars."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.models import WIDTH
from tests.helpers.saes import tiny_sae
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import FloorPrediction, InputError, load_teacher, lost_features, one_feature, predict_floor
from tl_distill_floor.annotations import ProgressCallback
from tl_distill_floor.measuring.config import MeasureConfig
from tl_distill_floor.predicting.checks import integer_widths
from tl_distill_floor.predicting.config import PredictConfig
from tl_distill_floor.predicting.floors import floor_from_stats
from tl_distill_floor.predicting.measured_floors import HALF_PRECISION_WARNING
from tl_distill_floor.predicting.predict import predict_floors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": "magic"}, "cost must be one of fisher, energy, ablation, got 'magic'"),
        ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, got 'fp8'"),
        ({"n_tokens": 0}, "n_tokens must be at least 1, got 0"),
        ({"steps": 1}, "steps must be at least 2, or 0"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"widths": [0.5]}, "widths must be integers"),
        ({"widths": [float("inf")]}, "widths must be integers"),
    ],
)
def test_rejects_invalid_options_before_loading(options: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(InputError, match=message):
        predict_floor("there-is-no-such-model", **options)


@pytest.mark.parametrize(
    "widths",
    [[8, 2, 8.0], (2, 8), np.array([8, 2]), torch.tensor([2, 8]), torch.tensor([8.0, 2.0], requires_grad=True)],
)
def test_widths_may_be_lists_arrays_and_tensors(widths: Any) -> None:
    with without_type_checks():
        assert integer_widths(widths).tolist() == [2, 8]


@pytest.mark.parametrize("function", [predict_floor, predict_floors])
def test_a_misspelled_option_names_the_function(function: Any) -> None:
    with (
        without_type_checks(),
        pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument 'n_token'"),
    ):
        function("there-is-no-such-model", [None], n_token=100)


def test_a_batch_without_counted_tokens_does_not_change_the_intervals(bridge: Any, sae: Any, ids: Tensor) -> None:
    with_specials_only = ids.clone()
    with_specials_only[16:32] = 0
    options: dict[str, Any] = {"widths": [2, 8], "steps": 0, "cost": "energy", "batch_size": 16}
    floor, expected = (
        predict_floor(bridge, sae, text, **options) for text in (with_specials_only, torch.cat([ids[:16], ids[32:]]))
    )
    assert floor.alpha_interval == expected.alpha_interval
    np.testing.assert_array_equal(floor.sampling_interval, expected.sampling_interval)


def test_unfinished_predictions_are_reported(bridge: Any, sae: Any, ids: Tensor) -> None:
    reported: list[Any] = []
    options: dict[str, Any] = {"widths": [2, 8], "on_unfinished": reported.append}
    (floor,) = predict_floors(bridge, [sae], ids, predicting=PredictConfig(steps=20), **options)
    (measured,), (with_head,) = reported
    assert (measured.n_features, measured.alpha, measured.critical_width) == (
        floor.n_features, floor.alpha, floor.critical_width,
    )  # fmt: skip
    np.testing.assert_array_equal(measured.theorem, floor.additive)
    assert measured.head is measured.simulated is measured.tail is None
    assert with_head.head == floor.head
    assert all("not finished" in record.warnings[0] for record in (measured, with_head))
    assert not any("not finished" in warning for warning in floor.warnings)


def test_nothing_is_reported_as_unfinished_if_nothing_is_left_to_compute(bridge: Any, sae: Any, ids: Tensor) -> None:
    reported: list[Any] = []
    predict_floors(
        bridge, [sae], ids, widths=[2], measuring=MeasureConfig(cost="energy"), predicting=PredictConfig(steps=0),
        on_unfinished=reported.append,
    )  # fmt: skip
    assert reported == []


def test_every_stage_has_a_progress_bar(bridge: Any, sae: Any, ids: Tensor) -> None:
    stages: list[tuple[str, str]] = []
    calls: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def progress_bar(unit: str, stage: str) -> Iterator[ProgressCallback]:
        stages.append((unit, stage))
        yield lambda done, total: calls.setdefault(stage, []).append((done, total))

    predict_floors(bridge, [sae], ids, widths=[2, 8], predicting=PredictConfig(steps=20), progress_bar=progress_bar)
    assert stages == [
        ("tokens", "measuring"),
        ("tokens", "reading last hidden states"),
        ("steps", "head floor"),
        ("steps", "simulating"),
        ("sequences", "removing features"),
        ("sequences", "measuring simulated students"),
    ]
    for _, stage in stages[1:]:  # the text ends before the requested number of tokens
        done, total = calls[stage][-1]
        assert done == total


def test_a_prediction_matches_the_prediction_from_its_own_parts(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=20)
    computed = floor_from_stats(floor.stats, [2, 8], simulation=floor.simulation, tail=floor.tail)
    for name in ("theorem", "independent", "feature_floor", "sampling_interval"):
        np.testing.assert_array_equal(getattr(floor, name), getattr(computed, name))
    assert floor.warnings == computed.warnings


def test_an_activation_of_another_width_is_not_the_students_width(
    bridge: Any, sae: Any, ids: Tensor, tmp_path: Path
) -> None:
    """The MLP has twice as many hidden units as the teacher has dimensions."""
    of_mlp = tiny_sae(d_in=2 * WIDTH, metadata={"hook_name": "blocks.1.mlp.hook_post"})
    few = PredictConfig(steps=20)
    floors = predict_floors(bridge, [of_mlp, sae], ids, predicting=few, measuring=MeasureConfig(force=True))
    for floor in floors:
        assert (floor.d_model, floor.widths[-1]) == (WIDTH, WIDTH)
    floor = floors[0]
    assert floor.stats.d_model == 2 * WIDTH
    assert floor.teacher_floor == floor.floor_at(2 * WIDTH)
    from_head = FloorPrediction.from_head(floor.head_floor).expected
    np.testing.assert_array_equal(floor.expected, from_head)
    assert floors[1].interval[-2, 1] > 1.5 * floor.interval[-2, 1]  # at narrower widths both are at the bound
    assert ["has 48 dimensions, and the teacher 24" in "".join(f.warnings) for f in floors] == [True, False]
    floor.save(tmp_path)
    np.testing.assert_array_equal(FloorPrediction.load(tmp_path).expected, from_head)


def test_the_head_floor_is_of_all_tokens_if_the_sae_reads_some(bridge: Any, sae: Any, ids: Tensor) -> None:
    """Students are trained on all tokens, and so their losses are of all."""
    of_first_tokens = copy.deepcopy(sae)
    of_first_tokens.cfg.metadata.seqpos_slice = (0, 4)
    some, every = (
        predict_floor(bridge, each, ids, widths=[4, 8], steps=20, force=True) for each in (of_first_tokens, sae)
    )
    assert some.stats.n_tokens < 0.2 * every.stats.n_tokens
    assert some.head_floor.n_train_tokens == every.head_floor.n_train_tokens
    np.testing.assert_array_equal(some.bound, every.bound)
    of_some_tokens = copy.deepcopy(sae)
    of_some_tokens.cfg.metadata.exclude_special_tokens = list(range(100))
    some = predict_floor(bridge, of_some_tokens, ids, widths=[4, 8], steps=20, force=True)
    assert some.stats.n_tokens < 0.8 * every.stats.n_tokens
    np.testing.assert_array_equal(some.bound, every.bound)


@pytest.mark.parametrize(
    ("hook_name", "predictor"),
    [
        ("blocks.1.hook_mlp_out", "encoded"),
        ("blocks.1.attn.hook_z", "encoded"),
        ("blocks.2.hook_resid_pre", "encoded and simulated"),
        ("blocks.1.hook_out", "encoded and simulated"),
    ],
)
def test_trained_students_are_expected_to_lose_what_the_residual_stream_loses(
    hook_name: str, predictor: str, bridge: Any, sae: Any, ids: Tensor
) -> None:
    """The fit of the expected loss is to simulated floors of the residual stream; others are much smaller."""
    sae = copy.deepcopy(sae)
    sae.cfg.metadata.hook_name = hook_name
    floor = predict_floor(bridge, sae, ids, widths=[8, 16], steps=20, force=True)
    assert floor.simulation is not None
    assert floor.loss_predictor == predictor
    from_head = FloorPrediction.from_head(floor.head_floor).expected_at(16)
    assert (floor.expected_at(16) == from_head) == (predictor == "encoded")
    assert any("is not the residual stream" in warning for warning in floor.warnings) == (predictor == "encoded")


@pytest.mark.parametrize(("dtype", "is_rounded"), [(torch.float64, False), (torch.float16, True)])
def test_only_half_precision_rounds_logits(
    dtype: torch.dtype, is_rounded: bool, teacher_dir: Path, sae: Any, ids: Tensor
) -> None:
    model = load_teacher(teacher_dir).model.to(dtype)  # type: ignore[attr-defined]
    floor = predict_floor(model, sae, ids, steps=0, head=False, force=True)
    assert (HALF_PRECISION_WARNING in floor.warnings) == is_rounded


def test_a_teacher_without_all_of_its_layers_is_named(teacher_dir: Path, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    """As `first_n_layers` of TransformerLens loads it."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    model = load_teacher(teacher_dir).model
    model.cfg.model_name = str(tmp_path)
    floor = predict_floor(model, sae, ids, steps=20)
    named = [warning for warning in floor.warnings if f"has 3 of the 12 layers of {tmp_path}" in warning]
    assert len(named) == 1
    assert named[0] in floor.head_floor.warnings
    assert not any("layers" in warning for warning in predict_floor(model, sae, ids, cost="energy", steps=0).warnings)


def test_lost_features_have_defaults(bridge: Any, sae: Any, ids: Tensor) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, cost="energy")
    lost = lost_features(floor)
    assert lost.width == 2
    assert len(lost.shown) == min(20, len(lost.lost))
    assert one_feature(floor, lost.lost[0]).widths == (2, 8)


def test_lost_features_of_numpy_widths_are_saved(bridge: Any, sae: Any, ids: Tensor, tmp_path: Path) -> None:
    floor = predict_floor(bridge, sae, ids, widths=[2, 8], steps=0, cost="energy")
    lost = lost_features(floor, floor.widths[1])
    assert type(lost.load(lost.save(tmp_path)).width) is int
    feature = one_feature(floor, floor.lost(2)[0], floor.widths[1])
    assert feature.load(feature.save(tmp_path)) == feature == one_feature(floor, lost.lost[0], 8.0)
    for width in (2.5, float("nan"), "2"):
        with without_type_checks(), pytest.raises(InputError, match="the width must be an integer"):
            lost_features(floor, width)
    with pytest.raises(InputError, match="the feature must be an integer"):
        one_feature(floor, 0.5)
