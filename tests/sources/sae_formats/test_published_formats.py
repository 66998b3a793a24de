"""Files of each published format, compared with codes and reconstructions computed in plain PyTorch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.sae_files import per_feature_threshold, random_bias, save_tensors, top_k, write_json
from tests.helpers.saes import D_IN, D_SAE, linear_style, refusal
from tl_distill_floor.sources.saes import SaeSource, load_sae


def check(source: SaeSource, x: torch.Tensor, codes: torch.Tensor, reconstruction: torch.Tensor) -> None:
    """Compare an SAE's codes and reconstruction with independent ones, of which some are zero and some are not."""
    assert 0.02 < float((codes != 0).float().mean()) < 0.9
    torch.testing.assert_close(source.sae.encode(x), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(source.sae(x), reconstruction, rtol=1e-4, atol=1e-5)


# EleutherAI sparsify


SPARSIFY = {"activation": "topk", "k": 3, "num_latents": D_SAE, "d_in": D_IN, "normalize_decoder": True}


def write_sparsify(folder: Path, state, **config) -> Path:
    """Write a folder as sparsify does."""
    names = {"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]}
    save_tensors(folder / "sae.safetensors", names | {"W_dec": state["W_dec"], "b_dec": state["b_dec"]})
    write_json(folder / "cfg.json", SPARSIFY | config)
    write_json(folder.parent / "config.json", {"model": "EleutherAI/pythia-70m", "ctx_len": 2048})
    return folder


@pytest.mark.parametrize(
    ("folder", "hook_name"),
    [
        ("layers.12", "blocks.12.hook_resid_post"),
        ("layers.12.mlp", "blocks.12.hook_mlp_out"),
        ("gpt_neox.layers.2.attention", "blocks.2.hook_attn_out"),
        ("h.3", "blocks.3.hook_resid_post"),
        ("best", None),
    ],
)
def test_sparsify_reads_k_and_the_hook_point_of_its_folder(folder, hook_name, tmp_path, state, x):
    source = load_sae(write_sparsify(tmp_path / folder, state), d_in=D_IN)
    codes = top_k((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"], 3)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name, source.context_size) == (hook_name, "EleutherAI/pythia-70m", 2048)
    assert (source.architecture, source.expected_l0) == ("topk", 3)


def test_sparsify_signed_keeps_the_largest_magnitudes(tmp_path, state, x):
    source = load_sae(write_sparsify(tmp_path / "layers.1", state, signed=True))
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    order = pre.abs().argsort(dim=1, descending=True)[:, :3]
    codes = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order))
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert bool((codes < 0).any())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"transcode": True}, "is a transcoder or has a skip connection (transcode=True)"),
        ({"skip_connection": True}, "(skip_connection=True)"),
        ({"embed_skip": True}, "(embed_skip=True)"),
        ({"gram_lookup": True}, "gram_lookup=True in cfg.json, which changes its codes"),
        ({"activation": "groupmax"}, "activation='groupmax'"),
        ({"k": 0}, "k=0, expected an integer from 1 to 20"),
    ],
)
def test_sparsify_refuses_what_it_cannot_measure(config, expected, tmp_path, state):
    assert expected in refusal(write_sparsify(tmp_path / "layers.1", state, **config))


def test_sparsify_refuses_the_transcoders_of_a_training(tmp_path, state):
    folder = write_sparsify(tmp_path / "layers.1.mlp", state)
    write_json(tmp_path / "config.json", {"model": "EleutherAI/pythia-70m", "transcode": False, "ctx_len": 64})
    assert load_sae(folder).context_size == 64
    write_json(tmp_path / "config.json", {"model": "EleutherAI/pythia-70m", "transcode": True, "ctx_len": 64})
    assert "is a transcoder or has a skip connection (transcode=True)" in refusal(folder)


