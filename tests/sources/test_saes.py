"""SAEs of every name and file: what loads is compared with plain PyTorch, what is refused by its sentence."""

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.helpers.hub_cache import add_to_cache, use_cache
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import PAPER_REPOSITORIES, find_saes
from tl_distill_floor.sources.sae_state_dicts import infer_weights
from tl_distill_floor.sources.saes import SUPPORTED, load_sae

D_IN, D_SAE = 6, 20
PAPER_FILE = "sae_layer12_final.pt"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    use_cache(monkeypatch, cache)
    return cache


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tiny_sae(architecture: str = "standard", *, metadata: dict | None = None, seed: int = 0, **config):
    """A random SAELens SAE, its warnings swallowed as a user's own code would have shown them."""
    import warnings

    from sae_lens import SAE

    k = {"k": 3} if architecture.endswith("topk") else {}
    base = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, **k, **config, "metadata": metadata or {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = SAE.from_dict(base)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return sae


def refusal(spec, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_sae(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


# Architectures


@pytest.mark.parametrize("architecture", SUPPORTED)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_each_architecture_encodes_as_before_and_token_by_token(architecture, where, tmp_path, x):
    sae = tiny_sae(architecture)
    codes = sae.encode(x)
    if where == "disk":
        sae.save_model(tmp_path / "sae")
    source = load_sae(sae if where == "memory" else tmp_path / "sae", d_in=D_IN)
    torch.testing.assert_close(source.sae.encode(x), codes)
    torch.testing.assert_close(source.sae.decode(codes), sae.decode(codes))
    one_by_one = torch.cat([source.sae.encode(token[None]) for token in x])
    torch.testing.assert_close(source.sae.encode(x), one_by_one)
    assert source.architecture == architecture
    assert source.name == ("in-memory (" + architecture + ")" if where == "memory" else str(tmp_path / "sae"))


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_reconstructions_are_codes_times_decoder_rows(architecture, x):
    rescale = {"rescale_acts_by_decoder_norm": True} if architecture.endswith("topk") else {}
    sae = load_sae(tiny_sae(architecture, **rescale)).sae
    codes = sae.encode(x)
    torch.testing.assert_close(sae.decode(codes), codes @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_decoder_rescaling_is_folded_into_a_copy(architecture, x):
    mine = tiny_sae(
        architecture, rescale_acts_by_decoder_norm=True, metadata={"model_from_pretrained_kwargs": {"a": 1}}
    )
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    source = load_sae(mine)
    assert source.sae is not mine
    assert mine.cfg.rescale_acts_by_decoder_norm
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[name])
    torch.testing.assert_close(source.sae.encode(x), mine.encode(x))
    torch.testing.assert_close(source.sae(x), mine(x))
    torch.testing.assert_close(source.sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert source.model_kwargs == {"a": 1}


def test_a_plain_sae_in_memory_is_the_very_same_object():
    mine = tiny_sae(dtype="float64").train()
    source = load_sae(mine)
    assert source.sae is mine
    assert mine.training
    assert mine.W_dec.requires_grad
    assert mine.W_dec.dtype == torch.float32  # set by tiny_sae, and left alone


def test_metadata_is_read_and_missing_metadata_is_none(tmp_path):
    said = {
        "hook_name": "blocks.3.hook_resid_post",
        "model_name": "gpt2-small",
        "context_size": 128,
        "prepend_bos": True,
        "neuronpedia_id": "gpt2-small/3-x",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    mine = tiny_sae(metadata=said)
    mine.save_model(tmp_path / "sae")
    for source in (load_sae(mine), load_sae(tmp_path / "sae")):
        assert (source.hook_name, source.model_name) == ("blocks.3.hook_resid_post", "gpt2-small")
        assert (source.context_size, source.prepend_bos, source.neuronpedia_id) == (128, True, "gpt2-small/3-x")
        assert source.model_kwargs == {"center_writing_weights": True}
        assert source.expected_l0 is None
    bare = load_sae(tiny_sae())
    assert (bare.hook_name, bare.model_name, bare.model_kwargs) == (None, None, {})
    assert (bare.context_size, bare.prepend_bos, bare.neuronpedia_id) == (None, None, None)


def test_device_and_dtype_are_applied_to_what_is_loaded(tmp_path):
    tiny_sae().save_model(tmp_path / "sae")
    assert load_sae(tmp_path / "sae", dtype="bfloat16").sae.W_dec.dtype == torch.bfloat16
    torch.save(random_state(), tmp_path / "sae.pt")
    assert load_sae(tmp_path / "sae.pt", dtype="float64").sae.W_enc.dtype == torch.float64
    loaded = load_sae(str(tmp_path / "sae"))
    assert not loaded.sae.training
    assert not any(parameter.requires_grad for parameter in loaded.sae.parameters())
    assert "give float32" in refusal(tmp_path / "sae", dtype="int8")


# SAEs in training


TRAINING = ["Standard", "Gated", "TopK", "AbsTopK", "JumpReLU", "BatchTopK", "MatryoshkaBatchTopK", "MatchingPursuit"]


@pytest.mark.parametrize("kind", TRAINING)
def test_a_training_sae_becomes_what_its_inference_model_is(kind, tmp_path, x):
    import sae_lens

    k = {"k": 3} if "TopK" in kind else {}
    widths = {"matryoshka_widths": [10, D_SAE]} if "Matryoshka" in kind else {}
    norm = {"decoder_init_norm": 1.0} if kind == "MatchingPursuit" else {}
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, **k, **widths, **norm)
    mine = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    if "BatchTopK" in kind:
        assert "has no threshold yet" in refusal(mine)
        mine.topk_threshold += 0.4
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    mine.save_inference_model(tmp_path / "sae")
    source, saved = load_sae(mine), load_sae(tmp_path / "sae")
    assert source.architecture == saved.architecture == ("jumprelu" if "BatchTopK" in kind else source.architecture)
    torch.testing.assert_close(source.sae.encode(x), saved.sae.encode(x))
    torch.testing.assert_close(source.sae(x), saved.sae(x))
    if "BatchTopK" not in kind:
        torch.testing.assert_close(source.sae(x), mine(x))
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_saved_training_checkpoint_is_refused_with_how_to_convert(tmp_path):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)).save_model(tmp_path / "sae")
    assert "sae.save_inference_model(path)" in refusal(tmp_path / "sae")


# Refusals of SAELens SAEs


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_transcoders_are_refused_by_name(architecture, tmp_path):
    sae = tiny_sae(
        architecture, d_out=D_IN, apply_b_dec_to_input=False, metadata={"hook_name": "a", "hook_name_out": "b"}
    )
    assert f"architecture {architecture}, and it reads one hook point and writes another" in refusal(sae)
    sae.save_model(tmp_path / "sae")
    assert f"architecture {architecture}, and" in refusal(tmp_path / "sae")


def test_temporal_and_unknown_architectures_are_refused_by_name(tmp_path):
    tiny_sae().save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for architecture, sentence in (
        ("temporal", "temporal, and its codes depend on the earlier tokens"),
        ("matryoshka_batchtopk", "its codes depend on the other tokens of a batch"),
        ("telepathic", "unknown architecture 'telepathic': give one of standard, gated"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}))
        assert sentence in refusal(tmp_path)


@pytest.mark.parametrize(
    ("normalised", "advice"),
    [
        ("expected_average_only_in", "sae.fold_activation_norm_scaling_factor(scaling_factor)"),
        ("covariance_whitening", "sae.fold_activation_whitening(mean, whitening, unwhitening)"),
        ("layer_norm", "the size of a feature then changes with every token"),
        ("constant_norm_rescale", "the size of a feature then changes with every token"),
    ],
)
def test_normalised_activations_are_refused(normalised, advice):
    message = refusal(tiny_sae(normalize_activations=normalised))
    assert normalised in message
    assert advice in message


def test_folded_normalisation_is_accepted():
    sae = tiny_sae(normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(2.0)
    assert load_sae(sae).sae is sae


def test_one_attention_head_is_refused():
    assert "attention head 0 alone" in refusal(tiny_sae(metadata={"hook_head_index": 0}))


def test_broken_weights_are_refused(tmp_path):
    sae = tiny_sae()
    sae.W_enc.data[0, 0] = float("nan")
    assert "NaN or Inf in W_enc" in refusal(sae)
    torch.save(random_state() | {"b_dec": torch.full((D_IN,), float("inf"))}, tmp_path / "sae.pt")
    assert "NaN or Inf in b_dec" in refusal(tmp_path / "sae.pt")


def test_another_width_is_refused(tmp_path):
    assert f"width {D_IN}, but 768 was expected" in refusal(tiny_sae(), d_in=768)
    torch.save(random_state(), tmp_path / "sae.pt")
    assert f"width {D_IN} (" in refusal(tmp_path / "sae.pt", d_in=768)


@pytest.mark.parametrize("thing", [3, object(), torch.nn.Linear(2, 3)])
def test_what_is_no_sae_is_refused(thing):
    assert "expected a SAELens SAE" in refusal(thing)


# Bare state dicts


def linear_style(state):
    names = {"encoder.weight": state["W_enc"].T, "decoder.weight": state["W_dec"].T}
    return names | {"encoder.bias": state["b_enc"], "decoder.bias": state["b_dec"]}


def openai_style(state):
    names = {"encoder.weight": state["W_enc"].T, "decoder.weight": state["W_dec"].T, "latent_bias": state["b_enc"]}
    return names | {"pre_bias": state["b_dec"], "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long)}


def nested(state):
    adam = {"state": {0: {"exp_avg": state["W_enc"], "exp_avg_sq": state["W_enc"]}}, "param_groups": [{"lr": 1e-4}]}
    beside = {"step": 1000, "optimizer_state_dict": adam, "config": {"l1_coeff": 3e-4, "d_in": D_IN}, "loss": 0.3}
    return {"model_state_dict": dict(state), **beside}


SUBTRACTED = {
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
    [(name, "pt") for name in SUBTRACTED] + [(name, "safetensors") for name in SUBTRACTED if name != "nested"],
)
def test_state_dicts_whose_bias_is_shared(convention, suffix, tmp_path, x):
    state = random_state()
    content = SUBTRACTED[convention](state)
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


@pytest.mark.parametrize("head", ["", "module.", "_orig_mod."])
def test_linear_modules_add_their_decoder_bias_only(head, tmp_path, x):
    state = random_state()
    torch.save({head + name: tensor for name, tensor in linear_style(state).items()}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu(torch.nn.functional.linear(x, state["W_enc"].T, state["b_enc"]))
    torch.testing.assert_close(sae.encode(x), codes)
    torch.testing.assert_close(sae(x), torch.nn.functional.linear(codes, state["W_dec"].T, state["b_dec"]))


def test_a_pre_bias_beside_a_decoder_bias_is_subtracted_alone(tmp_path, x):
    state = random_state()
    pre = torch.randn(D_IN)
    torch.save(linear_style(state) | {"pre_encoder_bias": pre}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu((x - pre) @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), codes @ state["W_dec"] + state["b_dec"], rtol=1e-4, atol=1e-5)


def test_tied_weights(tmp_path, x):
    state = random_state()
    torch.save({"encoder.weight": state["W_enc"].T, "encoder.bias": state["b_enc"]}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path / "sae.pt").sae
    codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
    torch.testing.assert_close(sae(x), codes @ state["W_enc"].T)


def test_an_undercomplete_dictionary_needs_d_in(tmp_path, x):
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(D_IN, 4, generator=generator), torch.randn(4, D_IN, generator=generator)
    torch.save({"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(4)}, tmp_path / "sae.pt")
    torch.testing.assert_close(load_sae(tmp_path / "sae.pt", d_in=D_IN).sae(x), torch.relu(x @ W_enc) @ W_dec)
    assert "b_enc of shape [4]" in refusal(tmp_path / "sae.pt")  # without it, 4 would be the width of the activations


@pytest.mark.parametrize("name", ["threshold", "log_threshold"])
def test_a_threshold_makes_a_jumprelu_that_does_not_subtract_b_dec(name, tmp_path, x):
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


def test_k_in_a_config_beside_the_file(tmp_path):
    torch.save(random_state(), tmp_path / "sae.pt")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 4, "normalize_decoder": True, "expansion_factor": 32}))
    assert load_sae(tmp_path / "sae.pt").sae.cfg.k == 4
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 4, "transcode": True}))
    assert "transcode=True" in refusal(tmp_path / "sae.pt")


