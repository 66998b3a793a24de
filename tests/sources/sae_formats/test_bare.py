"""State dicts of no published format: taken if their codes can mean one thing, else refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.sae_files import per_feature_threshold, random_bias, save_tensors, top_k, write_json
from tests.helpers.saes import D_IN, D_SAE, linear_style, random_state, refusal
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import read_sae_file
from tl_distill_floor.sources.sae_formats.key_map import KeyMap
from tl_distill_floor.sources.sae_formats.registry import read_weights
from tl_distill_floor.sources.saes import load_sae

RELU = {"activation": "relu"}
SUBTRACTS, ONLY_ADDS = {"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}


def nested(state):
    adam = {"state": {0: {"exp_avg": state["W_enc"], "exp_avg_sq": state["W_enc"]}}, "param_groups": [{"lr": 1e-4}]}
    other = {"step": 1000, "optimizer_state_dict": adam, "config": {"l1_coeff": 3e-4, "d_model": D_IN}, "loss": 0.3}
    return {"model_state_dict": dict(state), **other}


SHARED_BIAS = {
    "saelens": dict,
    "raw, transposed": lambda s: {
        "W_enc": s["W_enc"].T,
        "W_dec": s["W_dec"].T,
        "b_enc": s["b_enc"],
        "b_dec": s["b_dec"],
    },
    "b_pre": lambda s: {"W_e": s["W_enc"], "W_d": s["W_dec"], "b_e": s["b_enc"], "b_pre": s["b_dec"]},
    "nested": nested,
    "module.": lambda s: {f"module._orig_mod.{name}": tensor for name, tensor in s.items()},
    "sae.": lambda s: {f"sae.{name}": tensor for name, tensor in s.items()},
    "counters": lambda s: s | {"act_freq": torch.rand(D_SAE), "n_steps": torch.tensor(3.0)},
}


@pytest.mark.parametrize(
    ("convention", "suffix"),
    [(name, "pt") for name in SHARED_BIAS] + [(name, "safetensors") for name in SHARED_BIAS if name != "nested"],
)
def test_subtracts_and_adds_a_shared_bias_if_the_settings_say_so(convention, suffix, tmp_path, state, x):
    file = save_tensors(tmp_path / f"sae.{suffix}", SHARED_BIAS[convention](state))
    write_json(tmp_path / "cfg.json", RELU | SUBTRACTS)
    source = load_sae(file)
    codes = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(source.sae.encode(x), codes)
    torch.testing.assert_close(source.sae(x), codes @ state["W_dec"] + state["b_dec"])
    assert (source.architecture, source.name, source.hook_name) == ("standard", str(file), None)
    (tmp_path / "cfg.json").unlink()
    message = refusal(file)
    assert "is a bare state dict: nothing says whether its activation is ReLU, TopK or another one" in message
    assert "torch.save" not in message


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_only_adds_the_bias_of_a_linear_decoder_if_the_settings_say_so(prefix, tmp_path, state, x):
    weights = {prefix + name: tensor for name, tensor in linear_style(state).items()}
    file = save_tensors(tmp_path / "sae.pt", {"state_dict": weights, "cfg": RELU | ONLY_ADDS})
    codes = torch.relu(torch.nn.functional.linear(x, state["W_enc"].T, state["b_enc"]))
    torch.testing.assert_close(load_sae(file).sae.encode(x), codes)
    decoded = torch.nn.functional.linear(codes, state["W_dec"].T, state["b_dec"])
    torch.testing.assert_close(load_sae(file).sae(x), decoded)
    save_tensors(file, {"state_dict": weights, "cfg": RELU})
    assert "it is not known whether decoder.bias is subtracted before the encoder" in refusal(file)


def test_a_bias_of_zero_means_one_thing(tmp_path, state, x):
    zero = state | {"b_dec": torch.zeros(D_IN)}
    threshold = per_feature_threshold()
    pre = x @ state["W_enc"] + state["b_enc"]
    for name, tensor in (("threshold", threshold), ("log_threshold", threshold.log())):
        source = load_sae(save_tensors(tmp_path / "sae.pt", zero | {name: tensor}))
        assert source.architecture == "jumprelu"
        torch.testing.assert_close(source.sae.encode(x), pre * (pre > threshold))
        assert "whether b_dec is subtracted" in refusal(save_tensors(tmp_path / "sae.pt", state | {name: tensor}))


@pytest.mark.parametrize(
    "extra",
    [
        {"k": torch.tensor(3), "cfg": SUBTRACTS},
        {"topk": torch.tensor(3.0), "cfg": SUBTRACTS},
        {"cfg": {"k": 3, "activation": "TopK"} | SUBTRACTS},
        {"k": 3, "activation": "topk", "threshold": torch.tensor(-1.0), "cfg": SUBTRACTS},
    ],
)
def test_k_makes_a_topk(extra, tmp_path, state, x):
    source = load_sae(save_tensors(tmp_path / "sae.pt", state | extra))
    codes = top_k((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"], 3)
    assert (source.architecture, source.expected_l0) == ("topk", 3)
    torch.testing.assert_close(source.sae.encode(x), codes)


def test_needs_d_in_for_an_undercomplete_dictionary(tmp_path, x):
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(D_IN, 4, generator=generator), torch.randn(4, D_IN, generator=generator)
    file = save_tensors(tmp_path / "sae.pt", {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(4), "cfg": RELU})
    torch.testing.assert_close(load_sae(file, d_in=D_IN).sae(x), torch.relu(x @ W_enc) @ W_dec)
    assert "b_enc of shape [4]" in refusal(file)  # 4 is taken for the width of activations


def test_heeds_the_hook_point_model_and_context_that_its_settings_name(tmp_path, state):
    names = {"hook_point": "blocks.1.hook_mlp_out", "act_name": "blocks.1.hook_mlp_out", "model_name": "tiny-prose"}
    cfg = RELU | SUBTRACTS | names | {"context_size": 64, "prepend_bos": False, "l0": 12.5}
    source = load_sae(save_tensors(tmp_path / "sae.pt", {"state_dict": state, "cfg": cfg}))
    assert (source.hook_name, source.model_name) == ("blocks.1.hook_mlp_out", "tiny-prose")
    assert (source.context_size, source.prepend_bos, source.expected_l0) == (64, False, 12.5)
    save_tensors(tmp_path / "sae.pt", {"state_dict": state, "cfg": cfg | {"act_name": "blocks.2.hook_mlp_out"}})
    assert "names several hook points (blocks.1.hook_mlp_out, blocks.2.hook_mlp_out)" in refusal(tmp_path / "sae.pt")


@pytest.mark.parametrize(
    ("setting", "hook_name"),
    [
        ({"submodule": "blocks.1.hook_mlp_out"}, "blocks.1.hook_mlp_out"),
        ({"reads": "gpt_neox.layers.1.mlp"}, "blocks.1.hook_mlp_out"),
        ({"hook_point": "hook_resid_pre", "hook_point_layer": 2}, "blocks.2.hook_resid_pre"),
        ({"site": "mlp_out", "layer": 0}, "blocks.0.hook_mlp_out"),
        ({"kind_of_activation": "attn_out", "layer_idx": 1}, "blocks.1.hook_attn_out"),
        ({"note": "z", "split": "v1.5", "layer": 1}, None),
    ],
)
def test_hook_points_count_under_every_name(setting, hook_name, tmp_path, state):
    content = {"state_dict": state, "cfg": RELU | SUBTRACTS | {"a": setting}}
    assert load_sae(save_tensors(tmp_path / "sae.pt", content)).hook_name == hook_name
    content["cfg"] |= {"hook_name": "blocks.2.hook_attn_out"}
    file = save_tensors(tmp_path / "sae.pt", content)
    if hook_name is None:
        assert load_sae(file).hook_name == "blocks.2.hook_attn_out"
    else:
        assert "names several hook points" in refusal(file)


def test_threshold_among_the_settings_belongs_to_a_jumprelu(tmp_path, state, x):
    file, jumprelu = save_tensors(tmp_path / "sae.pt", state), ONLY_ADDS | {"activation": "jumprelu"}
    for name in ("threshold", "jumprelu_threshold", "theta"):
        write_json(tmp_path / "cfg.json", jumprelu | {name: 0.7})
        pre = x @ state["W_enc"] + state["b_enc"]
        torch.testing.assert_close(load_sae(file).sae.encode(x), pre * (pre > 0.7))
        for activation in ({}, {"activation": "relu"}):
            write_json(tmp_path / "cfg.json", ONLY_ADDS | activation | {name: 0.7})
            assert "is a bare state dict" in refusal(file)
    write_json(tmp_path / "cfg.json", ONLY_ADDS | RELU | {"threshold": 0.0, "dead_threshold": 1e-6})
    assert load_sae(file).architecture == "standard"


@pytest.mark.parametrize(
    "setting",
    [
        {"normalize_activations": "layer_norm"}, {"norm_factor": 3.0}, {"input_unit_norm": True}, {"rescale": 2.5},
        {"use_layernorm": True}, {"scaling_factor": 0.1}, {"standardize_inputs": True}, {"whitening": "zca"},
        {"normalise": 1}, {"runtime_normalization": "l2"}, {"center_inputs": True}, {"activation_mean": [1.0]},
        {"rescale_acts_by_decoder_norm": True}, {"decoder_layer_norm": True},
        {"scale_acts_by_decoder_norm": True}, {"gain": 2.0}, {"input_multiplier": 3.0}, {"act_coefficient": 0.5},
    ],
)  # fmt: skip
def test_settings_that_change_codes_are_refused_by_name(setting, tmp_path, state):
    ((name, value),) = setting.items()
    for content, config in (
        ({"state_dict": state, "cfg": {"train": setting}}, {}),
        (dict(state), setting),
        (dict(state), {"a": {"b": setting}}),
    ):
        save_tensors(tmp_path / "sae.pt", content)
        write_json(tmp_path / "config.json", RELU | ONLY_ADDS | config)
        assert f"has {name}={value!r}" in refusal(tmp_path / "sae.pt")


@pytest.mark.parametrize(
    "setting",
    [
        {"transcode": True}, {"is_transcoder": True}, {"skip_connection": True}, {"model_kind": "transcoder_set"},
        {"hook_point_in": "a", "hook_point_out": "b"}, {"hook_name": "a", "hook_name_out": "b"},
        {"d_in": 6, "d_out": 8}, {"architecture": "jumprelu_transcoder"},
        {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"},
    ],
)  # fmt: skip
def test_transcoders_are_refused(setting, tmp_path, state):
    save_tensors(tmp_path / "layer_1.safetensors", state)
    (tmp_path / "config.yaml").write_text(json.dumps(setting))  # JSON is YAML
    assert "is a transcoder or has a skip connection" in refusal(tmp_path / "layer_1.safetensors")
    (tmp_path / "config.yaml").unlink()
    save_tensors(tmp_path / "skip.pt", state | {"W_skip": torch.ones(D_IN, D_IN)})
    assert "(W_skip [6, 6])" in refusal(tmp_path / "skip.pt")


def test_harmless_settings_and_the_config_of_a_language_model_are_ignored(tmp_path, state):
    save_tensors(tmp_path / "sae.pt", state)
    harmless = {"normalize_decoder": True, "grad_clip_norm": 1.0, "lr_scheduler": "constant", "init_scale": 0.1}
    harmless |= {"unit_norm_decoder": True, "enforce_decoder_norm": True, "W_dec_norm": 1.5, "clip_norm": 0.5}
    harmless |= {"aux_scale": 0.03, "max_activation_norm_multiple": 10, "metrics": {"mean_l0": 31.0, "mean": 0.2}}
    harmless |= {"mse_loss_normalization": "batch", "scale": 1.0, "normalize_activations": "none", "l1_warmup": 5}
    write_json(tmp_path / "cfg.json", RELU | ONLY_ADDS | harmless)
    model = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    write_json(tmp_path / "config.json", model | {"query_pre_attn_scaling": 2.0})
    assert load_sae(tmp_path / "sae.pt").architecture == "standard"


def square():
    return {"W_enc": torch.randn(4, 4), "W_dec": torch.randn(4, 4), "b_enc": torch.randn(4)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (square(), "square matrices"),
        ({"0.weight": torch.randn(9, 4), "2.weight": torch.randn(4, 9)}, "with distinct names"),
        ({"W_dec": torch.randn(9, 4), "b_dec": torch.randn(4)}, "expected one encoder and one decoder"),
        ({"encoder.weight": torch.randn(9, 4), "decoder.weight": torch.randn(4, 8)}, "do not fit together"),
        ({f"layers.{i}.weight": torch.randn(4, 4) for i in range(30)}, "holds 30 matrices"),
        (random_state() | {"b_gate": torch.zeros(D_SAE)}, "b_gate of shape [20]"),
        (random_state() | {"mystery": torch.randn(D_SAE)}, "mystery of shape [20]"),
        (random_state() | {"odd": torch.randn(7)}, "odd of shape [7]"),
        (random_state() | {"scaling_factor": torch.tensor(3.0)}, "scaling_factor of shape []"),
        (random_state() | {"temperature": torch.tensor(3.0)}, "temperature of shape []"),
        (random_state() | {"activation_mean": torch.randn(D_IN)}, "activation_mean of shape [6]"),
        ({"state_dict": random_state(), "norm_factor": 3.0}, "norm_factor=3.0"),
        (random_state() | {"k": torch.tensor(3), "threshold": torch.tensor(0.2)}, "both k and a threshold"),
        ({"W_enc": torch.ones(4, 9), "W_dec": torch.ones(9, 4), "k": torch.tensor(99)}, "k=99, expected an integer"),
        ({"state_dict": random_state(), "config": {"architecture": "topk"}}, "'topk', and the file does not hold"),
        ({"state_dict": random_state(), "config": {"architecture": "batch_topk", "k": 3}}, "is named 'batchtopk'"),
        ({"state_dict": random_state(), "config": {"activation": "gelu"}}, "is named 'gelu'"),
        ({"state_dict": random_state(), "config": {"activation": "tanh-relu"}}, "is named 'tanh-relu'"),
        (linear_style(random_state()) | {"pre_bias": random_bias(), "cfg": RELU}, "whether pre_bias is added to"),
        ({"encoder": random_state(), "decoder": random_state()}, "weights under several keys"),
        ({"step": 3}, "holds no matrices (its keys: step)"),
        ({}, "holds no matrices"),
        ([torch.zeros(3)], "holds a list, expected a state dict"),
    ],
)
def test_rejects_ambiguous_state_dicts(content, expected, tmp_path):
    torch.save(content, tmp_path / "sae.pt")
    message = refusal(tmp_path / "sae.pt")
    assert expected in message
    assert str(tmp_path / "sae.pt") in message


def test_ignores_scalars_without_effect(tmp_path, state):
    content = {"scaling_factor": torch.ones(D_SAE), "bandwidth": torch.tensor(1e-3), "step": torch.tensor(7)}
    save_tensors(tmp_path / "sae.pt", state | content | {"cfg": RELU | SUBTRACTS})
    assert load_sae(tmp_path / "sae.pt").architecture == "standard"


@given(
    d_in=st.integers(2, 5),
    n_extra=st.integers(1, 6),
    transposed=st.tuples(st.booleans(), st.booleans()),
    prefix=st.sampled_from(["", "module.", "sae.", "_orig_mod.module.sae."]),
    keys=st.sampled_from([(), ("state_dict",), ("checkpoint", "model")]),
)
@settings(max_examples=40, deadline=None)
def test_orientation_prefix_and_nesting_have_no_effect(tmp_path_factory, d_in, n_extra, transposed, prefix, keys):
    d_sae = d_in + n_extra
    weights = {"W_enc": torch.randn(d_in, d_sae), "W_dec": torch.randn(d_sae, d_in), "b_enc": torch.randn(d_sae)}
    flips = zip(weights, transposed, strict=False)
    matrices = {name: weights[name].T if flip else weights[name] for name, flip in flips}
    content = {prefix + name: tensor for name, tensor in (weights | matrices).items()}
    for key in reversed(keys):
        content = {key: content, "step": 3}
    path = save_tensors(tmp_path_factory.getbasetemp() / "property.pt", content | {"config": RELU})
    inferred = read_weights(read_sae_file(path, str(path)), KeyMap())
    for name, tensor in weights.items():
        assert torch.equal(getattr(inferred, name), tensor)
    assert torch.equal(inferred.b_dec, torch.zeros(d_in))
    assert not inferred.subtract_b_dec


@pytest.mark.parametrize("nest", [lambda d: {"state_dict": d}, lambda d: {f"ae.{name}": t for name, t in d.items()}])
def test_integer_k_next_to_nested_weights_makes_a_topk(nest, tmp_path):
    matrix = torch.randn(4, 16)
    weights = {"W_enc": matrix, "W_dec": matrix.T, "b_enc": torch.zeros(16), "b_dec": torch.zeros(4)}
    path = save_tensors(tmp_path / "sae.pt", nest(weights | {"k": torch.tensor(3)}))
    assert read_weights(read_sae_file(path, "x"), KeyMap()).k == 3


def test_damaged_configurations_are_refused(tmp_path, state):
    save_tensors(tmp_path / "sae.pt", state)
    for name, content in (
        ("cfg.json", "{"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("cfg.json", "[" * 9999),
    ):
        (tmp_path / name).write_text(content)
        assert f"{name} is not a complete" in refusal(tmp_path / "sae.pt")
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="is not of the expected type"):
        KeyMap(k=True)
