"""Tests of several layers, or several SAEs of one layer, in one pass: the numbers equal separate measurements."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.helpers.cli import refused, run
from tests.helpers.measurements import assert_same_stats
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import FeatureStats, InputError, measure
from tl_distill_floor.display.comparison import largest_floor_index
from tl_distill_floor.measuring.config import LoadConfig, MeasureConfig
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_job
from tl_distill_floor.predicting.config import PredictConfig
from tl_distill_floor.predicting.predict import predict_floors

QUICK = ("--batch-size", 8, "--tokens", 2048, "--widths", "2,8")
"""Options of a measurement that takes seconds."""


@pytest.fixture(scope="module")
def other_sae(sae: Any) -> Any:
    """Return the same weights as an SAE of layer 0, with another bias."""
    copied = copy.deepcopy(sae)
    copied.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    copied.b_enc.data.sub_(0.5)
    return copied


@pytest.fixture(scope="module")
def layers_dir(sae: Any, other_sae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save one SAE for each of two layers."""
    directory = tmp_path_factory.mktemp("saes-by-layer")
    for layer, of_layer in enumerate((other_sae, sae)):
        of_layer.save_model(directory / f"layer{layer}")
    return directory


def test_a_single_sae_is_no_list_of_saes(bridge: Any, sae: Any, ids: Tensor) -> None:
    for saes in (sae, "tiny-prose-sae", [], (each for each in [sae])):
        with pytest.raises(InputError, match=r"as a list of at least one, such as \[sae\]"), without_type_checks():
            predict_floors(bridge, saes, ids)
    with pytest.raises(InputError, match="1 layers for 2 SAEs"):
        predict_floors(bridge, [sae, sae], ids, layers=[1])


@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_one_pass_matches_separate_measurements(
    cost: str, bridge: Any, sae: Any, other_sae: Any, ids: Tensor, tmp_path: Path
) -> None:
    saes = [sae, other_sae, sae]
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    job = prepare_job(bridge, saes, ids, LoadConfig(batch_size=8))
    all_stats = measure_job(job, MeasureConfig(cost=cost), checkpoints=files)
    for stats, each in zip(all_stats, saes, strict=True):
        separate = measure(bridge, each, ids, batch_size=8, cost=cost)
        assert stats.hook_name == separate.hook_name
        np.testing.assert_array_equal(stats.firing_count, separate.firing_count)
        np.testing.assert_allclose(stats.cost, separate.cost, rtol=1e-4, atol=1e-9)
    # A checkpoint that is one block behind the others catches up.
    first_half = measure_job(job, MeasureConfig(cost=cost, n_tokens=16 * 32, n_codes=10**6), checkpoints=[None] * 3)
    complete = measure_job(job, MeasureConfig(cost=cost, n_codes=10**6))
    first_half[1].save(files[1])
    for i in (0, 2):
        complete[i].save(files[i])
    resumed = measure_job(job, MeasureConfig(cost=cost, n_codes=10**6), checkpoints=files, resume=True)
    for stats, expected in zip(resumed, complete, strict=True):
        assert_same_stats(stats, expected)


def test_the_layer_with_the_largest_floor_is_named(bridge: Any, sae: Any, other_sae: Any, ids: Tensor) -> None:
    floors = predict_floors(bridge, [other_sae, sae], ids, widths=[2, 8], predicting=PredictConfig(steps=20))
    assert [floor.stats.hook_name for floor in floors] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for width, largest in enumerate(largest_floor_index(floors)):
        assert floors[largest].feature_floor[width] == max(floor.feature_floor[width] for floor in floors)


def test_several_layers_of_the_command_line(
    teacher_dir: Path, layers_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sae = layers_dir / "layer{layer}"
    given = ("measure", teacher_dir, "--text", prose_file, *QUICK, "--steps", 20, "--no-head")
    shown = run(*given, "--layer", "0,1", "--sae", sae)
    assert shown.exit_code == 0, shown.output
    for word in ("Feature floor (nats/token)", "largest", "that layer binds", "runs/tiny-neox-layer0"):
        assert word in shown.stdout.replace("\n", " ")
    assert FeatureStats.load(tmp_path / "runs" / "tiny-neox-layer0").hook_name == "blocks.0.hook_resid_post"
    printed = json.loads(run(*given, "--layer", "all", "--sae", sae, "--json", "--out", "both").stdout)
    assert [each["hook"] for each in printed["predictions"]] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert len(printed["largest"]) == 2
    assert (tmp_path / "both" / "layer1" / "tail.safetensors").exists()
    assert "write {layer}" in refused(run(*given, "--layer", "0,1", "--sae", layers_dir / "layer0"))
    assert "try 4,8,12" in refused(run(*given, "--layer", "0-1"))
    assert "no SAE is known" in refused(run(*given, "--layer", "all", "--sae", layers_dir / "layer0"))


def test_comparing_saes(
    teacher_dir: Path, layers_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # the names of the SAEs are long paths
    given = ("compare", teacher_dir, "--text", prose_file, *QUICK, "--steps", 0)
    result = run(*given, "--sae", sae_dir, "--sae", layers_dir / "layer1")
    assert result.exit_code == 0, result.output
    assert "The order of the SAEs by floor is the same at every width" in " ".join(result.stdout.split())
    assert "tiny-neox, blocks.1.hook_resid_post (intervals: 95 %)" in " ".join(result.stdout.split())
    for label, name in (("A", str(sae_dir)), ("B", str(layers_dir / "layer1"))):
        assert any(line.split()[:2] == [label, name] for line in result.stdout.splitlines()), result.stdout
    assert (tmp_path / "runs" / "tiny-neox-compared" / "sae1" / "floor.json").exists()
    assert "needs at least two SAEs" in refused(run(*given, "--sae", sae_dir))


def test_saes_that_want_another_teacher_are_not_measured_together(bridge: Any, sae: Any, ids: Tensor) -> None:
    folded = copy.deepcopy(sae)
    folded.cfg.metadata.model_from_pretrained_kwargs = {"fold_ln": True}
    with pytest.raises(InputError, match="loaded in different ways"):
        prepare_job(bridge, [sae, folded], ids)
    with pytest.raises(InputError, match="one SAE at a time"):
        measure_job(prepare_job(bridge, [sae, sae], ids), MeasureConfig(cost="ablation"))
