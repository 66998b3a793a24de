"""What lies next to an SAE's weights is read, wherever it is: of the file itself first, then of its folder."""

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.sae_files import save_tensors, write_json
from tests.helpers.saes import D_IN, D_SAE, refusal, tiny_sae
from tl_distill_floor.sources.saes import load_sae

SUBTRACTS = {"activation": "relu", "apply_b_dec_to_input": True}
V6 = {
    "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
    "apply_b_dec_to_input": True, "normalize_activations": "none", "sae_lens_version": "6.0.0",
    "metadata": {
        "model_name": "tiny-prose", "hook_name": "blocks.1.hook_resid_post", "context_size": 128, "prepend_bos": True,
        "model_from_pretrained_kwargs": {"center_writing_weights": True}, "seqpos_slice": [0, 10],
        "sequence_separator_token": None, "disable_concat_sequences": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("file_name", ["sae_weights.safetensors", "sae.safetensors"])
def test_the_metadata_of_saelens_do_not_depend_on_the_name_of_the_weights(file_name, tmp_path, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / file_name)
    write_json(tmp_path / "cfg.json", V6)
    source = load_sae(tmp_path / file_name)
    assert source.model_kwargs == {"center_writing_weights": True}
    assert (source.counted_positions, source.sequence_separator, source.concatenates_documents) == (
        (0, 10),
        "none",
        False,
    )
    assert (source.hook_name, source.context_size) == ("blocks.1.hook_resid_post", 128)


def test_a_runner_configuration_adds_what_the_configuration_lacks(tmp_path, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "sae.safetensors")
    metadata = {key: value for key, value in V6["metadata"].items() if key != "model_from_pretrained_kwargs"}
    write_json(tmp_path / "cfg.json", V6 | {"metadata": metadata})
    write_json(
        tmp_path / "runner_cfg.json", {"model_from_pretrained_kwargs": {"fold_ln": True}, "seqpos_slice": [2, 9]}
    )
    source = load_sae(tmp_path / "sae.safetensors")
    assert (source.model_kwargs, source.counted_positions) == ({"fold_ln": True}, (0, 10))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_the_settings_of_saelens_runner_do_not_change_codes(architecture, tmp_path, x):
    """They lie next to the weights, whatever name these have; some sound as if they scaled activations."""
    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    mine = tiny_sae(architecture)
    mine.save_model(tmp_path)
    training = SAE_TRAINING_CLASS_REGISTRY[architecture][1](d_in=D_IN, d_sae=D_SAE)
    runner = LanguageModelSAERunnerConfig(
        sae=training, hook_name="blocks.1.hook_resid_post", logger=LoggingConfig(log_to_wandb=False)
    )
    write_json(tmp_path / "runner_cfg.json", runner.to_dict())
    for name in ("sae_weights.safetensors", "sae.safetensors"):
        source = load_sae((tmp_path / "sae_weights.safetensors").rename(tmp_path / name))
        torch.testing.assert_close(source.sae(x), mine(x))


@pytest.mark.parametrize("folder", ["checkpoints", "ckpt", "step_500", "1000"])
def test_checkpoints_have_the_configuration_of_their_training(folder, tmp_path, state):
    weights = {
        "encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"], "decoder.weight": state["W_dec"].T,
        "b_dec": state["b_dec"], "k": torch.tensor(3),
    }  # fmt: skip
    trainer = {"dict_class": "AutoEncoderTopK", "k": 3, "layer": 1, "submodule_name": "attn_out_layer_1"}
    write_json(tmp_path / "trainer_0" / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 64}})
    source = load_sae(save_tensors(tmp_path / "trainer_0" / folder / "ae_5000.pt", weights))
    assert (source.architecture, source.hook_name, source.context_size) == ("topk", "blocks.1.hook_attn_out", 64)


def test_the_configuration_of_a_file_counts_more_than_that_of_its_folder(tmp_path, state):
    path = save_tensors(tmp_path / "25.pt", state)
    general = {"d_in": D_IN, "d_sae": D_SAE, "architecture": "topk", "activation_fn": "topk"}
    write_json(tmp_path / "cfg.json", general | {"k": 5, "context_size": 999})
    write_json(tmp_path / "25_cfg.json", general | {"k": 2, "context_size": 64})
    source = load_sae(path)
    assert (source.expected_l0, source.context_size) == (2, 64)


@pytest.mark.parametrize(
    ("settings", "hook_name"),
    [
        ({"layer": "1"}, None),
        ({"layers": [1]}, None),
        ({"hook_points": ["blocks.1.hook_mlp_out"]}, "blocks.1.hook_mlp_out"),
        ({"component": "mlp", "layer": 1}, "blocks.1.hook_mlp_out"),
        ({"hook_type": "attn", "layer": "1"}, "blocks.1.hook_attn_out"),
        ({"site": "mlp_out", "layer": "1"}, "blocks.1.hook_mlp_out"),
    ],
)
def test_layers_and_sites_are_read_in_every_spelling(settings, hook_name, tmp_path, state):
    path = save_tensors(tmp_path / "sae.pt", {"state_dict": state, "cfg": SUBTRACTS | settings})
    assert load_sae(path).hook_name == hook_name
    if hook_name is None:
        assert "reads layer 1, not layer 3" in refusal(path, layer=3)


def test_a_hook_point_and_another_layer_are_refused(tmp_path, state):
    config = SUBTRACTS | {"hook_name": "blocks.1.hook_resid_post", "layer": 3}
    path = save_tensors(tmp_path / "sae.pt", {"state_dict": state, "cfg": config})
    assert "names blocks.1.hook_resid_post and layer 3 as what it reads" in refusal(path)


def test_the_module_behind_a_hook_point_is_known(tmp_path, state):
    config = SUBTRACTS | {"hookpoint": "layers.1.mlp"}
    source = load_sae(save_tensors(tmp_path / "sae.pt", {"state_dict": state, "cfg": config}))
    assert (source.hook_name, source.module_name) == ("blocks.1.hook_mlp_out", "layers.1.mlp")