def test_sparsify_refuses_a_hook_point_that_transformer_lens_does_not_have(tmp_path, state):
    folder = write_sparsify(tmp_path / "layers.1.mlp.act", state)
    assert "reads 'layers.1.mlp.act', which is not a known hook point" in refusal(folder)
    named = load_sae(folder, sae_format='{"hook_name": "blocks.1.mlp.hook_post"}')
    assert named.hook_name == "blocks.1.mlp.hook_post"


# dictionary_learning


def write_dictionary(folder: Path, dict_class: str, tensors, **trainer) -> Path:
    """Write a folder as dictionary_learning does."""
    save_tensors(folder / "ae.pt", tensors)
    settings = {
        "dict_class": dict_class,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    }
    content = {"trainer": settings | trainer, "buffer": {"d_submodule": D_IN, "io": "out", "ctx_len": 128}}
    write_json(folder / "config.json", content)
    return folder


def linear(state, bias: str) -> dict[str, torch.Tensor]:
    """Return weights with the names of two `nn.Linear` modules and a bias of the decoder's side."""
    return {name: t for name, t in linear_style(state).items() if name != "decoder.bias"} | {bias: state["b_dec"]}


def test_auto_encoder_subtracts_and_adds_its_bias(tmp_path, state, x):
    folder = write_dictionary(tmp_path, "AutoEncoder", linear(state, "bias"), submodule_name="resid_post_layer_3")
    codes = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    source = load_sae(folder)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name) == ("blocks.3.hook_resid_post", "EleutherAI/pythia-70m-deduped")
    assert (source.context_size, source.expected_l0) == (128, None)
    (folder / "config.json").unlink()  # no other class has these names
    check(load_sae(folder / "ae.pt"), x, codes, codes @ state["W_dec"] + state["b_dec"])


def test_auto_encoder_new_only_adds_its_bias(tmp_path, state, x):
    source = load_sae(write_dictionary(tmp_path, "AutoEncoderNew", linear_style(state)))
    codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert source.hook_name is None
    assert "reads layer 3, not layer 5" in refusal(tmp_path, layer=5)


def test_auto_encoder_top_k_does_not_use_its_threshold(tmp_path, state, x):
    tensors = linear(state, "b_dec") | {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(0.7)}
    source = load_sae(write_dictionary(tmp_path, "AutoEncoderTopK", tensors, k=4, submodule_name="mlp_out"))
    codes = top_k((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"], 4)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.expected_l0) == ("blocks.3.hook_mlp_out", 4)


@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_top_k_uses_its_threshold_and_subtracts_b_dec(dict_class, tmp_path, state, x):
    matryoshka = dict_class.startswith("Matryoshka")
    tensors = dict(state) | {"group_sizes": torch.tensor([8, 12])} if matryoshka else linear(state, "b_dec")
    tensors = tensors | {"k": torch.tensor(5, dtype=torch.int), "threshold": torch.tensor(1.5)}
    source = load_sae(write_dictionary(tmp_path / "resid_post_layer_3" / "trainer_0", dict_class, tensors, k=5))
    post = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    codes = post * (post > 1.5)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.architecture, source.expected_l0, source.hook_name) == ("jumprelu", 5, "blocks.3.hook_resid_post")


def test_jump_relu_auto_encoder_subtracts_nothing(tmp_path, state, x):
    threshold = per_feature_threshold()
    source = load_sae(write_dictionary(tmp_path, "JumpReluAutoEncoder", state | {"threshold": threshold}))
    pre = x @ state["W_enc"] + state["b_enc"]
    codes = pre * (pre > threshold)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])


