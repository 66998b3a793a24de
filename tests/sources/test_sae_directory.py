"""SAEs that are known by name: of SAELens's directory, of the paper, and the messages for unknown names."""

import re
import subprocess
import sys

import pytest
import torch

from tests.helpers.hub_cache import add_to_cache
from tests.helpers.saes import D_IN, PAPER_FILE, linear_style, random_state, refusal, tiny_sae
from tl_distill_floor.sources.model_names import same_model
from tl_distill_floor.sources.sae_directory import OTHER_MODELS, PAPER_REPOSITORIES, find_saes, sae_directory
from tl_distill_floor.sources.saes import load_sae

# SAELens's directory


@pytest.mark.parametrize("name", ["gpt2", "gpt2-small", "openai-community/gpt2"])
def test_finds_the_saes_of_a_model_by_each_of_its_names(name):
    entries = find_saes(name, 8)
    by_spec = {entry.spec: entry for entry in entries}
    known = by_spec["gpt2-small-res-jb:blocks.8.hook_resid_pre"]
    assert (known.layer, known.hook_name, known.expected_l0) == (8, "blocks.8.hook_resid_pre", 60.0)
    assert known.neuronpedia_id == "gpt2-small/8-res-jb"
    assert by_spec["gpt2-small-mlp-out-v5-32k:blocks.8.hook_mlp_out"].expected_l0 is None  # 0.0 in the directory
    assert by_spec["gpt2-small-hook-z-kk:blocks.8.hook_z"].hook_name == "blocks.8.attn.hook_z"
    assert {entry.layer for entry in entries} == {8}


def test_distinguishes_similar_names():
    assert find_saes("EleutherAI/pythia-70m-deduped") == find_saes("pythia-70m-deduped") != []
    assert find_saes("pythia-70m") == []
    assert find_saes("pythia-410m-deduped") == []
    assert find_saes("no-such-model") == []


def test_reads_layer_and_hook_point_from_each_style_of_id():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    models = {lookup.model for lookup in get_pretrained_saes_directory().values()}
    entries = [entry for model in models for entry in find_saes(model)]
    unknown = [entry.spec for entry in entries if entry.layer is None]
    assert all("embedding/" in spec for spec in unknown)
    assert all(entry.hook_name for entry in entries if entry.layer is not None)
    hooks = {entry.spec: (entry.layer, entry.hook_name) for entry in entries}
    for spec, expected in {
        "gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82": (12, "blocks.12.hook_resid_post"),
        "gemma-scope-2b-pt-att:layer_3/width_16k/average_l0_117": (3, "blocks.3.attn.hook_z"),
        "gemma-scope-2-1b-pt-mlp:layer_7_width_262k_l0_big": (7, "blocks.7.hook_mlp_out"),
        "llama_scope_lxr_8x:l12r_8x": (12, "blocks.12.hook_resid_post"),
        "llama_scope_lxm_32x:l5m_32x": (5, "blocks.5.hook_mlp_out"),
        "qwen-scope-3-8b-base-w64k-l50:layer2": (2, "blocks.2.hook_resid_post"),
        "gpt-oss-20b-andyrdt:resid_post_layer_7_trainer_0": (7, "blocks.7.hook_resid_post"),
    }.items():
        assert hooks[spec] == expected
    refused = re.compile("transcoder|clt|temporal|mistral-7b-res-wg")
    assert not [spec for spec in hooks if refused.search(spec)]


def test_rejects_unsupported_saes_of_the_directory_before_a_download(hub):
    assert "is a transcoder SAE, and" in refusal("gemma-scope-2b-pt-transcoders:layer_0/width_16k/average_l0_76")
    assert "is a transcoder SAE, and" in refusal("mntss-gemma-2-2b-2.5m-clt-as-per-layer:layer_4")
    assert "is a temporal SAE, and" in refusal("temporal-sae-gemma-2-2b:blocks.12.hook_resid_post")
    assert "normalises activations at run time" in refusal("mistral-7b-res-wg:blocks.8.hook_resid_pre")


def test_suggests_close_matches_of_unknown_releases_and_ids(hub):
    assert "did you mean gpt2-small-res-jb" in refusal("gpt2-small-res-jbb:blocks.8.hook_resid_pre")
    assert "did you mean blocks.8.hook_resid_pre" in refusal("gpt2-small-res-jb:blocks.8.hook_resid_prr")
    assert "list those of a model with tl-floor saes MODEL" in refusal("zzzz")
    message = refusal("gpt2-small-res-jb")
    assert "gpt2-small-res-jb has 13 SAEs" in message
    assert message.endswith("and 1 more: tl-floor saes gpt2-small")
    assert "or a layer" not in refusal("gpt2-small-res-jb", layer=99)


