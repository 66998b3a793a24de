"""SAEs that are JumpReLU SAEs under other names, compared with codes computed by the original's formula."""

import math

import pytest
import torch

from tests.helpers.sae_files import per_feature_threshold, random_bias, save_tensors, write_json
from tests.helpers.saes import D_IN, D_SAE
from tl_distill_floor.sources.saes import SaeSource, load_sae


def check(source: SaeSource, x: torch.Tensor, codes: torch.Tensor, reconstruction: torch.Tensor) -> None:
    """Compare an SAE's codes and reconstruction with independent ones, of which some are zero and some are not."""
    assert 0.02 < float((codes != 0).float().mean()) < 0.9
    torch.testing.assert_close(source.sae.encode(x), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(source.sae(x), reconstruction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_config", [True, False])
def test_gated_auto_encoder_of_dictionary_learning(has_config, tmp_path, state, x):
    random = torch.Generator().manual_seed(5)
    r_mag, gate_bias, mag_bias = torch.randn(3, D_SAE, generator=random) * 0.5
    tensors = {
        "encoder.weight": state["W_enc"].T, "decoder.weight": state["W_dec"].T, "decoder_bias": state["b_dec"],
        "r_mag": r_mag, "gate_bias": gate_bias, "mag_bias": mag_bias,
    }  # fmt: skip
    save_tensors(tmp_path / "ae.pt", tensors)
    if has_config:
        write_json(tmp_path / "config.json", {"trainer": {"dict_class": "GatedAutoEncoder", "layer": 3}})
    y = (x - state["b_dec"]) @ state["W_enc"]
    magnitude = r_mag.exp() * y + mag_bias
    opened_without_magnitude = (y + gate_bias > 0) & (magnitude < 0)
    closed_with_magnitude = (y + gate_bias < 0) & (magnitude > 0)
    assert bool(opened_without_magnitude.any())
    assert bool(closed_with_magnitude.any())
    codes = torch.relu(magnitude) * (y + gate_bias > 0)
    check(load_sae(tmp_path), x, codes, codes @ state["W_dec"] + state["b_dec"])


@pytest.mark.parametrize("normalisation", ["dataset-wise", "inference"])
def test_open_moss_names_the_threshold_by_its_module(normalisation, tmp_path, state, x):
    threshold, norms = per_feature_threshold(), state["W_dec"].norm(dim=1)
    hook = "blocks.3.hook_resid_post"
    config = {
        "sae_type": "sae", "d_model": D_IN, "act_fn": "jumprelu", "hook_point_in": hook, "hook_point_out": hook,
        "norm_activation": normalisation, "sparsity_include_decoder_norm": True, "jumprelu_threshold_window": 2.0,
    }  # fmt: skip
    write_json(tmp_path / "config.json", config)
    tensors = {"W_E": state["W_enc"], "b_E": state["b_enc"], "W_D": state["W_dec"], "b_D": state["b_dec"]}
    tensors |= {"activation_function.log_jumprelu_threshold": threshold.log()}
    tensors |= {f"dataset_average_activation_norm.{hook}": torch.tensor(4.0)}
    save_tensors(tmp_path / "sae_weights.safetensors", tensors)
    scale = math.sqrt(D_IN) / 4 if normalisation == "dataset-wise" else 1.0
    pre = x * scale @ state["W_enc"] + state["b_enc"]
    codes = pre * (pre * norms > threshold)
    check(load_sae(tmp_path), x, codes, (codes @ state["W_dec"] + state["b_dec"]) / scale)


def test_jump_relu_of_bussmann_does_not_subtract_b_dec(tmp_path, state, x):
    threshold = per_feature_threshold()
    config = {"act_size": D_IN, "dict_size": D_SAE, "sae_type": "jumprelu", "bandwidth": 0.001, "top_k": 32}
    write_json(tmp_path / "config.json", config | {"hook_point": "blocks.8.hook_resid_pre", "input_unit_norm": False})
    save_tensors(tmp_path / "sae.pt", state | {"jumprelu.log_threshold": threshold.log()})
    pre = torch.relu(x @ state["W_enc"] + state["b_enc"])
    codes = pre * (pre > threshold)
    source = load_sae(tmp_path)
    check(source, x, codes, codes @ state["W_dec"] + state["b_dec"])
    assert (source.hook_name, source.expected_l0) == ("blocks.8.hook_resid_pre", None)


@pytest.mark.parametrize("normalises", [True, False])
@pytest.mark.parametrize("names_class", [True, False])
def test_batch_top_k_with_its_normalisation(normalises, names_class, tmp_path, state, x):
    """As `BatchTopKSAE` of science-of-finetuning stores it: NaN for none."""
    nothing = torch.full((D_IN,), float("nan"))
    mean, std = (random_bias(6), random_bias(7).abs() + 0.5) if normalises else (nothing, nothing.clone())
    scale = 1.0 / (std**2).sum().sqrt() if normalises else torch.tensor(1.0)
    tensors = {
        "encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"], "decoder.weight": state["W_dec"].T,
        "b_dec": state["b_dec"], "k": torch.tensor(5), "threshold": torch.tensor(1.5), "activation_mean": mean,
        "activation_std": std, "activation_global_scale": scale, "target_rms": torch.tensor(1.0),
    }  # fmt: skip
    save_tensors(tmp_path / "model.safetensors", tensors)
    config = {"activation_dim": D_IN, "dict_size": D_SAE, "k": 5}
    write_json(tmp_path / "config.json", config | ({"dict_class": "BatchTopKSAE"} if names_class else {}))
    inputs = (x - mean) * scale if normalises else x
    post = torch.relu((inputs - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    codes = post * (post > 1.5)
    reconstruction = codes @ state["W_dec"] + state["b_dec"]
    check(load_sae(tmp_path), x, codes, reconstruction / scale + mean if normalises else reconstruction)