@pytest.mark.parametrize(
    ("dict_class", "extra", "trainer", "expected"),
    [
        ("IdentityDict", {}, {}, "class IdentityDict of dictionary_learning, whose codes cannot be measured"),
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, {}, "has no threshold yet"),
        ("AutoEncoderTopK", {}, {}, "neither it nor its config.json holds k"),
        ("AutoEncoderTopK", {"odd": torch.ones(3)}, {"k": 3}, "is said to be of the class AutoEncoderTopK"),
        ("AutoEncoderTopK", {}, {"k": 3, "norm_factor": 7.5}, "norm_factor=7.5"),
        ("AutoEncoderTopK", {}, {"k": 3, "submodule_name": "resid_post_layer_4"}, "and layer 3 as what it reads"),
        ("AutoEncoderTopK", {}, {"k": 3, "submodule_name": "router"}, "reads 'router', which is not a known hook"),
        ("CrossCoder", {}, {}, "is a transcoder or has a skip connection (dict_class='CrossCoder')"),
    ],
)
def test_dictionary_learning_refuses_what_it_cannot_measure(dict_class, extra, trainer, expected, tmp_path, state):
    folder = write_dictionary(tmp_path, dict_class, linear(state, "b_dec") | extra, **trainer)
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("name", "hook_name", "module"),
    [
        ("model.layers[3]", "blocks.3.hook_resid_post", "model.layers.3"),
        ("resid_layer_3", "blocks.3.hook_resid_post", None),
        ("mlp_layer_3", "blocks.3.hook_mlp_out", "layers.3.mlp"),  # in Gemma 2 not what TransformerLens calls so
        ("mlp", "blocks.3.hook_mlp_out", "layers.3.mlp"),
        ("attn_out", "blocks.3.hook_attn_out", "layers.3.self_attn"),
        ("blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out", None),
        ("gpt_neox.layers.3.attention", "blocks.3.hook_attn_out", "gpt_neox.layers.3.attention"),
    ],
)
def test_dictionary_learning_names_submodules_in_many_ways(name, hook_name, module, tmp_path, state):
    folder = write_dictionary(tmp_path / "mlp_out", "AutoEncoder", linear(state, "bias"), submodule_name=name)
    source = load_sae(folder)
    assert (source.hook_name, source.module_name) == (hook_name, module)


def test_dictionary_learning_refuses_inputs_of_modules(tmp_path, state):
    folder = write_dictionary(tmp_path, "AutoEncoder", linear(state, "bias"))
    write_json(folder / "config.json", {"trainer": {"dict_class": "AutoEncoder"}, "buffer": {"io": "in"}})
    assert "reads the 'in' of its module" in refusal(folder)


# Gemma Scope


