"""SAEs from state dicts of every naming convention, compared with plain PyTorch; ambiguous ones are refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.helpers.saes import D_IN, D_SAE, linear_style, random_state, refusal, tiny_sae
from tl_distill_floor.sources.sae_state_dicts import infer_weights
from tl_distill_floor.sources.saes import load_sae


def openai_style(state):
    names = {"encoder.weight": state["W_enc"].T, "decoder.weight": state["W_dec"].T, "latent_bias": state["b_enc"]}
    return names | {"pre_bias": state["b_dec"], "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long)}


def nested(state):
    adam = {"state": {0: {"exp_avg": state["W_enc"], "exp_avg_sq": state["W_enc"]}}, "param_groups": [{"lr": 1e-4}]}
    other = {"step": 1000, "optimizer_state_dict": adam, "config": {"l1_coeff": 3e-4, "d_in": D_IN}, "loss": 0.3}
    return {"model_state_dict": dict(state), **other}


SHARED_BIAS = {
    "saelens": dict,
    "raw, transposed": lambda s: {
        "W_enc": s["W_enc"].T,
        "W_dec": s["W_dec"].T,
        "b_enc": s["b_enc"],
        "b_dec": s["b_dec"],
    },
    "openai": openai_style,
    "b_pre": lambda s: {"W_e": s["W_enc"], "W_d": s["W_dec"], "b_e": s["b_enc"], "b_pre": s["b_dec"]},
    "dictionary_learning": lambda s: {
        "encoder.weight": s["W_enc"].T,
        "decoder.weight": s["W_dec"].T,
        "encoder.bias": s["b_enc"],
        "bias": s["b_dec"],
    },
    "nested": nested,
    "module.": lambda s: {f"module._orig_mod.{name}": tensor for name, tensor in s.items()},
    "sae.": lambda s: {f"sae.{name}": tensor for name, tensor in s.items()},
    "autoencoder.": lambda s: {f"autoencoder.{name}": tensor for name, tensor in openai_style(s).items()},
    "counters": lambda s: s | {"act_freq": torch.rand(D_SAE), "n_steps": torch.tensor(3.0)},
}


@pytest.mark.parametrize(
    ("convention", "suffix"),
    [(name, "pt") for name in SHARED_BIAS] + [(name, "safetensors") for name in SHARED_BIAS if name != "nested"],
)
def test_subtracts_and_adds_a_shared_bias(convention, suffix, tmp_path, x):
    state = random_state()
    content = SHARED_BIAS[convention](state)
    file = tmp_path / f"sae.{suffix}"
    if suffix == "pt":
        torch.save(content, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)
    source = load_sae(file)
    codes = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(source.sae.encode(x), codes)
    torch.testing.assert_close(source.sae(x), codes @ state["W_dec"] + state["b_dec"])
    assert (source.architecture, source.name, source.hook_name) == ("standard", str(file), None)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_only_adds_the_bias_of_a_linear_decoder(prefix, tmp_path, x):
    state = random_state()
    torch.save({prefix + name: tensor for name, tensor in linear_style(state).items()}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu(torch.nn.functional.linear(x, state["W_enc"].T, state["b_enc"]))
    torch.testing.assert_close(sae.encode(x), codes)
    torch.testing.assert_close(sae(x), torch.nn.functional.linear(codes, state["W_dec"].T, state["b_dec"]))


def test_only_subtracts_a_pre_bias_if_there_is_a_decoder_bias(tmp_path, x):
    state = random_state()
    pre = torch.randn(D_IN)
    torch.save(linear_style(state) | {"pre_encoder_bias": pre}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu((x - pre) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), codes @ state["W_dec"] + state["b_dec"], rtol=1e-4, atol=1e-5)


def test_uses_an_encoder_alone_as_tied_weights(tmp_path, x):
    state = random_state()
    torch.save({"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(sae(x), codes @ state["W_enc"].T)


def test_needs_d_in_for_an_undercomplete_dictionary(tmp_path, x):
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(D_IN, 4, generator=generator), torch.randn(4, D_IN, generator=generator)
    torch.save({"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(4)}, tmp_path / "sae.pt")
    torch.testing.assert_close(load_sae(tmp_path / "sae.pt", d_in=D_IN).sae(x), torch.relu(x @ W_enc) @ W_dec)
    assert "b_enc of shape [4]" in refusal(tmp_path / "sae.pt")  # 4 is taken for the width of activations


@pytest.mark.parametrize("name", ["threshold", "log_threshold"])
def test_threshold_makes_a_jumprelu_that_does_not_subtract_b_dec(name, tmp_path, x):
    state, threshold = random_state(), torch.rand(D_SAE) + 0.5
    torch.save(state | {name: threshold.log() if name == "log_threshold" else threshold}, tmp_path / "sae.pt")
    source = load_sae(tmp_path / "sae.pt")
    pre = x @ state["W_enc"] + state["b_enc"]
    codes = torch.where(pre > threshold, pre, 0.0)
    assert source.architecture == "jumprelu"
    torch.testing.assert_close(source.sae.encode(x), codes)
    torch.testing.assert_close(source.sae(x), codes @ state["W_dec"] + state["b_dec"])


@pytest.mark.parametrize(
    "extra",
    [{"k": torch.tensor(3)}, {"topk": torch.tensor(3.0)}, {"cfg": {"k": 3}}, {"k": 3, "threshold": torch.tensor(-1.0)}],
)
def test_k_makes_a_topk(extra, tmp_path, x):
    state = random_state()
    torch.save(state | extra, tmp_path / "sae.pt")
    source = load_sae(tmp_path / "sae.pt")
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    kept = pre.argsort(dim=1, descending=True)[:, :3]
    codes = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept).relu())
    assert source.architecture == "topk"
    torch.testing.assert_close(source.sae.encode(x), codes)


def test_reads_k_from_a_config_in_the_same_directory(tmp_path):
    torch.save(random_state(), tmp_path / "sae.pt")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 4, "normalize_decoder": True, "expansion_factor": 32}))
    assert load_sae(tmp_path / "sae.pt").sae.cfg.k == 4
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 4, "transcode": True}))
    assert "transcode=True" in refusal(tmp_path / "sae.pt")


def test_reads_weights_of_a_saelens_directory_with_its_config(tmp_path):
    tiny_sae("topk", metadata={"hook_name": "blocks.1.hook_resid_post"}).save_model(tmp_path)
    source = load_sae(tmp_path / "sae_weights.safetensors")
    assert (source.architecture, source.hook_name) == ("topk", "blocks.1.hook_resid_post")


def square():
    return {"W_enc": torch.randn(4, 4), "W_dec": torch.randn(4, 4), "b_enc": torch.randn(4)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (square(), "square matrices"),
        ({"0.weight": torch.randn(9, 4), "2.weight": torch.randn(4, 9)}, "with distinct names"),
        ({"W_dec": torch.randn(9, 4), "b_dec": torch.randn(4)}, "neither an encoder nor its bias"),
        ({"encoder.weight": torch.randn(9, 4), "decoder.weight": torch.randn(4, 8)}, "do not fit together"),
        ({f"layers.{i}.weight": torch.randn(4, 4) for i in range(30)}, "holds 30 matrices"),
        (random_state() | {"b_gate": torch.zeros(D_SAE)}, "b_gate of shape [20]"),
        (random_state() | {"mystery": torch.randn(D_SAE)}, "mystery of shape [20]"),
        (random_state() | {"odd": torch.randn(7)}, "odd of shape [7]"),
        (random_state() | {"scaling_factor": torch.tensor(3.0)}, "scaling_factor of shape []"),
        (random_state() | {"activation_mean": torch.randn(D_IN)}, "activation_mean of shape [6]"),
        ({"state_dict": random_state(), "norm_factor": 3.0}, "norm_factor=3.0"),
        (
            {"state_dict": random_state(), "config": {"normalize_activations": "layer_norm"}},
            "reads normalised activations",
        ),
        (random_state() | {"k": torch.tensor(3), "threshold": torch.tensor(0.2)}, "both k and a threshold"),
        (random_state() | {"k": torch.tensor(99)}, "k=99, expected an integer from 1 to 20"),
        (
            {"state_dict": random_state(), "config": {"architecture": "topk"}},
            "'topk', but the weights hold no",
        ),
        (
            {"state_dict": random_state(), "config": {"architecture": "batch_topk", "k": 3}},
            "'batchtopk', but the",
        ),
        (
            {"state_dict": random_state(), "config": {"activation": "gelu"}},
            "'gelu', but the weights hold no",
        ),
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


def test_ignores_scalars_without_effect(tmp_path):
    content = {"scaling_factor": torch.ones(D_SAE), "bandwidth": torch.tensor(1e-3), "step": torch.tensor(7)}
    torch.save(random_state() | content, tmp_path / "sae.pt")
    assert load_sae(tmp_path / "sae.pt").architecture == "standard"


@given(
    d_in=st.integers(2, 5),
    n_extra=st.integers(1, 6),
    transposed=st.tuples(st.booleans(), st.booleans()),
    prefix=st.sampled_from(["", "module.", "sae.", "_orig_mod.module.sae."]),
    keys=st.sampled_from([(), ("state_dict",), ("checkpoint", "model")]),
)
@settings(max_examples=40)
def test_orientation_prefix_and_nesting_have_no_effect(d_in, n_extra, transposed, prefix, keys):
    d_sae = d_in + n_extra
    weights = {"W_enc": torch.randn(d_in, d_sae), "W_dec": torch.randn(d_sae, d_in), "b_enc": torch.randn(d_sae)}
    flips = zip(weights, transposed, strict=False)
    matrices = {name: weights[name].T if flip else weights[name] for name, flip in flips}
    content = {prefix + name: tensor for name, tensor in (weights | matrices).items()}
    for key in reversed(keys):
        content = {key: content, "step": 3}
    inferred = infer_weights(content, source="a checkpoint")
    for name, tensor in weights.items():
        assert torch.equal(getattr(inferred, name), tensor)
    assert torch.equal(inferred.b_dec, torch.zeros(d_in))
    assert not inferred.subtract_b_dec


@pytest.mark.parametrize("nest", [lambda d: {"state_dict": d}, lambda d: {f"ae.{name}": t for name, t in d.items()}])
def test_integer_k_next_to_nested_weights_makes_a_topk(nest):
    matrix = torch.randn(4, 16)
    weights = {"W_enc": matrix, "W_dec": matrix.T, "b_enc": torch.zeros(16), "b_dec": torch.zeros(4)}
    assert infer_weights(nest(weights | {"k": torch.tensor(3)}), source="x").k == 3
