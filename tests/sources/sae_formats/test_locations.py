"""Hook points that only the path of an SAE names, and directories of several SAEs."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.sae_files import save_tensors, write_json
from tests.helpers.saes import D_IN, D_SAE, linear_style, refusal, tiny_sae
from tl_distill_floor.sources.saes import load_sae


def write_auto_encoder(path, state):
    """Write an `AutoEncoder` of dictionary_learning, whose names of weights say what it is, and return its path."""
    tensors = {name: tensor for name, tensor in linear_style(state).items() if name != "decoder.bias"}
    return save_tensors(path, tensors | {"bias": state["b_dec"]})


def write_sparsify(folder, state):
    """Write a folder as sparsify does, and return it."""
    encoder = {"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]}
    save_tensors(folder / "sae.safetensors", encoder | {name: state[name] for name in ("W_dec", "b_dec")})
    write_json(folder / "cfg.json", {"k": 3, "num_latents": D_SAE, "d_in": D_IN, "normalize_decoder": True})
    return folder


@pytest.mark.parametrize(
    ("path", "hook_name"),
    [
        ("resid_out_layer3/10_32768/ae.pt", "blocks.3.hook_resid_post"),  # SAEs of Marks et al. 2024
        ("mlp_out_layer3/10_32768/ae.pt", "blocks.3.hook_mlp_out"),
        ("attn_out_layer3/10_32768/ae.pt", "blocks.3.hook_attn_out"),
        ("mlp_layer_3/trainer_0/checkpoints/ae_100.pt", "blocks.3.hook_mlp_out"),
        ("gpt2-small_blocks.3.hook_resid_pre_24576/ae.pt", "blocks.3.hook_resid_pre"),
        ("layers.3.mlp/ae.pt", "blocks.3.hook_mlp_out"),
        ("blocks.3.attn.hook_z.pt", "blocks.3.attn.hook_z"),
        ("first_layer3/ae.pt", None),
    ],
)
def test_the_path_names_the_hook_point(path, hook_name, tmp_path, state):
    file = write_auto_encoder(tmp_path / path, state)
    assert load_sae(file).hook_name == hook_name
    assert load_sae(file, layer=3).hook_name == hook_name  # not the residual stream after layer 3
    stated = load_sae(file, sae_format='{"hook_name": "blocks.2.ln1.hook_normalized"}')
    assert stated.hook_name == "blocks.2.ln1.hook_normalized"


def test_a_path_of_two_hook_points_is_refused(tmp_path, state):
    file = write_auto_encoder(tmp_path / "mlp_out_layer3" / "resid_post_layer_4" / "ae.pt", state)
    assert "in its path (blocks.4.hook_resid_post, blocks.3.hook_mlp_out)" in refusal(file)
    weights = {name: tensor for name, tensor in state.items() if name != "b_dec"} | {"threshold": torch.ones(D_SAE)}
    file = save_tensors(tmp_path / "mlp_out_layer3" / "sae.pt", weights)
    write_json(file.with_name("sae.json"), {"layer": 5})
    assert "names blocks.3.hook_mlp_out in its path and layer 5 elsewhere" in refusal(file)


def test_openai_names_site_and_layer_in_its_path(tmp_path, state):
    content = {
        "pre_bias": state["b_dec"], "latent_bias": state["b_enc"], "encoder.weight": state["W_enc"].T,
        "decoder.weight": state["W_dec"].T, "activation": "ReLU", "activation_state_dict": {},
    }  # fmt: skip
    for folder, hook_name in (
        ("resid_delta_mlp", "blocks.3.hook_mlp_out"),
        ("resid_delta_mlp_v4", "blocks.3.hook_mlp_out"),
        ("mlp_post_act", "blocks.3.mlp.hook_post"),
        ("resid_post_attn_v5_32k", "blocks.3.hook_resid_mid"),
    ):
        source = load_sae(save_tensors(tmp_path / "gpt2-small" / folder / "autoencoders" / "3.pt", content))
        assert (source.hook_name, source.model_name) == (hook_name, "gpt2-small")


@pytest.mark.parametrize(
    ("folder", "hook_name", "model"),
    [
        # as the cache of the Hub lays out a repository
        ("models--google--gemma-scope-2b-pt-mlp/snapshots/ab/layer_3/width_16k/average_l0_82", "hook_mlp_out", "2-2b"),
        ("gemma-scope-2-4b-pt/resid_post_all/layer_3_width_16k_l0_big", "hook_resid_post", "3-4b-pt"),
        ("gemma-scope-2-270m-pt/mlp_out/layer_3_width_16k_l0_big", "hook_mlp_out", "3-270m"),
        ("gemma-scope-2-1b-it/attn_out/layer_3_width_16k_l0_big", "attn.hook_z", "3-1b-it"),
    ],
)
def test_gemma_scope_names_site_and_model_in_its_path(folder, hook_name, model, tmp_path, state):
    tensors = {name.lower(): tensor for name, tensor in state.items()} | {"threshold": torch.ones(D_SAE)}
    if "width_16k/" in folder:
        (tmp_path / folder).mkdir(parents=True)
        np.savez(tmp_path / folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_tensors(tmp_path / folder / "params.safetensors", tensors)
    source = load_sae(tmp_path / folder)
    assert (source.hook_name, source.model_name) == (f"blocks.3.{hook_name}", f"google/gemma-{model}")


def test_sparsify_adds_a_folder_for_each_seed(tmp_path, state):
    write_json(tmp_path / "config.json", {"model": "EleutherAI/pythia-70m", "ctx_len": 2048})
    source = load_sae(write_sparsify(tmp_path / "layers.3.mlp" / "seed1", state), layer=3)
    assert (source.hook_name, source.model_name, source.context_size) == (
        "blocks.3.hook_mlp_out",
        "EleutherAI/pythia-70m",
        2048,
    )


def test_a_directory_of_several_saes_needs_a_layer(tmp_path, state):
    for layer in (3, 12):
        write_sparsify(tmp_path / f"layers.{layer}", state)
    for state_of_training in ("lr_scheduler_0.pt", "optimizer_0.pt", "rank_0_state.pt", "state.pt"):
        save_tensors(tmp_path / state_of_training, {"step": torch.zeros(3)})
    assert load_sae(tmp_path, layer=12).hook_name == "blocks.12.hook_resid_post"
    message = refusal(tmp_path)
    assert "has 2 SAEs, give one of them with sae= or a layer with layer=" in message
    assert str(tmp_path / "layers.3" / "sae.safetensors") in message


def test_a_directory_of_saelens_directories(tmp_path):
    tiny_sae(metadata={"hook_name": "blocks.1.hook_mlp_out"}).save_model(tmp_path / "blocks.1.hook_mlp_out")
    source = load_sae(tmp_path)
    assert (source.hook_name, source.name) == ("blocks.1.hook_mlp_out", str(tmp_path / "blocks.1.hook_mlp_out"))


def test_the_final_weights_count_more_than_checkpoints(tmp_path, state):
    first = write_auto_encoder(tmp_path / "checkpoints" / "ae_0.pt", {name: t * 2 for name, t in state.items()})
    assert float(load_sae(tmp_path).sae.b_dec[0]) == pytest.approx(2 * float(state["b_dec"][0]))
    write_auto_encoder(tmp_path / "ae.pt", state)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}), encoding="utf-8")
    assert float(load_sae(tmp_path).sae.b_dec[0]) == pytest.approx(float(state["b_dec"][0]))
    assert float(load_sae(first).sae.b_dec[0]) == pytest.approx(2 * float(state["b_dec"][0]))
