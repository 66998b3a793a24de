"""SAEs in memory and in SAELens directories, and the ones that are refused."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.saes import D_IN, D_SAE, random_state, refusal, tiny_sae
from tl_distill_floor.sources.sae_source import SUPPORTED_ARCHITECTURES
from tl_distill_floor.sources.saes import load_sae

STATED = {"activation": "relu", "apply_b_dec_to_input": True}
"""Settings of a checkpoint that say what its codes mean."""

# Architectures


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_loaded_sae_encodes_as_before_and_each_token_alone(architecture, where, tmp_path, x):
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


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_reconstruction_is_codes_times_decoder_plus_bias(architecture, x):
    rescale = {"rescale_acts_by_decoder_norm": True} if architecture.endswith("topk") else {}
    sae = load_sae(tiny_sae(architecture, **rescale)).sae
    codes = sae.encode(x)
    torch.testing.assert_close(sae.decode(codes), codes @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_folds_decoder_rescaling_into_a_copy(architecture, x):
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


def test_returns_a_plain_sae_in_memory_itself():
    mine = tiny_sae().double().train()
    source = load_sae(mine)
    assert source.sae is mine
    assert mine.training
    assert mine.W_dec.requires_grad
    assert mine.W_dec.dtype == torch.float64


def test_reads_metadata_and_sets_missing_fields_to_none(tmp_path):
    metadata = {
        "hook_name": "blocks.3.hook_resid_post",
        "model_name": "gpt2-small",
        "context_size": 128,
        "prepend_bos": True,
        "neuronpedia_id": "gpt2-small/3-x",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    mine = tiny_sae(metadata=metadata)
    mine.save_model(tmp_path / "sae")
    for source in (load_sae(mine), load_sae(tmp_path / "sae")):
        assert (source.hook_name, source.model_name) == ("blocks.3.hook_resid_post", "gpt2-small")
        assert (source.context_size, source.prepend_bos, source.neuronpedia_id) == (128, True, "gpt2-small/3-x")
        assert source.model_kwargs == {"center_writing_weights": True}
        assert source.expected_l0 is None
    bare = load_sae(tiny_sae())
    assert (bare.hook_name, bare.model_name, bare.model_kwargs) == (None, None, {})
    assert (bare.context_size, bare.prepend_bos, bare.neuronpedia_id) == (None, None, None)


@pytest.mark.parametrize(("l0", "expected"), [(3.5, 3.5), (float("nan"), None), (0.0, None), (-1.0, None)])
def test_an_l0_that_was_not_measured_is_not_expected(l0: float, expected: float | None) -> None:
    """SAELens stored NaN for an SAE that had not seen an activation."""
    assert load_sae(tiny_sae(metadata={"l0": l0})).expected_l0 == expected


def test_applies_dtype_to_loaded_weights(tmp_path):
    tiny_sae().save_model(tmp_path / "sae")
    assert load_sae(tmp_path / "sae", dtype="bfloat16").sae.W_dec.dtype == torch.bfloat16
    torch.save(random_state() | STATED, tmp_path / "sae.pt")
    assert load_sae(tmp_path / "sae.pt", dtype="float64").sae.W_enc.dtype == torch.float64
    loaded = load_sae(str(tmp_path / "sae"))
    assert not loaded.sae.training
    assert not any(parameter.requires_grad for parameter in loaded.sae.parameters())
    expected = "dtype must be one of float32, float64, float16, bfloat16, got 'int8'"
    assert refusal(tmp_path / "sae", dtype="int8") == expected


# Training SAEs


TRAINING = ["Standard", "Gated", "TopK", "AbsTopK", "JumpReLU", "BatchTopK", "MatryoshkaBatchTopK", "MatchingPursuit"]


@pytest.mark.parametrize("kind", TRAINING)
def test_training_sae_becomes_its_inference_model(kind, tmp_path, x):
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


def test_rejects_a_saved_training_sae_and_says_how_to_convert_it(tmp_path):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)).save_model(tmp_path / "sae")
    assert "sae.save_inference_model(path)" in refusal(tmp_path / "sae")


# Refusals of SAELens SAEs


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_rejects_transcoders(architecture, tmp_path):
    sae = tiny_sae(
        architecture, d_out=D_IN, apply_b_dec_to_input=False, metadata={"hook_name": "a", "hook_name_out": "b"}
    )
    assert f"architecture {architecture}, and it reads one hook point and writes another" in refusal(sae)
    sae.save_model(tmp_path / "sae")
    assert f"architecture {architecture}, and" in refusal(tmp_path / "sae")


def test_rejects_temporal_and_unknown_architectures(tmp_path):
    tiny_sae().save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for architecture, message in (
        ("temporal", "temporal, and its codes depend on the earlier tokens"),
        ("matryoshka_batchtopk", "its codes depend on the other tokens of a batch"),
        ("telepathic", "unknown architecture 'telepathic'; give one of standard, gated"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}))
        assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("normalisation", "advice"),
    [
        ("expected_average_only_in", "sae.fold_activation_norm_scaling_factor(scaling_factor)"),
        ("covariance_whitening", "sae.fold_activation_whitening(mean, whitening, unwhitening)"),
        ("layer_norm", "the scale of a feature then changes with every token"),
        ("constant_norm_rescale", "the scale of a feature then changes with every token"),
    ],
)
def test_rejects_normalised_activations(normalisation, advice):
    message = refusal(tiny_sae(normalize_activations=normalisation))
    assert normalisation in message
    assert advice in message


def test_accepts_folded_normalisation():
    sae = tiny_sae(normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(2.0)
    assert load_sae(sae).sae is sae


def test_rejects_weights_that_were_cast_without_the_dtype():
    assert "call sae.to(torch.float16)" in refusal(tiny_sae().half())
    assert load_sae(tiny_sae().to(torch.float16)).sae.dtype == torch.float16
    assert load_sae(tiny_sae().double()).sae.W_dec.dtype == torch.float64
    mixed = tiny_sae()
    mixed.W_enc.data = mixed.W_enc.data.bfloat16()
    assert "has W_enc in torch.bfloat16 and W_dec in torch.float32; call sae.to(torch.float32)" in refusal(mixed)
    assert load_sae(mixed.to(torch.float32)).sae.W_enc.dtype == torch.float32


def test_rejects_an_sae_of_one_attention_head():
    assert "only attention head 0" in refusal(tiny_sae(metadata={"hook_head_index": 0}))


def test_rejects_weights_that_are_not_finite(tmp_path):
    sae = tiny_sae()
    sae.W_enc.data[0, 0] = float("nan")
    assert "NaN or Inf in W_enc" in refusal(sae)
    torch.save(random_state() | {"b_dec": torch.full((D_IN,), float("inf"))} | STATED, tmp_path / "sae.pt")
    assert "NaN or Inf in b_dec" in refusal(tmp_path / "sae.pt")


def test_rejects_an_sae_of_another_width(tmp_path):
    assert f"width {D_IN}, but 768 was expected" in refusal(tiny_sae(), d_in=768)
    torch.save(random_state() | STATED, tmp_path / "sae.pt")
    assert f"width {D_IN} (" in refusal(tmp_path / "sae.pt", d_in=768)


@pytest.mark.parametrize("value", [3, object(), torch.nn.Linear(2, 3)])
def test_rejects_objects_that_are_not_saes(value):
    assert "expected a SAELens SAE" in refusal(value)


# Files that are not SAEs


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_does_not_run_code_in_a_pickle(tmp_path):
    torch.save({"W_enc": Code()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"W_enc": Code()}))
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt")
    assert "a pickle of posix.system, which could run code" in refusal(tmp_path / "torch.pt")
    assert "which could run code" in refusal(tmp_path / "plain.pt")
    assert "a pickle of torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")


def test_rejects_damaged_files(tmp_path):
    torch.save(random_state(), tmp_path / "complete.pt")
    save_file(random_state(), tmp_path / "complete.safetensors")
    for suffix, message in (("pt", "not a complete torch file"), ("safetensors", "not a complete safetensors file")):
        complete = (tmp_path / f"complete.{suffix}").read_bytes()
        for content in (complete[: len(complete) // 2], b"hello, this is a text file", bytes(range(256))):
            (tmp_path / f"damaged.{suffix}").write_bytes(content)
            assert message in refusal(tmp_path / f"damaged.{suffix}")
        (tmp_path / f"empty.{suffix}").touch()
        assert "is empty" in refusal(tmp_path / f"empty.{suffix}")
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a .pt, .safetensors or .npz file" in refusal(tmp_path / "notes.txt")


def test_names_the_weights_that_an_architecture_does_not_have(tmp_path):
    tiny_sae().save_model(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights | {"threshold": torch.ones(D_SAE)}, tmp_path / "sae_weights.safetensors")
    assert 'StandardSAE: Unexpected key(s) in state_dict: "threshold")' in refusal(tmp_path)


def test_rejects_damaged_directories(tmp_path):
    assert "has no cfg.json and no sae_weights.safetensors" in refusal(tmp_path)
    tiny_sae().save_model(tmp_path)
    complete = (tmp_path / "sae_weights.safetensors").read_bytes()
    (tmp_path / "sae_weights.safetensors").write_bytes(complete[:100])
    assert "could not be loaded as an SAE (SafetensorError" in refusal(tmp_path)
    save_file({"W_enc": torch.zeros(2, 2)}, tmp_path / "sae_weights.safetensors")
    assert "could not be loaded as an SAE" in refusal(tmp_path)
    for config in ("{", "[1, 2]", "3"):
        (tmp_path / "cfg.json").write_text(config)
        assert "is not a complete JSON object" in refusal(tmp_path)