def test_weights_of_a_saelens_directory_are_read_with_its_config(tmp_path):
    tiny_sae("topk", metadata={"hook_name": "blocks.1.hook_resid_post"}).save_model(tmp_path)
    source = load_sae(tmp_path / "sae_weights.safetensors")
    assert (source.architecture, source.hook_name) == ("topk", "blocks.1.hook_resid_post")


def square():
    return {"W_enc": torch.randn(4, 4), "W_dec": torch.randn(4, 4), "b_enc": torch.randn(4)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (square(), "square matrices"),
        ({"0.weight": torch.randn(9, 4), "2.weight": torch.randn(4, 9)}, "with names that tell them apart"),
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
        (random_state() | {"k": torch.tensor(99)}, "k=99, expected a whole number from 1 to 20"),
        ({"state_dict": random_state(), "config": {"architecture": "topk"}}, "'topk', but what this needs"),
        ({"state_dict": random_state(), "config": {"architecture": "batch_topk", "k": 3}}, "'batchtopk', but what"),
        ({"state_dict": random_state(), "config": {"activation": "gelu"}}, "'gelu', but what this needs"),
        ({"encoder": random_state(), "decoder": random_state()}, "weights in several places"),
        ({"step": 3}, "holds no matrices (its keys: step)"),
        ({}, "holds no matrices"),
        ([torch.zeros(3)], "holds a list, expected a state dict"),
    ],
)
def test_ambiguous_state_dicts_are_refused(content, sentence, tmp_path):
    torch.save(content, tmp_path / "sae.pt")
    message = refusal(tmp_path / "sae.pt")
    assert sentence in message
    assert str(tmp_path / "sae.pt") in message


