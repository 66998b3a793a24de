"""Names of models: aliases, close matches of unknown names, and layers that are known offline."""

import json
from pathlib import Path

import pytest

from tests.helpers.cli import refused, run
from tests.helpers.hub_cache import add_to_cache
from tests.helpers.models import LAYERS
from tl_distill_floor import InputError, load_teacher
from tl_distill_floor.sources.model_names import (
    MODEL_CHOICES,
    check_layer,
    check_model_name,
    find_n_layers,
    is_possible_name,
    official_name,
    same_model,
)
from tl_distill_floor.sources.sae_directory import choose_known_sae


def test_aliases_and_owners_do_not_change_the_model() -> None:
    assert same_model("gpt2-small", "openai-community/gpt2")
    assert same_model("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped")
    assert not same_model("pythia-70m", "pythia-70m-deduped")


def test_directories_are_one_model_if_their_weights_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory, weights in (("a/final", b"1"), ("b/final", b"2"), ("copy", b"1")):
        Path(directory).mkdir(parents=True)
        Path(directory, "model.safetensors").write_bytes(weights)
    Path("link").symlink_to("a/final")
    assert same_model("a/final", "link")
    assert same_model("a/final/", str(tmp_path / "a" / "final"))
    assert same_model("a/final", "copy")
    assert not same_model("a/final", "b/final")
    # What does not exist is compared by its name.
    assert same_model("a/final", "elsewhere/final")


def test_possible_names_are_known_paths_or_repositories(teacher_dir: Path, hub: Path, tmp_path: Path) -> None:
    for name in ("tiny-prose", "smollm2-135m", "gpt2-small", "PYTHIA-70M", "owner/name", str(teacher_dir)):
        assert is_possible_name(name)
        check_model_name(name)
    for name in ("nosuchmodel", "custom", "", "./missing", "/missing/model", "a/b/c", "x" * 5000):
        assert not is_possible_name(name)
    (tmp_path / "config.json").write_text("{}")
    add_to_cache(hub, "legacy-model", {"config.json": tmp_path / "config.json"})
    assert is_possible_name("legacy-model")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pythia-41m", "did you mean pythia-410m, pythia-31m or pythia-19m? Or give"),
        ("tiny-pros", "did you mean tiny-prose? Or give"),
        ("nosuchmodel", "give"),
    ],
)
def test_suggests_close_matches_of_an_unknown_name(name: str, advice: str) -> None:
    with pytest.raises(InputError) as caught:
        check_model_name(name)
    assert str(caught.value) == f"there is no model {name!r}; {advice} {MODEL_CHOICES}"


def test_load_teacher_suggests_close_matches(hub: Path) -> None:
    with pytest.raises(InputError, match=r"cannot load a teacher from 'pythia-41m'.*; did you mean pythia-410m"):
        load_teacher("pythia-41m")


@pytest.mark.parametrize(
    ("config", "n_layers"),
    [
        ({"num_hidden_layers": 7}, 7),
        ({"n_layer": 7}, 7),
        ({"num_layers": 7}, 7),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 7}}, 7),
        ({"model_type": "unknown"}, None),
        ([7], None),
    ],
)
def test_reads_the_number_of_layers_from_a_configuration(
    config: object, n_layers: int | None, hub: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    add_to_cache(hub, official_name("gpt2-small"), {"config.json": tmp_path / "config.json"})
    for name in (str(tmp_path), "gpt2-small"):
        assert find_n_layers(name) == n_layers


def test_number_of_layers_is_unknown_without_a_readable_configuration(hub: Path, tmp_path: Path) -> None:
    assert find_n_layers("gpt2-small") is None
    assert find_n_layers("not a name") is None
    assert find_n_layers(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    assert find_n_layers(str(tmp_path)) is None
    check_layer(str(tmp_path), 99)


def test_rejects_a_layer_out_of_range(teacher_dir: Path) -> None:
    for layer in (-1, LAYERS):
        with pytest.raises(InputError, match=f"tiny-neox has layers 0 to {LAYERS - 1}, got layer {layer}; set layer="):
            choose_known_sae(str(teacher_dir), layer)
    check_layer(str(teacher_dir), LAYERS - 1)


def test_says_at_which_layers_saes_are_known(hub: Path) -> None:
    with pytest.raises(InputError, match="pythia-410m at layer 24, only at layers 0 to 23; set layer= to one"):
        choose_known_sae("pythia-410m", 24)
    with pytest.raises(InputError, match="tiny-prose at layer 2, only at layer 1; set layer= to one of these"):
        choose_known_sae("tiny-prose", 2)
    with pytest.raises(InputError, match=r"Llama-3\.3-70B-Instruct at layer 1, only at layer 50; set layer="):
        choose_known_sae("meta-llama/Llama-3.3-70B-Instruct", 1)


def test_measure_reports_an_unknown_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(run("measure", "nosuchmodel")) == f"tl-floor: there is no model 'nosuchmodel'; give {MODEL_CHOICES}"
    assert "there is no model 'pythia-41m'; did you mean pythia-410m" in refused(run("measure", "pythia-41m"))
    assert list(tmp_path.iterdir()) == []


def test_measure_reports_a_layer_out_of_range(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(run("measure", "tiny-prose", "--layer", 9))
    assert message == "tl-floor: tiny-prose has layers 0 to 3, got layer 9; set --layer"
    assert f"has layers 0 to {LAYERS - 1}, got layer 9" in refused(run("measure", teacher_dir, "--layer", 9))