def write_gemma_scope(path: Path, state, threshold) -> Path:
    """Write the archive of Gemma Scope."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.numpy() for name, tensor in (state | {"threshold": threshold}).items()}
    np.savez(path, **arrays)
    return path


def test_gemma_scope_reads_layer_site_and_l0_of_its_path(tmp_path, state, x):
    threshold = per_feature_threshold()
    folder = tmp_path / "google" / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    write_gemma_scope(folder / "params.npz", state, threshold)
    pre = x @ state["W_enc"] + state["b_enc"]
    codes = pre * (pre > threshold)
    for spec in (folder, folder / "params.npz"):
        source = load_sae(spec)
        check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
        assert (source.hook_name, source.model_name) == ("blocks.12.hook_resid_post", "google/gemma-2-2b")
        assert (source.expected_l0, source.context_size, source.prepend_bos) == (82, 1024, True)


def test_gemma_scope_refuses_transcoders_and_embeddings(tmp_path, state):
    for folder, expected in (
        ("gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_8", "is a transcoder, and it reads one hook"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "reads scaled embeddings"),
    ):
        path = write_gemma_scope(tmp_path / folder / "params.npz", state, per_feature_threshold())
        assert expected in refusal(path)


def test_archives_with_pickled_objects_are_refused(tmp_path, state):
    np.savez(tmp_path / "params.npz", W_enc=np.array([print, {}], dtype=object))
    assert "is not a complete NumPy archive" in refusal(tmp_path / "params.npz")
    (tmp_path / "params.npz").write_bytes(b"hello")
    assert "is not a complete NumPy archive" in refusal(tmp_path / "params.npz")


GEMMA_SCOPE_2 = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "l0": 20}


@pytest.mark.parametrize(
    ("hook_point", "hook_name"),
    [
        ("model.layers.7.output", "blocks.7.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "blocks.7.attn.hook_z"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
    ],
)
def test_gemma_scope_2_reads_its_config(hook_point, hook_name, tmp_path, state, x):
    threshold = per_feature_threshold()
    names = {"w_enc": state["W_enc"], "w_dec": state["W_dec"], "b_enc": state["b_enc"], "b_dec": state["b_dec"]}
    save_tensors(tmp_path / "params.safetensors", names | {"threshold": threshold})
    write_json(tmp_path / "config.json", GEMMA_SCOPE_2 | {"hf_hook_point_in": hook_point, "hf_hook_point_out": None})
    pre = x @ state["W_enc"] + state["b_enc"]
    codes = pre * (pre > threshold)
    source = load_sae(tmp_path)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name, source.expected_l0) == (hook_name, "google/gemma-3-1b-pt", 20)
    write_json(tmp_path / "config.json", GEMMA_SCOPE_2 | {"hf_hook_point_in": hook_point, "affine_connection": True})
    assert "affine_connection=True" in refusal(tmp_path)


# Llama Scope


LLAMA_SCOPE = {
    "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post", "d_model": D_IN,
    "d_sae": D_SAE, "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise", "top_k": 50,
    "dataset_average_activation_norm": {"in": 9.0, "out": 9.0}, "apply_decoder_bias_to_pre_encoder": False,
    "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "init_decoder_norm": 0.5, "use_glu_encoder": False,
}  # fmt: skip


def write_llama_scope(folder: Path, state, **config) -> Path:
    """Write a folder as Llama Scope is published, and return the path of its weights."""
    write_json(folder / "hyperparams.json", LLAMA_SCOPE | config)
    return save_tensors(folder / "checkpoints" / "final.safetensors", linear_style(state))


@pytest.mark.parametrize("subtracts", [False, True])
@pytest.mark.parametrize("includes_norm", [False, True])
def test_llama_scope_applies_threshold_norm_and_scale(subtracts, includes_norm, tmp_path, state, x):
    settings = {"sparsity_include_decoder_norm": includes_norm, "apply_decoder_bias_to_pre_encoder": subtracts}
    norms = {"in": 9.0, "out": 9.0 if subtracts else 6.0}
    settings["dataset_average_activation_norm"] = norms
    path = write_llama_scope(tmp_path / "Llama3_1-8B-Base-L15R-8x", state, **settings)
    scale, scale_out = (math.sqrt(D_IN) / norms[side] for side in ("in", "out"))
    z = (x * scale - (state["b_dec"] if subtracts else 0)) @ state["W_enc"] + state["b_enc"]
    score = z * state["W_dec"].norm(dim=1) if includes_norm else z
    # OpenMOSS measures the threshold on weights that read activations as they are: (x @ W_enc + b_enc / scale) > 0.5.
    codes = z * (score / scale > 0.5)
    for spec in (path, path.parent.parent):
        source = load_sae(spec)
        check(source, x, codes, (codes @ state["W_dec"] + state["b_dec"]) / scale_out)
        assert (source.hook_name, source.model_name) == ("blocks.15.hook_resid_post", "meta-llama/Llama-3.1-8B")
        assert source.expected_l0 == 50


def test_open_moss_reads_the_newer_names(tmp_path, state, x):
    norms = {"dataset_average_activation_norm.blocks.15.hook_resid_post": torch.tensor(9.0)}
    names = {"W_E": state["W_enc"], "b_E": state["b_enc"], "W_D": state["W_dec"], "b_D": state["b_dec"]}
    threshold = per_feature_threshold()
    save_tensors(tmp_path / "sae_weights.safetensors", names | norms | {"log_jumprelu_threshold": threshold.log()})
    config = {"sae_type": "sae", "dataset_average_activation_norm": None, "jump_relu_threshold": None}
    write_json(tmp_path / "config.json", LLAMA_SCOPE | config)
    scale = math.sqrt(D_IN) / 9.0
    z = x * scale @ state["W_enc"] + state["b_enc"]
    codes = z * (z * state["W_dec"].norm(dim=1) > threshold)
    source = load_sae(tmp_path)
    check(source, x, codes, (codes @ state["W_dec"] + state["b_dec"]) / scale)
    assert source.expected_l0 is None


def test_open_moss_top_k_ranks_by_codes_times_decoder_norm(tmp_path, state, x):
    path = write_llama_scope(tmp_path, state, act_fn="topk", top_k=4, norm_activation="inference")
    norms = state["W_dec"].norm(dim=1)
    rescaled = top_k((x @ state["W_enc"] + state["b_enc"]) * norms, 4)
    source = load_sae(path)
    check(source, x, rescaled, rescaled @ (state["W_dec"] / norms[:, None]) + state["b_dec"])
    assert source.expected_l0 == 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "is a transcoder"),
        ({"norm_activation": "token-wise"}, "norm_activation='token-wise': the scale of a feature then changes"),
        ({"dataset_average_activation_norm": None}, "does not hold it for blocks.15.hook_resid_post"),
        (
            {
                "dataset_average_activation_norm": {"in": 9.0, "out": 6.0},
                "apply_decoder_bias_to_pre_encoder": True,
            },
            "subtracts a bias that is scaled in two ways",
        ),
        ({"top_k": None}, "no top_k that shows whether it applies to activations with or without normalisation"),
        ({"jump_relu_threshold": None}, "act_fn=jumprelu, but no jump_relu_threshold"),
        ({"sparsity_include_decoder_norm": None}, "does not say whether its threshold includes the decoder's norm"),
        ({"use_glu_encoder": True}, "use_glu_encoder=True"),
        ({"act_fn": "batchtopk"}, "act_fn='batchtopk'"),
        ({"sae_type": "moe"}, "sae_type='moe'"),
    ],
)
def test_llama_scope_refuses_what_it_cannot_measure(config, expected, tmp_path, state):
    assert expected in refusal(write_llama_scope(tmp_path, state, **config))


def test_weights_without_their_hyperparams_are_ambiguous(tmp_path, state):
    save_tensors(tmp_path / "checkpoints" / "final.safetensors", linear_style(state))
    assert "nothing says whether its activation is ReLU" in refusal(tmp_path / "checkpoints" / "final.safetensors")


# Qwen Scope


def test_qwen_scope_reads_k_of_its_repository(tmp_path, state, x):
    content = {"W_enc": state["W_enc"].T, "W_dec": state["W_dec"].T, "b_enc": state["b_enc"], "b_dec": state["b_dec"]}
    path = save_tensors(tmp_path / "Qwen" / "SAE-Res-Qwen3-8B-Base-W64K-L0_5" / "layer12.sae.pt", content)
    codes = top_k(x @ state["W_enc"] + state["b_enc"], 5)
    source = load_sae(path)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name) == ("blocks.12.hook_resid_post", "Qwen/Qwen3-8B-Base")
    assert source.expected_l0 == 5
    assert "whose k is only in the name of its repository" in refusal(save_tensors(tmp_path / "layer1.sae.pt", content))


# OpenAI


def openai_style(state) -> dict[str, torch.Tensor]:
    """Return weights and statistics with the names of OpenAI's sparse_autoencoder."""
    weights = {"encoder.weight": state["W_enc"].T, "decoder.weight": state["W_dec"].T}
    biases = {"pre_bias": state["b_dec"], "latent_bias": state["b_enc"]}
    statistics = {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "latents_mean_square": torch.zeros(D_SAE)}
    return weights | biases | statistics | {"latents_activation_frequency": torch.ones(D_SAE)}