def test_harmless_scalars_are_passed_over(tmp_path):
    content = {"scaling_factor": torch.ones(D_SAE), "bandwidth": torch.tensor(1e-3), "step": torch.tensor(7)}
    torch.save(random_state() | content, tmp_path / "sae.pt")
    assert load_sae(tmp_path / "sae.pt").architecture == "standard"


@given(
    d_in=st.integers(2, 5),
    more=st.integers(1, 6),
    turned=st.tuples(st.booleans(), st.booleans()),
    head=st.sampled_from(["", "module.", "sae.", "_orig_mod.module.sae."]),
    under=st.sampled_from([(), ("state_dict",), ("checkpoint", "model")]),
)
@settings(max_examples=40)
def test_orientation_prefix_and_nesting_change_nothing(d_in, more, turned, head, under):
    d_sae = d_in + more
    weights = {"W_enc": torch.randn(d_in, d_sae), "W_dec": torch.randn(d_sae, d_in), "b_enc": torch.randn(d_sae)}
    matrices = {name: weights[name].T if turn else weights[name] for name, turn in zip(weights, turned, strict=False)}
    content = {head + name: tensor for name, tensor in (weights | matrices).items()}
    for key in reversed(under):
        content = {key: content, "step": 3}
    found = infer_weights(content, source="a checkpoint")
    for name, tensor in weights.items():
        assert torch.equal(getattr(found, name), tensor)
    assert torch.equal(found.b_dec, torch.zeros(d_in))
    assert not found.subtract_b_dec