def test_loads_an_sae_of_the_directory_from_the_cache(hub, tmp_path, x):
    mine = tiny_sae(metadata={"hook_name": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"})
    weights, config = mine.save_model(tmp_path / "sae")
    folder = "blocks.8.hook_resid_pre"
    files = {f"{folder}/cfg.json": config, f"{folder}/sae_weights.safetensors": weights}
    add_to_cache(hub, "jbloom/GPT2-Small-SAEs-Reformatted", files)
    by_repository = f"jbloom/GPT2-Small-SAEs-Reformatted:{folder}"
    for spec, options in (
        (f"gpt2-small-res-jb:{folder}", {}),
        ("gpt2-small-res-jb", {"layer": 8}),
        (by_repository, {}),
    ):
        source = load_sae(spec, **options)
        assert source.name == f"gpt2-small-res-jb:{folder}"
        assert (source.expected_l0, source.neuronpedia_id) == (60.0, "gpt2-small/8-res-jb")
        torch.testing.assert_close(source.sae(x), mine(x))


def test_lists_the_saes_of_an_instruct_model_that_the_directory_takes_for_the_base_model():
    specs = {
        name: {entry.spec.partition(":")[0] for entry in find_saes(name)} for name in ("gemma-2-9b-it", "gemma-2-9b")
    }
    assert "gemma-scope-9b-it-res" in specs["gemma-2-9b-it"] - specs["gemma-2-9b"]
    assert "gemma-scope-9b-pt-res" in specs["gemma-2-9b"] - specs["gemma-2-9b-it"]


@pytest.mark.parametrize("function", ["gemma_2", "qwen_scope", "goodfire", "deepseek_r1"])
def test_the_directory_names_the_models_that_saelens_reads_from_repositories(function):
    """An SAE would otherwise be listed for another model than the one that it can be measured with."""
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_CONFIG_GETTERS

    get_config = NAMED_PRETRAINED_SAE_CONFIG_GETTERS[function]
    releases = {name: release for name, release in sae_directory().items() if release.conversion_func == function}
    assert releases
    for name, release in releases.items():
        path = next(iter(release.saes_map.values()))
        model = get_config(release.repo_id, path, "cpu")["model_name"]
        assert same_model(model, OTHER_MODELS.get(name, release.model)), name


def test_reports_a_missing_network(hub):
    for spec in ("gpt2-small-res-jb:blocks.8.hook_resid_pre", "someone/something", "someone/something:sae.pt"):
        assert "is not in the local cache and the Hub cannot be reached" in refusal(spec)
    assert refusal("a/b:c").startswith("a/b is not in the local cache")


# The paper's SAEs


def test_lists_the_papers_saes_with_the_adaptive_one_first():
    for name in ("pythia-410m", "EleutherAI/pythia-410m"):
        entries = find_saes(name, 12)
        assert [entry.spec for entry in entries] == [f"{repository}:{PAPER_FILE}" for repository in PAPER_REPOSITORIES]
        assert {(entry.layer, entry.hook_name) for entry in entries} == {(12, "blocks.12.hook_resid_post")}
    assert len(find_saes("pythia-410m")) == 72
    assert find_saes("pythia-410m", 24) == []


def test_loads_the_papers_sae_for_its_model_and_layer(hub, tmp_path, x):
    state = random_state()
    b_pre = torch.arange(D_IN) / 10
    content = {"model_state": linear_style(state) | {"b_pre": b_pre}, "config": {"d_in": D_IN}, "stats": {"l0": 3.0}}
    torch.save(content, tmp_path / PAPER_FILE)
    add_to_cache(hub, PAPER_REPOSITORIES[0], {PAPER_FILE: tmp_path / PAPER_FILE})
    for spec, model_name in ((None, "pythia-410m"), (PAPER_REPOSITORIES[0], None)):
        source = load_sae(spec, model_name=model_name, layer=12, d_in=D_IN)
        assert source.name == f"{PAPER_REPOSITORIES[0]}:{PAPER_FILE}"
        assert (source.hook_name, source.model_name) == ("blocks.12.hook_resid_post", "EleutherAI/pythia-410m")
        codes = torch.relu((x - b_pre) @ state["W_enc"] + state["b_enc"])
        reconstruction = codes @ state["W_dec"] + state["b_dec"] + b_pre
        torch.testing.assert_close(source.sae(x), reconstruction, rtol=1e-4, atol=1e-5)


def output_of(code: str) -> str:
    """Return what a new Python process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_module_imports_neither_torch_nor_sae_lens():
    code = "import sys; from tl_distill_floor.sources import saes; print({'torch', 'sae_lens'} & set(sys.modules))"
    assert output_of(code) == "set()"


@pytest.mark.slow
def test_subprocess_reads_the_same_cache(hub, tmp_path):
    model_state = linear_style(random_state()) | {"b_pre": torch.zeros(D_IN)}
    torch.save({"model_state": model_state, "config": {}, "stats": {}}, tmp_path / PAPER_FILE)
    add_to_cache(hub, PAPER_REPOSITORIES[0], {PAPER_FILE: tmp_path / PAPER_FILE})
    code = "from tl_distill_floor.sources.saes import load_sae;"
    code += "print(load_sae(None, model_name='pythia-410m', layer=12).name)"
    assert output_of(code) == f"{PAPER_REPOSITORIES[0]}:{PAPER_FILE}"


# No SAE named


def test_without_a_name_takes_the_only_sae_or_lists_several(hub):
    message = refusal(None, model_name="gpt2", layer=8)
    assert "gpt2 at layer 8 has" in message
    assert "with sae=: gpt2-small-res-jb:blocks.8.hook_resid_pre, gpt2" in message  # the residual stream first
    assert message.endswith("more: tl-floor saes gpt2")
    message = refusal(None, model_name="pythia-410m")
    assert "pythia-410m has 72 SAEs, give one of them with sae= or a layer with layer=: nileshsarkar-ai/" in message
    assert "tl-floor train-sae pythia-160m --layer 4" in refusal(None, model_name="pythia-160m", layer=4)
    assert "tl-floor train-sae pythia-160m --layer L" in refusal(None, model_name="pythia-160m")
    assert "no SAE was named" in refusal(None)
    only = refusal(None, model_name="meta-llama/Llama-3.3-70B-Instruct")  # the only one, which is not in the cache
    assert "goodfire-llama-3.3-70b-instruct:layer_50 is not in the local cache" in only


def test_does_not_take_missing_paths_for_repositories(hub, tmp_path):
    for spec in (tmp_path / "nothing", "./nothing", "~/no/such/sae", "folder/sae.pt"):
        assert "there is no file or folder" in refusal(spec)