def test_openai_relu_subtracts_and_adds_its_bias(tmp_path, state, x):
    path = save_tensors(tmp_path / "v4.pt", openai_style(state) | {"activation": "ReLU", "activation_state_dict": {}})
    codes = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    check(load_sae(path), x, codes, codes @ state["W_dec"] + state["b_dec"])


@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_one_number_that_is_not_finite_is_named(name, tmp_path, state):
    state[name].view(-1)[3] = math.inf
    path = save_tensors(tmp_path / "v4.pt", openai_style(state) | {"activation": "ReLU", "activation_state_dict": {}})
    assert f"holds NaN or Inf in {name}" in refusal(path)


def test_openai_top_k_is_refused_for_its_normalised_inputs(tmp_path, state):
    top = {"activation": "TopK", "activation_state_dict": {"k": 32, "postact_fn": "ReLU"}}
    path = save_tensors(tmp_path / "v5.pt", openai_style(state) | top)
    assert "is a TopK SAE of OpenAI, which normalises each activation" in refusal(path)
    path = save_tensors(tmp_path / "lost.safetensors", openai_style(state))
    assert "has lost the name of its activation" in refusal(path)


# Goodfire


@pytest.mark.parametrize(
    ("file", "layer", "model"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", 19, "meta-llama/Llama-3.1-8B-Instruct"),
        ("DeepSeek-R1-SAE-l37.pt", 37, "deepseek-ai/DeepSeek-R1"),
    ],
)
def test_goodfire_reads_model_and_layer_of_its_file(file, layer, model, tmp_path, state, x):
    names = {name.replace(".", "_linear."): tensor for name, tensor in linear_style(state).items()}
    source = load_sae(save_tensors(tmp_path / file, names))
    codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name) == (f"blocks.{layer}.hook_resid_post", model)