# Files that are no SAEs


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_code_in_a_pickle_is_never_run(tmp_path):
    torch.save({"W_enc": Code()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"W_enc": Code()}))
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt")
    assert "a pickle of posix.system, which could run code" in refusal(tmp_path / "torch.pt")
    assert "which could run code" in refusal(tmp_path / "plain.pt")
    assert "a pickle of torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")


def test_broken_files_are_refused(tmp_path):
    torch.save(random_state(), tmp_path / "whole.pt")
    save_file(random_state(), tmp_path / "whole.safetensors")
    for suffix, sentence in (("pt", "not a whole torch file"), ("safetensors", "not a whole safetensors file")):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for content in (whole[: len(whole) // 2], b"hello, this is a text file", bytes(range(256))):
            (tmp_path / f"broken.{suffix}").write_bytes(content)
            assert sentence in refusal(tmp_path / f"broken.{suffix}")
        (tmp_path / f"empty.{suffix}").touch()
        assert "is empty" in refusal(tmp_path / f"empty.{suffix}")
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a .pt or .safetensors file" in refusal(tmp_path / "notes.txt")


def test_broken_directories_are_refused(tmp_path):
    assert "has no cfg.json and no sae_weights.safetensors" in refusal(tmp_path)
    tiny_sae().save_model(tmp_path)
    whole = (tmp_path / "sae_weights.safetensors").read_bytes()
    (tmp_path / "sae_weights.safetensors").write_bytes(whole[:100])
    assert "could not be loaded as an SAE (SafetensorError" in refusal(tmp_path)
    save_file({"W_enc": torch.zeros(2, 2)}, tmp_path / "sae_weights.safetensors")
    assert "could not be loaded as an SAE" in refusal(tmp_path)
    for config in ("{", "[1, 2]", "3"):
        (tmp_path / "cfg.json").write_text(config)
        assert "is not a whole JSON object" in refusal(tmp_path)


# SAELens's directory


@pytest.mark.parametrize("name", ["gpt2", "gpt2-small", "openai-community/gpt2"])
def test_all_names_of_a_model_find_its_saes(name):
    entries = find_saes(name, 8)
    by_spec = {entry.spec: entry for entry in entries}
    known = by_spec["gpt2-small-res-jb:blocks.8.hook_resid_pre"]
    assert (known.layer, known.hook_name, known.expected_l0) == (8, "blocks.8.hook_resid_pre", 60.0)
    assert known.neuronpedia_id == "gpt2-small/8-res-jb"
    assert by_spec["gpt2-small-mlp-out-v5-32k:blocks.8.hook_mlp_out"].expected_l0 is None  # 0.0 in the directory
    assert by_spec["gpt2-small-hook-z-kk:blocks.8.hook_z"].hook_name == "blocks.8.attn.hook_z"
    assert {entry.layer for entry in entries} == {8}


def test_names_are_not_mixed_up():
    assert find_saes("EleutherAI/pythia-70m-deduped") == find_saes("pythia-70m-deduped") != []
    assert find_saes("pythia-70m") == []
    assert find_saes("pythia-410m-deduped") == []
    assert find_saes("no-such-model") == []


def test_layers_are_read_off_every_style_of_id():
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


def test_what_the_directory_shows_to_be_refused_is_refused_before_a_download(hub):
    assert "is a transcoder SAE, and" in refusal("gemma-scope-2b-pt-transcoders:layer_0/width_16k/average_l0_76")
    assert "is a transcoder SAE, and" in refusal("mntss-gemma-2-2b-2.5m-clt-as-per-layer:layer_4")
    assert "is a temporal SAE, and" in refusal("temporal-sae-gemma-2-2b:blocks.12.hook_resid_post")
    assert "normalises activations at run time" in refusal("mistral-7b-res-wg:blocks.8.hook_resid_pre")


def test_unknown_releases_and_ids_name_the_nearest(hub):
    assert "did you mean gpt2-small-res-jb" in refusal("gpt2-small-res-jbb:blocks.8.hook_resid_pre")
    assert "did you mean blocks.8.hook_resid_pre" in refusal("gpt2-small-res-jb:blocks.8.hook_resid_prr")
    assert "list those of a model with tl-floor saes MODEL" in refusal("zzzz")
    message = refusal("gpt2-small-res-jb")
    assert "gpt2-small-res-jb has 13 SAEs" in message
    assert message.endswith("and 1 more: tl-floor saes gpt2-small")
    assert "or a layer" not in refusal("gpt2-small-res-jb", layer=99)


def test_an_sae_of_the_directory_comes_from_the_cache(hub, tmp_path, x):
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


def test_no_network_is_said_in_one_sentence(hub):
    for spec in ("gpt2-small-res-jb:blocks.8.hook_resid_pre", "someone/something", "someone/something:sae.pt"):
        assert "is not in the local cache and the Hub cannot be reached" in refusal(spec)
    assert "a/b:c" in refusal("a/b:c")


# The Hub


def test_a_repository_is_searched_for_its_sae(hub, tmp_path, x):
    mine = tiny_sae()
    weights, config = mine.save_model(tmp_path / "sae")
    add_to_cache(hub, "me/one", {"cfg.json": config, "sae_weights.safetensors": weights, "README.md": config})
    torch.testing.assert_close(load_sae("me/one").sae(x), mine(x))
    torch.testing.assert_close(load_sae("me/one:sae_weights.safetensors").sae(x), mine(x))
    two = {f"layer_{layer}/{file.name}": file for layer in (3, 11) for file in (config, weights)}
    add_to_cache(hub, "me/two", two)
    assert (
        "me/two has 2 SAEs, give one of them with --sae or a layer with --layer: me/two:layer_11, me/two:layer_3"
        in refusal("me/two")
    )
    assert load_sae("me/two", layer=11).name == "me/two:layer_11"
    torch.testing.assert_close(load_sae("me/two:layer_3").sae(x), mine(x))
    add_to_cache(hub, "me/none", {"README.md": config})
    assert "me/none holds no SAE that can be read" in refusal("me/none")


def test_a_file_on_the_hub_is_read_with_the_config_beside_it(hub, tmp_path):
    torch.save(linear_style(random_state()), tmp_path / "sae.pt")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 5}))
    files = {"layers.5/sae.pt": tmp_path / "sae.pt", "layers.5/cfg.json": tmp_path / "cfg.json"}
    add_to_cache(hub, "me/sparse", files)
    source = load_sae("me/sparse:layers.5/sae.pt")
    assert (source.architecture, source.sae.cfg.k, source.name) == ("topk", 5, "me/sparse:layers.5/sae.pt")


