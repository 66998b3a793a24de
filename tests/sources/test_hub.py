"""SAEs of Hub repositories, read from a cache, and the messages for the Hub's errors."""

import importlib
import json

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from tests.helpers.hub_cache import add_to_cache
from tests.helpers.saes import D_IN, D_SAE, linear_style, random_state, refusal, tiny_sae
from tl_distill_floor.sources.saes import load_sae

FINAL_AND_EARLIER = ("ae.pt", "checkpoints/ae_0.pt", "checkpoints/ae_100.pt")


def test_searches_a_repository_for_its_sae(hub, tmp_path, x):
    mine = tiny_sae()
    weights, config = mine.save_model(tmp_path / "sae")
    add_to_cache(hub, "me/one", {"cfg.json": config, "sae_weights.safetensors": weights, "README.md": config})
    torch.testing.assert_close(load_sae("me/one").sae(x), mine(x))
    torch.testing.assert_close(load_sae("me/one:sae_weights.safetensors").sae(x), mine(x))
    two = {f"layer_{layer}/{file.name}": file for layer in (3, 11) for file in (config, weights)}
    add_to_cache(hub, "me/two", two)
    assert (
        "me/two has 2 SAEs, give one of them with sae= or a layer with layer=: me/two:layer_11, me/two:layer_3"
        in refusal("me/two")
    )
    assert load_sae("me/two", layer=11).name == "me/two:layer_11"
    torch.testing.assert_close(load_sae("me/two:layer_3").sae(x), mine(x))
    add_to_cache(hub, "me/none", {"README.md": config})
    assert "me/none holds no SAE that can be read" in refusal("me/none")


def test_reads_a_file_on_the_hub_with_the_config_of_its_folder(hub, tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 5, "d_in": D_IN, "num_latents": D_SAE, "activation": "topk"}))
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    files = {"layers.5/sae.pt": tmp_path / "sae.pt", "layers.5/cfg.json": tmp_path / "cfg.json"}
    state = {name.replace("decoder.bias", "b_dec"): tensor for name, tensor in linear_style(random_state()).items()}
    torch.save(state, tmp_path / "sae.pt")
    add_to_cache(hub, "me/sparse", files | {"config.json": tmp_path / "config.json"})
    for spec in ("me/sparse:layers.5/sae.pt", "me/sparse:layers.5", "me/sparse"):
        source = load_sae(spec)
        assert (source.architecture, source.sae.cfg.k, source.name) == ("topk", 5, "me/sparse:layers.5/sae.pt")
        assert (source.hook_name, source.model_name) == ("blocks.5.hook_resid_post", "EleutherAI/pythia-70m")


def test_a_config_that_cannot_be_downloaded_is_not_left_out(hub, tmp_path, monkeypatch):
    """Without its config, this file would be read as an SAE of activations that are not normalised."""
    torch.save(random_state() | {"threshold": torch.ones(D_SAE), "b_dec": torch.zeros(D_IN)}, tmp_path / "sae.pt")
    add_to_cache(hub, "me/normalised", {"sae.pt": tmp_path / "sae.pt"})
    assert load_sae("me/normalised:sae.pt").architecture == "jumprelu"
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda _repository: ["cfg.json", "sae.pt"])
    expected = "me/normalised:cfg.json is not in the local cache and the Hub cannot be reached"
    assert expected in refusal("me/normalised:sae.pt")
    assert expected in refusal("me/normalised")


def test_leaves_out_the_checkpoints_of_an_sae(hub, tmp_path):
    tensors = {name: tensor for name, tensor in linear_style(random_state()).items() if name != "decoder.bias"}
    torch.save(tensors | {"bias": torch.zeros(D_IN)}, tmp_path / "ae.pt")
    files = {f"resid_post_layer_3/trainer_{n}/{name}": tmp_path / "ae.pt" for n in (0, 1) for name in FINAL_AND_EARLIER}
    add_to_cache(hub, "me/dictionaries", files)
    source = load_sae("me/dictionaries:resid_post_layer_3/trainer_1")
    assert source.name == "me/dictionaries:resid_post_layer_3/trainer_1/ae.pt"
    assert source.hook_name == "blocks.3.hook_resid_post"
    message = refusal("me/dictionaries:resid_post_layer_3")
    assert "has 2 SAEs" in message
    assert "me/dictionaries:resid_post_layer_3/trainer_0/ae.pt" in message