# The paper's


def test_paper_adds_both_biases(tmp_path, state, x):
    b_pre = random_bias()
    content = {
        "model_state": linear_style(state) | {"b_pre": b_pre},
        "config": {"d_model": D_IN, "n_features": D_SAE, "l1_coeff": 3e-4, "model_name": "EleutherAI/pythia-410m"},
        "stats": {"mean_l0": 31.5, "explained_variance": 0.9, "norm": 3.2},
    }
    codes = torch.relu((x - b_pre) @ state["W_enc"] + state["b_enc"])
    source = load_sae(save_tensors(tmp_path / "sae_layer12_final.pt", content))
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"] + b_pre)
    assert (source.hook_name, source.model_name) == ("blocks.12.hook_resid_post", "EleutherAI/pythia-410m")
    content["config"]["layer"] = 5
    assert "names layer 5 in its configuration" in refusal(save_tensors(tmp_path / "sae_layer12_final.pt", content))
    content["config"] |= {"layer": 12, "normalize_inputs": True}
    assert "normalize_inputs=True" in refusal(save_tensors(tmp_path / "sae_layer12_final.pt", content))


# Neel Nanda's and its descendants


@pytest.mark.parametrize("kind", [{}, {"sae_type": "topk", "top_k": 4}])
def test_act_size_formats_read_their_own_config(kind, tmp_path, state, x):
    path = save_tensors(tmp_path / "25.pt", state)
    config = {
        "act_size": D_IN,
        "dict_size": D_SAE,
        "act_name": "blocks.0.hook_mlp_out",
        "l1_coeff": 3e-4,
        "seq_len": 128,
    }
    write_json(tmp_path / "25_cfg.json", config | {"model_name": "gelu-1l", "input_unit_norm": False} | kind)
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    codes = top_k(pre, 4) if kind else torch.relu(pre)
    source = load_sae(path)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.model_name, source.context_size) == ("blocks.0.hook_mlp_out", "gelu-1l", 128)
    write_json(tmp_path / "25_cfg.json", config | {"input_unit_norm": True})
    assert "input_unit_norm=True in 25_cfg.json" in refusal(path)
    write_json(tmp_path / "25_cfg.json", config | {"sae_type": "batchtopk"})
    assert "sae_type='batchtopk'" in refusal(path)
