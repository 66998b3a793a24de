"""Test `--sae-format`, which says what the keys of an SAE's file mean."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers.cli import refused, run


@pytest.fixture
def state_dict(sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the random SAE as a bare state dict; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "files" / "sae.safetensors"
    file.parent.mkdir()
    save_file(load_file(sae_dir / "sae_weights.safetensors"), file)
    return file


def test_measure_and_compare_read_a_state_dict_as_it_is_explained(
    state_dict: Path, sae_dir: Path, teacher_dir: Path, prose_file: Path
) -> None:
    quick = (
        "--text",
        prose_file,
        "--batch-size",
        4,
        "--steps",
        0,
        "--cost",
        "energy",
        "--layer",
        1,
        "--context-size",
        32,
        "--json",
    )
    keys = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    sae_format = json.dumps(keys | {"activation": "relu", "subtract_b_dec": True})
    known = json.loads(run("measure", teacher_dir, "--sae", sae_dir, *quick, "--out", "a").stdout)
    explained = run("measure", teacher_dir, "--sae", state_dict, "--sae-format", sae_format, *quick, "--out", "b")
    printed = json.loads(explained.stdout)
    assert (printed["l0"], printed["fvu"], printed["n_features"]) == (known["l0"], known["fvu"], known["n_features"])
    both = ("--sae", state_dict, "--sae", state_dict, "--sae-format", sae_format)
    compared = run("compare", teacher_dir, *both, *quick, "--out", "c")
    assert compared.exit_code == 0, compared.output


def test_rejects_a_state_dict_without_an_explanation(state_dict: Path, teacher_dir: Path, sae_dir: Path) -> None:
    message = refused(run("measure", teacher_dir, "--sae", state_dict, "--layer", 1))
    assert "nothing says whether its activation is ReLU, TopK or another one" in message
    assert '--sae-format \'{"W_enc": "W_enc"' in message
    options = ("--sae-format", "sparsify")
    assert "leave out --sae-format" in refused(run("measure", teacher_dir, "--sae", sae_dir, *options))
    assert "name it with --sae" in refused(run("measure", teacher_dir, *options))