def test_reads_llama_scope_as_its_authors_do(hub, tmp_path, x):
    """SAELens leaves out the norm of the decoder's rows."""
    state, hook = random_state(), "blocks.15.hook_resid_post"
    hyperparams = {
        "hook_point_in": hook, "hook_point_out": hook, "d_model": D_IN, "d_sae": D_SAE, "act_fn": "jumprelu",
        "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise", "top_k": 50, "use_decoder_bias": True,
        "dataset_average_activation_norm": {"in": 9.0, "out": 9.0}, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyperparams))
    save_file({name: t.contiguous() for name, t in linear_style(state).items()}, tmp_path / "final.safetensors")
    files = {"hyperparams.json": "hyperparams.json", "checkpoints/final.safetensors": "final.safetensors"}
    folder = "Llama3_1-8B-Base-L15R-8x"
    add_to_cache(hub, "fnlp/Llama3_1-8B-Base-LXR-8x", {f"{folder}/{to}": tmp_path / at for to, at in files.items()})
    pre = x @ state["W_enc"] + state["b_enc"] * 9 / D_IN**0.5  # of activations as they are
    is_active = pre * state["W_dec"].norm(dim=1) > 0.5
    assert 0.1 < float(is_active.float().mean()) < 0.9
    for spec in ("llama_scope_lxr_8x:l15r_8x", f"fnlp/Llama3_1-8B-Base-LXR-8x:{folder}"):
        source = load_sae(spec)
        torch.testing.assert_close(source.sae(x), pre * is_active @ state["W_dec"] + state["b_dec"] * 9 / D_IN**0.5)
        assert (source.name, source.hook_name) == ("llama_scope_lxr_8x:l15r_8x", hook)
        assert (source.model_name, source.expected_l0) == ("meta-llama/Llama-3.1-8B", 50)
        assert source.neuronpedia_id == "llama3.1-8b/15-llamascope-res-32k"


def test_reads_llama_scope_of_a_distilled_model_as_its_authors_do(hub, tmp_path, x):
    """SAELens leaves out the norm of the decoder's rows, and names the model that the teacher was trained from."""
    state, hook = random_state(), "blocks.15.hook_resid_post"
    config = {
        "sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": D_IN, "expansion_factor": 4,
        "act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "top_k": 50,
    }  # fmt: skip
    threshold = torch.linspace(0.1, 3.0, D_SAE)
    tensors = {"log_jumprelu_threshold": threshold.log(), f"dataset_average_activation_norm.{hook}": torch.tensor(9.0)}
    files = {"config.json": tmp_path / "config.json", "sae_weights.safetensors": tmp_path / "weights.safetensors"}
    files["config.json"].write_text(json.dumps(config))
    tensors |= {name: t.contiguous() for name, t in linear_style(state).items()}
    save_file(tensors, files["sae_weights.safetensors"])
    folder = "800M-Slimpajama-0-OpenR1-Math-220k/L15R"
    for repository in ("fnlp/Llama-Scope-R1-Distill", "me/mirror"):
        add_to_cache(hub, repository, {f"{folder}/{name}": file for name, file in files.items()})
    scale = D_IN**0.5 / 9
    pre = scale * x @ state["W_enc"] + state["b_enc"]
    is_active = pre * state["W_dec"].norm(dim=1) > threshold
    assert (is_active != (pre > threshold)).float().mean() > 0.05  # as SAELens reads it
    expected = (pre.relu() * is_active @ state["W_dec"] + state["b_dec"]) / scale
    release = "llama_scope_r1_distill:l15r_800m_slimpajama"
    for spec in (release, f"fnlp/Llama-Scope-R1-Distill:{folder}"):
        source = load_sae(spec)
        torch.testing.assert_close(source.sae(x), expected)
        assert (source.name, source.hook_name, source.expected_l0) == (release, hook, None)
        assert source.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    for spec in ("me/mirror", f"me/mirror:{folder}", f"me/mirror:{folder}/sae_weights.safetensors"):
        torch.testing.assert_close(load_sae(spec).sae(x), expected)


# The HTTP client of huggingface_hub: httpx, and from version 2 on httpx2.
httpx = importlib.import_module(errors.HTTPError.__module__)


def http_error(error: type, status: int) -> Exception:
    """Return an error as huggingface_hub raises it for an HTTP status."""
    request = httpx.Request("HEAD", "https://hub.invalid")
    return error("many\nlines", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(errors.GatedRepoError, 403), "is gated; accept its terms on the Hub, then type hf auth login"),
        (http_error(errors.RepositoryNotFoundError, 404), "neither a local path nor a public repository of the Hub"),
        (http_error(errors.RemoteEntryNotFoundError, 404), "does not exist on the Hub"),
        (http_error(errors.HfHubHTTPError, 500), "could not be loaded as an SAE (HfHubHTTPError: many)"),
        (httpx.ConnectError("no"), "is not in the local cache and the Hub cannot be reached"),
    ],
)
def test_explains_errors_of_the_hub(error, expected, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    assert expected in refusal("me/mine:folder")
    assert expected in refusal("me/mine")
