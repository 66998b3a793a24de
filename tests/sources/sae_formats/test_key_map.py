"""State dicts that `--sae-format` explains."""

import json

import pytest
import torch

from tests.helpers.sae_files import per_feature_threshold, random_bias, save_tensors, top_k, write_json
from tests.helpers.saes import D_IN, D_SAE, linear_style, refusal, tiny_sae
from tl_distill_floor.annotations import FormattedSae
from tl_distill_floor.sources.saes import load_sae

KEYS = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}


@pytest.mark.parametrize("activation", ["relu", "topk", "abstopk", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_key_map_says_how_a_state_dict_encodes(activation, subtracts, tmp_path, state, x):
    file = save_tensors(tmp_path / "sae.pt", state)
    parameters = {"topk": {"k": 3}, "abstopk": {"k": 3}, "jumprelu": {"threshold": 0.8}}.get(activation, {})
    key_map = KEYS | {"activation": activation, "subtract_b_dec": subtracts} | parameters
    pre = (x - state["b_dec"] if subtracts else x) @ state["W_enc"] + state["b_enc"]
    order = pre.abs().argsort(dim=1, descending=True)[:, :3]
    codes = {
        "relu": torch.relu(pre),
        "topk": top_k(pre, 3),
        "abstopk": torch.zeros_like(pre).scatter(1, order, pre.gather(1, order)),
        "jumprelu": pre * (pre > 0.8),
    }[activation]
    for sae_format in (json.dumps(key_map), str(write_json(tmp_path / "map.json", key_map))):
        source = load_sae(file, sae_format=sae_format)
        torch.testing.assert_close(source.sae.encode(x), codes)
        torch.testing.assert_close(source.sae(x), codes @ state["W_dec"] + state["b_dec"])
    formatted = load_sae(FormattedSae(file, json.dumps(key_map)))
    torch.testing.assert_close(formatted.sae.encode(x), codes)


def test_key_map_names_biases_thresholds_and_scales(tmp_path, state, x):
    b_pre, threshold = random_bias(), per_feature_threshold()
    file = save_tensors(
        tmp_path / "sae.pt", linear_style(state) | {"pre": b_pre, "gate": threshold, "n": torch.ones(())}
    )
    key_map = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias"}
    key_map |= {"b_pre": "pre", "threshold": "gate", "activation": "jumprelu", "subtract_b_dec": False}
    key_map |= {"input_scale": 0.5, "ignore": ["n"], "hook_name": "blocks.3.hook_resid_post", "l0": 7}
    source = load_sae(file, sae_format=json.dumps(key_map))
    pre = (x * 0.5 - b_pre) @ state["W_enc"] + state["b_enc"]
    codes = pre * (pre > threshold)
    torch.testing.assert_close(source.sae.encode(x), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(source.sae(x), (codes @ state["W_dec"] + state["b_dec"]) / 0.5, rtol=1e-4, atol=1e-5)
    assert (source.hook_name, source.expected_l0) == ("blocks.3.hook_resid_post", 7)
    del key_map["ignore"]
    assert 'also holds n, which the SAE format leaves out; add it, or write "ignore": ["n"]' in refusal(
        file, sae_format=json.dumps(key_map)
    )


def test_key_map_ties_weights_and_orients_square_matrices(tmp_path, state, x):
    file = save_tensors(tmp_path / "sae.pt", {"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]})
    tied = {"W_enc": "encoder.weight", "W_dec": "encoder.weight", "b_enc": "encoder.bias", "activation": "relu"}
    codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(load_sae(file, sae_format=json.dumps(tied)).sae(x), codes @ state["W_enc"].T)
    W_enc, W_dec = torch.randn(D_IN, D_IN), torch.randn(D_IN, D_IN)
    key_map = {"W_enc": "e.weight", "W_dec": "d", "activation": "relu"}
    save_tensors(file, {"e.weight": W_enc.T, "d": W_dec})
    source = load_sae(file, sae_format=json.dumps(key_map))
    torch.testing.assert_close(source.sae(x), torch.relu(x @ W_enc) @ W_dec)


def test_key_map_does_not_hide_settings_that_change_codes(tmp_path, state):
    file = save_tensors(tmp_path / "sae.pt", state)
    write_json(tmp_path / "cfg.json", {"norm_factor": 3.5, "hook_name": "blocks.2.hook_resid_pre"})
    key_map = KEYS | {"activation": "relu", "subtract_b_dec": True}
    assert "norm_factor=3.5 in cfg.json" in refusal(file, sae_format=json.dumps(key_map))
    source = load_sae(file, sae_format=json.dumps(key_map | {"ignore": ["norm_factor"], "input_scale": 1 / 3.5}))
    assert source.hook_name == "blocks.2.hook_resid_pre"


@pytest.mark.parametrize(
    ("sae_format", "expected"),
    [
        ("nonsense", "must be one of saelens, sparsify, dictionary-learning"),
        ("{", "is not a complete JSON object"),
        ('{"W_encoder": "a"}', "has the unknown key 'W_encoder'"),
        ('{"W_enc": "W_enc", "activation": "relu"}', "must name W_enc, W_dec and activation"),
        (json.dumps(KEYS | {"activation": "relu"}), "must say whether b_dec is subtracted"),
        (json.dumps(KEYS | {"activation": "gelu"}), "must be one of relu, jumprelu, topk, abstopk, got 'gelu'"),
        (json.dumps(KEYS | {"activation": "topk", "subtract_b_dec": True}), "needs k for this activation"),
        (json.dumps(KEYS | {"W_enc": "e", "activation": "relu", "subtract_b_dec": True}), "has no 'e', but (W_enc"),
        (json.dumps(KEYS | {"activation": "relu", "subtract_b_dec": "TRUE or FALSE"}), "not of the expected type"),
        (json.dumps({"input_scale": 0}), "input_scale in the SAE format must be a positive number"),
        (json.dumps({"ignore": "n"}), "ignore in the SAE format must be a list"),
        ("sparsify", "lacks k, encoder.weight"),
        ("paper", "expected b_pre, encoder.* and decoder.*"),
    ],
)
def test_rejects_wrong_formats(sae_format, expected, tmp_path, state):
    file = save_tensors(tmp_path / "sae.pt", state)
    assert expected in refusal(file, sae_format=sae_format)


def test_template_of_a_refusal_must_be_completed(tmp_path, state):
    file = save_tensors(tmp_path / "sae.pt", state)
    message = refusal(file)
    template = message[message.index("'{") + 1 : message.index("}'") + 1]
    assert json.loads(template)["W_enc"] == "W_enc"
    assert "in the SAE format" in refusal(file, sae_format=template)


def test_format_of_a_saelens_sae_is_refused(tmp_path):
    sae = tiny_sae()
    sae.save_model(tmp_path / "sae")
    for spec in (sae, tmp_path / "sae"):
        assert "leave out load_sae's sae_format=" in refusal(spec, sae_format="sparsify")
    assert load_sae(tmp_path / "sae", sae_format="saelens").sae.cfg.d_sae == D_SAE


def test_nothing_is_rounded_in_files_of_half_precision(tmp_path, state, x):
    half = {name: (tensor * (20 if name == "b_dec" else 1)).bfloat16() for name, tensor in state.items()}
    path = save_tensors(tmp_path / "sae.pt", half | {"shift": half.pop("b_dec")})
    full = {name: tensor.double() for name, tensor in torch.load(path).items()}
    inputs = x + full["shift"].float()  # as far from 0 as the bias
    names = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_pre": "shift", "activation": "relu"}
    source = load_sae(path, sae_format=json.dumps(names | {"input_scale": 0.37}))
    codes = torch.relu((inputs.double() * 0.37 - full["shift"]) @ full["W_enc"] + full["b_enc"])
    torch.testing.assert_close(source.sae.encode(inputs).double(), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(source.sae(inputs).double(), codes @ full["W_dec"] / 0.37, rtol=1e-4, atol=1e-4)
    content = linear_style(state | {"b_dec": torch.zeros(D_IN)})
    content = {name: tensor.bfloat16() for name, tensor in content.items()} | {"b_pre": full["shift"].bfloat16()}
    source = load_sae(save_tensors(tmp_path / "sae_layer3_final.pt", {"model_state": content}))
    codes = torch.relu((inputs.double() - full["shift"]) @ full["W_enc"] + full["b_enc"])
    torch.testing.assert_close(source.sae.encode(inputs).double(), codes, rtol=1e-4, atol=1e-4)
