"""The paper's case, `tl-floor measure pythia-410m --layer 12`, with small random files in a Hub cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.cli import refused, run
from tests.helpers.hub_cache import add_to_cache, use_cache
from tests.helpers.models import FEATURES, WIDTH, save_teacher
from tl_distill_floor import measure
from tl_distill_floor.sources.sae_directory import PAPER_REPOSITORIES


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, sae: Any) -> Path:
    """A Hub cache with a 13-layer EleutherAI/pythia-410m of 24 dimensions, and the paper's SAE of its layer 12."""
    folder, cache = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("hub")
    model = save_teacher(folder / "model", tokenizer, layers=13)
    add_to_cache(cache, "EleutherAI/pythia-410m", {file.name: file for file in model.iterdir()})
    weights = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "decoder.weight": sae.W_dec.T}
    biases = {"decoder.bias": sae.b_dec, "b_pre": torch.zeros_like(sae.b_dec)}
    state = {"model_state": {**weights, **biases}, "config": {"step": 300_000_000}, "stats": {}}
    torch.save(state, folder / "sae.pt")
    add_to_cache(cache, PAPER_REPOSITORIES[0], {"sae_layer12_final.pt": folder / "sae.pt"})
    return cache


def test_command_runs_offline(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, hub)
    monkeypatch.chdir(tmp_path)
    quick = ("--tokens", 2000, "--steps", 10, "--widths", "8,24", "--no-head")
    done = run("measure", "pythia-410m", "--layer", 12, *quick)
    assert done.exit_code == 0, done.output
    assert "pythia-410m, blocks.12.hook_resid_post (24 dimensions)" in done.stdout
    floor = json.loads((tmp_path / "runs" / "pythia-410m-layer12" / "floor.json").read_text())
    assert 0 < floor["n_features"] <= FEATURES
    assert floor["widths"][-1] == WIDTH


def test_loads_the_teacher_with_the_processing_that_the_sae_was_trained_on(
    hub: Path, sae: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Centred writing weights give a residual stream of mean 0; `trust_remote_code` in the metadata is ignored."""
    pytest.importorskip("transformer_lens.HookedTransformer")
    use_cache(monkeypatch, hub)
    sae.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    centering = {"center_writing_weights": True, "trust_remote_code": True}
    for kwargs, kind in (({"center_writing_weights": False}, "TransformerBridge"), (centering, "HookedTransformer")):
        config["metadata"] |= {"model_name": "pythia-410m", "model_from_pretrained_kwargs": kwargs}
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        stats = measure("pythia-410m", tmp_path, ids)
        assert stats.settings["teacher"]["class"] == kind
        centred = abs(stats.sampled_sum.mean()) < 1e-4 * abs(stats.sampled_sum).max()
        assert centred == (kind == "HookedTransformer")
    assert stats.settings["teacher"] == {"class": kind, "dtype": "float32", "center_writing_weights": True}


def test_reports_files_that_are_not_in_the_cache(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, hub)
    monkeypatch.chdir(tmp_path)
    assert "the Hub cannot be reached" in refused(run("measure", "pythia-410m", "--layer", 11))
    assert "tl-floor train-sae pythia-160m --layer 3" in refused(run("measure", "pythia-160m", "--layer", 3))
    error = refused(run("measure", "pythia-410m", "--layer", 24))
    assert error == "tl-floor: pythia-410m has layers 0 to 12, got layer 24; set --layer"
