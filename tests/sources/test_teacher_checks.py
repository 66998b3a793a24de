"""Teachers whose logits, weights or forward passes are not those of the model that was named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.models import save_family
from tl_distill_floor import InputError, distill, head_floor, load_teacher, measure
from tl_distill_floor.sources.teacher_checks import PlainModel, check_against_plain, relative_difference

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}


def sae_of(width: int, hook_name: str = "blocks.0.hook_resid_post") -> Any:
    """Return an SAE whose features are the positive and negative parts of each dimension."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=2 * width))
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    with torch.no_grad():
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
        sae.b_enc.fill_(-0.01)
        sae.b_dec.zero_()
    sae.cfg.metadata.hook_name = hook_name
    return sae


@pytest.mark.parametrize("family", ["HunYuanDenseV1", "Cohere", "Cohere2"])
def test_rejects_a_bridge_that_computes_another_model(family: str, tmp_path: Path, tokenizer: Any) -> None:
    save_family(tmp_path, tokenizer, family, head_dim=8, **GROUPED)
    sentence = rf"another model than transformers for {family}ForCausalLM: on 96 tokens .* nats on average \(KL "
    for dtype in ("fp32", "bf16"):
        with pytest.raises(InputError, match=sentence):
            load_teacher(tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rejects_the_eager_attention_of_falcon_with_alibi(dtype: Any, tmp_path: Path, tokenizer: Any) -> None:
    """TransformerLens asks for it, and it is another model than the one that transformers loads by default."""
    options = {"alibi": True, "multi_query": False, "new_decoder_architecture": False}
    save_family(tmp_path, tokenizer, "Falcon", **options)
    default, eager = (
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)(torch.arange(96)[None]).logits
        for attention in ("sdpa", "eager")
    )
    if torch.allclose(default, eager, atol=1e-3):
        pytest.skip("transformers was corrected")
    with pytest.raises(InputError, match="another model than transformers for FalconForCausalLM"):
        load_teacher(tmp_path, dtype=dtype)
    save_family(tmp_path, tokenizer, "Falcon", **options | {"alibi": False})
    assert load_teacher(tmp_path, dtype=dtype).not_compared == ""


def test_checks_again_in_fp32_what_may_be_rounding_in_bf16(tmp_path: Path, tokenizer: Any) -> None:
    """With small weights the difference of the wrong model is as small as rounding in bf16 may be."""
    save_family(tmp_path, tokenizer, "Cohere", initializer_range=0.02, **GROUPED)
    with pytest.raises(InputError, match="another model than transformers for CohereForCausalLM"):
        load_teacher(tmp_path, dtype="bf16")


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Granite"])
def test_accepts_a_bridge_that_computes_the_same_model(family: str, tmp_path: Path, tokenizer: Any) -> None:
    teacher = load_teacher(save_family(tmp_path, tokenizer, family, head_dim=8, **GROUPED))
    assert teacher.not_compared == ""
    assert type(teacher.model).__name__ == "TransformerBridge"


def test_keeps_the_tokenizer_that_transformer_lens_changes(teacher_dir: Path, tokenizer: Any) -> None:
    teacher = load_teacher(teacher_dir)
    assert teacher.tokenizer is not None
    assert teacher.tokenizer("some years ago")["input_ids"] == tokenizer("some years ago")["input_ids"]
    assert teacher.tokenizer.pad_token_id is None  # type: ignore[attr-defined]
    assert teacher.model.tokenizer.pad_token_id is not None


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_rejects_losses_of_a_random_head(head: str, tmp_path: Path, tokenizer: Any, ids: torch.Tensor) -> None:
    save_family(tmp_path, tokenizer, "Llama", head=head)
    sae = sae_of(32)
    sentence = r'has no language-modelling head \(lm_head.weight would be random\).* cost="energy"'
    for cost in ("fisher", "ablation"):
        with pytest.raises(InputError, match=sentence):
            measure(tmp_path, sae, ids, cost=cost)
    with pytest.raises(InputError, match=sentence):
        distill(tmp_path, 16, ids)
    with pytest.raises(InputError, match=sentence):
        measure(load_teacher(tmp_path).model, sae, ids)  # also after it was loaded
    assert measure(tmp_path, sae, ids, cost="energy").cost.sum() > 0


