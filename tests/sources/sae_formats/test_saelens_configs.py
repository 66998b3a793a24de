"""SAELens directories and checkpoints, old ones included, whose fields SAELens 6 would drop."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.sae_files import per_feature_threshold, save_tensors, top_k, write_json
from tests.helpers.saes import D_IN, D_SAE, refusal, tiny_sae
from tl_distill_floor.sources.saes import load_sae

OLD = {
    "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
    "model_name": "tiny-prose", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "hook_head_index": None,
    "activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "context_size": 128,
    "finetuning_scaling_factor": False, "prepend_bos": True, "normalize_activations": "none", "dataset_path": "x",
    "sae_lens_training_version": "3.13.0", "model_from_pretrained_kwargs": {"center_writing_weights": True},
    "normalize_sae_decoder": False, "scale_sparsity_penalty_by_decoder_norm": True, "noise_scale": 0.0,
    "mse_loss_normalization": None, "lp_norm": 1.0, "b_dec_init_method": "geometric_median",
    "feature_sampling_method": None, "feature_reinit_scale": 0.2, "resample_batches": 1028, "use_ghost_grads": False,
}  # fmt: skip


def write_old(folder, state, **config):
    """Write a directory of SAELens before version 6, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "sae_weights.safetensors")
    write_json(folder / "cfg.json", OLD | config)
    return folder


@pytest.mark.parametrize("subtracts", [True, False])
def test_old_directories_encode_as_their_config_says(subtracts, tmp_path, state, x):
    source = load_sae(write_old(tmp_path / "sae", state, apply_b_dec_to_input=subtracts))
    pre = (x - state["b_dec"] if subtracts else x) @ state["W_enc"] + state["b_enc"]
    torch.testing.assert_close(source.sae.encode(x), torch.relu(pre))
    assert (source.hook_name, source.context_size, source.prepend_bos) == ("blocks.1.hook_resid_post", 128, True)
    assert source.model_kwargs == {"center_writing_weights": True}
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    source = load_sae(write_old(tmp_path / "topk", state, apply_b_dec_to_input=subtracts, **top))
    torch.testing.assert_close(source.sae.encode(x), top_k(pre, 3))
    assert source.expected_l0 == 3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"activation_fn_str": "tanh-relu"}, "has the activation function 'tanh-relu'"),
        ({"activation_fn_str": None, "activation_fn": "gelu"}, None),
        ({"activation_fn_kwargs": {"slope": 2}}, "activation_fn_kwargs={'slope': 2}"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "without a k that SAELens 6 reads"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "architecture": "gated"}, "without a k"),
        ({"finetuning_scaling_factor": True}, "has a finetuning_scaling_factor"),
        ({"normalize_activations": True}, "has normalize_activations='expected_average_only_in'"),
        ({"normalize_activations": "constant_norm_rescale"}, "has normalize_activations='constant_norm_rescale'"),
        ({"input_scaling": 0.3}, "input_scaling=0.3 in cfg.json"),
        ({"is_transcoder": True, "out_hook_point": "blocks.1.hook_mlp_out"}, "is a transcoder"),
        ({"d_out": 12}, "d_in=6, d_out=12"),
        ({"hook_head_index": 3}, "reads only attention head 3"),
    ],
)
def test_fields_that_change_codes_are_refused(config, expected, tmp_path, state):
    message = refusal(write_old(tmp_path / "sae", state, **config))
    assert (expected or "activation") in message


def test_checkpoints_with_their_config_are_read_like_directories(tmp_path, state, x):
    cfg = {"hook_point": "blocks.2.hook_mlp_out", "d_in": D_IN, "expansion_factor": 4, "l1_coefficient": 1e-3}
    source = load_sae(save_tensors(tmp_path / "old.pt", {"cfg": cfg, "state_dict": state}))
    codes = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(source.sae.encode(x), codes)
    assert source.hook_name == "blocks.2.hook_mlp_out"
    threshold = per_feature_threshold()
    path = save_tensors(tmp_path / "new" / "sae.pt", state | {"threshold": threshold})
    write_json(path.with_name("cfg.json"), OLD | {"architecture": "jumprelu", "apply_b_dec_to_input": False})
    pre = x @ state["W_enc"] + state["b_enc"]
    torch.testing.assert_close(load_sae(path).sae.encode(x), pre * (pre > threshold))
    write_json(path.with_name("cfg.json"), OLD | {"architecture": "gated"})
    assert "give the SAELens directory (cfg.json and sae_weights.safetensors) instead" in refusal(path)


def test_text_habits_are_read_from_every_file_of_a_directory(tmp_path, state):
    assert load_sae(write_old(tmp_path / "plain", state)).sequence_separator is None
    folder = write_old(tmp_path / "sae", state, sequence_separator_token=None, seqpos_slice=[5, -5])
    write_json(folder / "runner_cfg.json", {"disable_concat_sequences": True, "sequence_separator_token": "bos"})
    source = load_sae(folder)
    assert (source.sequence_separator, source.concatenates_documents) == ("none", False)
    assert source.counted_positions == (5, -5)
    metadata = {"sequence_separator_token": "eos", "disable_concat_sequences": False, "seqpos_slice": (None,)}
    source = load_sae(tiny_sae(metadata=metadata))
    assert (source.sequence_separator, source.concatenates_documents, source.counted_positions) == ("eos", True, None)
    for wrong in ([1.5], [0, None, 0], 5):
        assert "seqpos_slice in the SAE's configuration" in refusal(tiny_sae(metadata={"seqpos_slice": wrong}))


def test_saelens_6_directories_keep_their_settings(tmp_path, x):
    sae = tiny_sae("topk", metadata={"hook_name": "blocks.1.hook_resid_post"})
    sae.save_model(tmp_path)
    for spec in (tmp_path, tmp_path / "sae_weights.safetensors"):
        source = load_sae(spec)
        assert (source.architecture, source.hook_name, source.expected_l0) == ("topk", "blocks.1.hook_resid_post", 3)
        torch.testing.assert_close(source.sae(x), sae(x))
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"output_rescale": 4.0}))
    assert "output_rescale=4.0 in cfg.json" in refusal(tmp_path)