# What huggingface_hub itself speaks by: httpx, and httpx2 from its version 2 on.
httpx = importlib.import_module(errors.HTTPError.__module__)


def answer(error: type, status: int) -> Exception:
    request = httpx.Request("HEAD", "https://hub.invalid")
    return error("many\nlines", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (answer(errors.GatedRepoError, 403), "is gated: accept its terms on the Hub, then type hf auth login"),
        (answer(errors.RepositoryNotFoundError, 404), "neither a local path nor a public repository of the Hub"),
        (answer(errors.RemoteEntryNotFoundError, 404), "does not exist on the Hub"),
        (answer(errors.HfHubHTTPError, 500), "could not be loaded as an SAE (HfHubHTTPError: many)"),
        (httpx.ConnectError("no"), "is not in the local cache and the Hub cannot be reached"),
    ],
)
def test_what_the_hub_answers_becomes_a_sentence(error, sentence, hub, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    assert sentence in refusal("me/mine:folder")
    assert sentence in refusal("me/mine")


# The paper's SAEs


def test_the_papers_saes_are_listed_the_adaptive_one_first():
    for name in ("pythia-410m", "EleutherAI/pythia-410m"):
        entries = find_saes(name, 12)
        assert [entry.spec for entry in entries] == [f"{repository}:{PAPER_FILE}" for repository in PAPER_REPOSITORIES]
        assert {(entry.layer, entry.hook_name) for entry in entries} == {(12, "blocks.12.hook_resid_post")}
    assert len(find_saes("pythia-410m")) == 72
    assert find_saes("pythia-410m", 24) == []


def test_the_papers_sae_is_the_one_for_its_model_and_layer(hub, tmp_path, x):
    state = random_state()
    torch.save({"model_state_dict": linear_style(state), "step": 9}, tmp_path / PAPER_FILE)
    add_to_cache(hub, PAPER_REPOSITORIES[0], {PAPER_FILE: tmp_path / PAPER_FILE})
    for spec, model_name in ((None, "pythia-410m"), (PAPER_REPOSITORIES[0], None)):
        source = load_sae(spec, model_name=model_name, layer=12, d_in=D_IN)
        assert source.name == f"{PAPER_REPOSITORIES[0]}:{PAPER_FILE}"
        assert (source.hook_name, source.model_name) == ("blocks.12.hook_resid_post", "EleutherAI/pythia-410m")
        codes = torch.relu(x @ state["W_enc"] + state["b_enc"])
        torch.testing.assert_close(source.sae(x), codes @ state["W_dec"] + state["b_dec"])


def in_a_subprocess(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_module_is_quick_to_import():
    code = "import sys; from tl_distill_floor.sources import saes; print({'torch', 'sae_lens'} & set(sys.modules))"
    assert in_a_subprocess(code) == "set()"


@pytest.mark.slow
def test_a_subprocess_reads_the_same_cache(hub, tmp_path):
    torch.save(random_state(), tmp_path / PAPER_FILE)
    add_to_cache(hub, PAPER_REPOSITORIES[0], {PAPER_FILE: tmp_path / PAPER_FILE})
    code = "from tl_distill_floor.sources.saes import load_sae;"
    code += "print(load_sae(None, model_name='pythia-410m', layer=12).name)"
    assert in_a_subprocess(code) == f"{PAPER_REPOSITORIES[0]}:{PAPER_FILE}"


# No SAE named


def test_without_a_name_the_only_sae_is_taken_or_the_choice_is_shown(hub):
    message = refusal(None, model_name="gpt2", layer=8)
    assert "gpt2 at layer 8 has" in message
    assert "with --sae: gpt2-small-res-jb:blocks.8.hook_resid_pre, gpt2" in message  # the residual stream first
    assert message.endswith("more: tl-floor saes gpt2")
    message = refusal(None, model_name="pythia-410m")
    assert "pythia-410m has 72 SAEs, give one of them with --sae or a layer with --layer: nileshsarkar-ai/" in message
    assert "tl-floor train-sae pythia-160m --layer 4" in refusal(None, model_name="pythia-160m", layer=4)
    assert "tl-floor train-sae pythia-160m --layer L" in refusal(None, model_name="pythia-160m")
    assert "nothing says which SAE" in refusal(None)
    only = refusal(None, model_name="meta-llama/Llama-3.3-70B-Instruct")  # taken, then not in the cache
    assert "goodfire-llama-3.3-70b-instruct:layer_50 is not in the local cache" in only


def test_missing_paths_are_not_taken_for_repositories(hub, tmp_path):
    for spec in (tmp_path / "nothing", "./nothing", "~/no/such/sae", "folder/sae.pt"):
        assert "there is no file or folder" in refusal(spec)


@pytest.mark.parametrize("nest", [lambda d: {"state_dict": d}, lambda d: {f"ae.{name}": t for name, t in d.items()}])
def test_a_whole_number_k_beside_nested_weights_makes_a_topk(nest: object) -> None:
    matrix = torch.randn(4, 16)
    weights = {"W_enc": matrix, "W_dec": matrix.T, "b_enc": torch.zeros(16), "b_dec": torch.zeros(4)}
    assert infer_weights(nest(weights | {"k": torch.tensor(3)}), source="x").k == 3
