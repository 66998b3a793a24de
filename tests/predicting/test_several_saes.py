"""Several layers, or several SAEs of one, in one pass: the same numbers as one by one."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.helpers.cli import refused, run
from tests.helpers.measurements import same_numbers
from tl_distill_floor import FeatureStats, InputError, measure
from tl_distill_floor.display.comparison import binding
from tl_distill_floor.measuring.job import prepare_job
from tl_distill_floor.measuring.measurement import measure_subject
from tl_distill_floor.predicting.predict import predict_floors


@pytest.fixture(scope="module")
def other_sae(sae: Any) -> Any:
    """The same weights as an SAE of layer 0, with another bias."""
    made = copy.deepcopy(sae)
    made.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    made.b_enc.data.sub_(0.5)
    return made


@pytest.fixture(scope="module")
def layers_dir(sae: Any, other_sae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saes-by-layer")
    for layer, made in enumerate((other_sae, sae)):
        made.save_model(directory / f"layer{layer}")
    return directory


@pytest.mark.parametrize("cost", ["energy", "fisher"])
def test_together_is_one_by_one(cost: str, bridge: Any, sae: Any, other_sae: Any, ids: Tensor, tmp_path: Path) -> None:
    saes = [sae, other_sae, sae]
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    job = prepare_job(bridge, saes, ids, batch_size=8)
    together = measure_subject(job, cost=cost, checkpoints=files)
    for found, each in zip(together, saes, strict=True):
        alone = measure(bridge, each, ids, batch_size=8, cost=cost)
        assert found.hook_name == alone.hook_name
        np.testing.assert_array_equal(found.firing_count, alone.firing_count)
        np.testing.assert_allclose(found.cost, alone.cost, rtol=1e-4, atol=1e-9)
    # One that was saved a block before the others catches up.
    first_half = measure_subject(job, cost=cost, n_tokens=16 * 32, n_codes=10**6, checkpoints=[None] * 3)
    whole = measure_subject(job, cost=cost, n_codes=10**6)
    first_half[1].save(files[1])
    for i in (0, 2):
        whole[i].save(files[i])
    resumed = measure_subject(job, cost=cost, n_codes=10**6, checkpoints=files, resume=True)
    for found, expected in zip(resumed, whole, strict=True):
        same_numbers(found, expected)


def test_the_layer_with_the_largest_floor_binds(bridge: Any, sae: Any, other_sae: Any, ids: Tensor) -> None:
    floors = predict_floors(bridge, [other_sae, sae], ids, widths=[2, 8], steps=20)
    assert [floor.stats.hook_name for floor in floors] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for width, largest in enumerate(binding(floors)):
        assert floors[largest].expected[width] == max(floor.expected[width] for floor in floors)


def test_several_layers_of_the_command_line(
    teacher_dir: Path, layers_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sae = layers_dir / "layer{layer}"
    given = ("measure", teacher_dir, "--text", prose_file, "--batch-size", 4, "--steps", 20, "--widths", "2,8")
    shown = run(*given, "--layer", "0,1", "--sae", sae)
    assert shown.exit_code == 0, shown.output
    for word in ("Expected floor (nats/token)", "largest", "that layer binds", "runs/tiny-neox-layer0"):
        assert word in shown.stdout.replace("\n", " ")
    assert FeatureStats.load(tmp_path / "runs" / "tiny-neox-layer0").hook_name == "blocks.0.hook_resid_post"
    found = json.loads(run(*given, "--layer", "all", "--sae", sae, "--json", "--out", "both").stdout)
    assert [each["hook"] for each in found["predictions"]] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert len(found["largest"]) == 2
    assert (tmp_path / "both" / "layer1" / "tail.safetensors").exists()
    assert "write {layer}" in refused(run(*given, "--layer", "0,1", "--sae", layers_dir / "layer0"))
    assert "try 4,8,12" in refused(run(*given, "--layer", "0-1"))
    assert "no SAE is known" in refused(run(*given, "--layer", "all", "--sae", layers_dir / "layer0"))


def test_comparing_saes(
    teacher_dir: Path, layers_dir: Path, sae_dir: Path, prose_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("compare", teacher_dir, "--text", prose_file, "--batch-size", 4, "--steps", 0, "--widths", "2,8")
    result = run(*given, "--sae", sae_dir, "--sae", layers_dir / "layer1")
    assert result.exit_code == 0, result.output
    assert "Which SAE has the larger floor is the same at every width" in result.stdout.replace("\n", " ")
    assert (tmp_path / "runs" / "tiny-neox-compared" / "sae1" / "floor.json").exists()
    assert "takes two SAEs or more" in refused(run(*given, "--sae", sae_dir))


def test_saes_that_want_another_teacher_are_not_measured_together(bridge: Any, sae: Any, ids: Tensor) -> None:
    folded = copy.deepcopy(sae)
    folded.cfg.metadata.model_from_pretrained_kwargs = {"fold_ln": True}
    with pytest.raises(InputError, match="loaded in different ways"):
        prepare_job(bridge, [sae, folded], ids)
    with pytest.raises(InputError, match="one SAE at a time"):
        measure_subject(prepare_job(bridge, [sae, sae], ids), cost="ablation")