def test_rejects_a_checkpoint_without_some_layer(tmp_path: Path, tokenizer: Any) -> None:
    file = save_family(tmp_path, tokenizer, "Llama") / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight, which .* at random"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("unused", "options"),
    [("model.layers.1", {"num_hidden_layers": 1}), ("model.layers.0.self_attn.k_proj.bias", {"attention_bias": False})],
    ids=["layer", "bias"],
)
def test_names_weights_that_the_configuration_leaves_out(
    unused: str, options: dict[str, Any], tmp_path: Path, tokenizer: Any, ids: torch.Tensor
) -> None:
    """transformers only logs them; the teacher then computes another model than the one that was trained."""
    file = save_family(tmp_path, tokenizer, "Llama", num_hidden_layers=2, attention_bias=True) / "config.json"
    assert load_teacher(tmp_path).warnings == []
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    teacher = load_teacher(tmp_path)
    (warning,) = teacher.warnings
    assert f"has no place for {unused}" in warning
    assert warning in measure(teacher, sae_of(32), ids, cost="energy").warnings
    assert warning in head_floor(teacher, ids, widths=[8], steps=8, n_tokens=2000).warnings


@pytest.mark.parametrize("head", ["Model", "LMHeadModel"])
def test_masks_that_earlier_versions_of_transformers_saved_are_no_weights(
    head: str, tmp_path: Path, tokenizer: Any
) -> None:
    file = (
        save_family(tmp_path, tokenizer, "GPT2", head=head, n_inner=64, tie_word_embeddings=True) / "model.safetensors"
    )
    prefix = "" if head == "Model" else "transformer."
    save_file(load_file(file) | {f"{prefix}h.0.attn.masked_bias": torch.ones(1)}, file, {"format": "pt"})
    assert load_teacher(tmp_path).warnings == []
    save_file(load_file(file) | {f"{prefix}h.0.attn.c_attn.scale": torch.ones(1)}, file, {"format": "pt"})
    assert [f"no place for {prefix}h.0.attn.c_attn.scale of" in each for each in load_teacher(tmp_path).warnings] == [
        True
    ]


def test_rejects_a_bridge_whose_forward_pass_fails(bridge: Any, ids: torch.Tensor) -> None:
    def fail(*_inputs: object) -> None:
        raise AttributeError("no embed_positions\nsecond line")

    handle = bridge.blocks[0].register_forward_pre_hook(fail)
    sentence = r"\(GPTNeoXForCausalLM as TransformerBridge\) fails with AttributeError: no embed_positions; give"
    try:
        with pytest.raises(InputError, match=sentence):
            check_against_plain(bridge, PlainModel("GPTNeoXForCausalLM", ids[:2], None, "", ""), list)
    finally:
        handle.remove()


def test_says_why_logits_were_not_compared(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    reason = check_against_plain(bridge, PlainModel("X", ids[:2], None, "X gives no logits in transformers", ""), list)
    teacher = dataclasses.replace(load_teacher(bridge), not_compared=reason)
    expected = "the teacher's logits were not compared with transformers' (X gives no logits in transformers)"
    assert expected in measure(teacher, sae, ids, cost="energy").warnings


def test_relative_difference_of_known_log_probabilities() -> None:
    expected = torch.tensor([[-1.0, -3.0], [-2.0, -4.0], [-1.0, -3.0], [-1.0, -3.0]])
    shifted = expected + torch.tensor([[0.0], [0.0], [0.5], [0.5]])
    assert relative_difference(expected, expected) == 0.0
    assert relative_difference(expected, shifted) == 0.5  # the standard deviation over the vocabulary is 1
    masked = torch.tensor([[0.0, -torch.inf]])
    assert relative_difference(masked, masked) == 0.0
    assert relative_difference(masked, torch.tensor([[0.0, -5.0]])) == torch.inf
