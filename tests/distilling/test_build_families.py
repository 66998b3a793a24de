"""Tests of students of families whose weights are joined, or whose sizes do not all follow one rule."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange

from tl_distill_floor.distilling.students.axis_maps import weight_axes
from tl_distill_floor.distilling.students.build import build_student, count_parameters
from tl_distill_floor.distilling.students.family_models import create_model
from tl_distill_floor.distilling.students.narrowing import check_rotation
from tl_distill_floor.distilling.students.student_config import student_config
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teachers import load_teacher

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def teacher_config(name: str, **fields: Any) -> Any:
    """Return the configuration of a tiny teacher."""
    import transformers

    return getattr(transformers, name)(**{**SIZES, **fields})


def kept_positions(config: Any, weight: str, axis: int, width: int = 32) -> list[int]:
    """Return the teacher's positions that one axis of a student's weight keeps."""
    return weight_axes(student_config(config, width), config)[weight].positions[axis].tolist()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Qwen3Config", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}),
        ("Gemma3TextConfig", {"hidden_size": 160, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}),
        ("MistralConfig", {"hidden_size": 160, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 4}),
    ],
)
def test_scales_heads_by_the_ratio_of_widths(name: str, fields: dict[str, Any]) -> None:
    """Heads times head size is twice the width, or 0.8 of it."""
    config = teacher_config(name, **fields)
    full, half = (student_config(config, config.hidden_size // share) for share in (1, 2))
    assert (full.num_attention_heads, full.num_key_value_heads) == (
        config.num_attention_heads,
        fields["num_key_value_heads"],
    )
    assert (half.num_attention_heads, half.num_key_value_heads) == (
        config.num_attention_heads // 2,
        fields["num_key_value_heads"] // 2,
    )
    assert half.head_dim == config.head_dim


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}, {"word_embed_proj_dim": 32, "ffn_dim": 64}),
        ("Qwen2MoeConfig", {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
         {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}),
        ("RecurrentGemmaConfig", {"lru_width": 64}, {"lru_width": 32}),
        ("Mamba2Config", {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8},
         {"num_heads": 4, "head_dim": 16, "state_size": 8}),
        ("RwkvConfig", {"attention_hidden_size": 64}, {"attention_hidden_size": 32, "intermediate_size": 64}),
    ],
)  # fmt: skip
def test_scales_the_sizes_that_follow_the_width(name: str, fields: dict[str, Any], expected: dict[str, int]) -> None:
    narrow = student_config(teacher_config(name, **fields), 32)
    assert {field: getattr(narrow, field) for field in expected} == expected


def test_scales_the_factors_of_rotary_embeddings_with_the_head_size() -> None:
    """Width 40 needs heads of size 10 rather than 16, with 5 instead of 8 frequencies."""
    factors = [1.0 + i for i in range(8)]
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": factors, "long_factor": factors,
        "original_max_position_embeddings": 128,
    }  # fmt: skip
    config = teacher_config("Phi3Config", original_max_position_embeddings=128, rope_parameters=rope)
    assert student_config(config, 40).rope_parameters["short_factor"] == [1.0, 2.0, 4.0, 5.0, 7.0]
    assert config.rope_parameters["short_factor"] == factors


def test_cuts_gate_and_up_of_experts_apart() -> None:
    config = teacher_config("MixtralConfig", num_local_experts=4, num_experts_per_tok=2, head_dim=16)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    axes = weight_axes(student_config(config, 32), config)[name]
    assert axes.residual == (2,)
    assert axes.positions[1].tolist() == [*range(64), *range(128, 192)]
    assert axes.positions[0].tolist() == [0, 1, 2, 3]


def test_cuts_query_key_and_value_apart() -> None:
    """GPT-2 joins them one after the other, GPT-NeoX head by head, and multi-query attention has one key head."""
    rows = torch.arange(3 * 64)
    expected = rearrange(rows, "(kind head size) -> kind head size", kind=3, head=4)[:, :2].flatten().tolist()
    assert kept_positions(teacher_config("GPT2Config"), "transformer.h.1.attn.c_attn.weight", 1) == expected
    expected = rearrange(rows, "(head kind size) -> head kind size", kind=3, head=4)[:2].flatten().tolist()
    assert (
        kept_positions(teacher_config("GPTNeoXConfig"), "gpt_neox.layers.1.attention.query_key_value.bias", 0)
        == expected
    )
    config = teacher_config("GPTBigCodeConfig", multi_query=True)
    assert kept_positions(config, "transformer.h.1.attn.c_attn.bias", 0) == [*range(32), *range(64, 96)]
    config = teacher_config("FalconConfig", multi_query=True, new_decoder_architecture=False, alibi=False)
    name = "transformer.h.1.self_attention.query_key_value.weight"
    assert kept_positions(config, name, 0) == [*range(32), *range(64, 96)]


def test_cuts_the_inputs_of_convolutions_part_by_part() -> None:
    """Mamba-2 convolves hidden states of size 128, and B and C of size 8."""
    config = teacher_config("Mamba2Config", num_heads=8, head_dim=16, n_groups=1, state_size=8, chunk_size=16)
    convolved = [*range(64), *range(128, 144)]
    assert kept_positions(config, "backbone.layers.1.mixer.conv1d.weight", 0) == convolved
    projected = [*range(64), *(128 + i for i in convolved), *range(272, 276)]
    assert kept_positions(config, "backbone.layers.1.mixer.in_proj.weight", 0) == projected


@pytest.mark.parametrize("name", ["Olmo2Config", "OlmoeConfig"])
def test_norms_of_queries_and_keys_are_not_residual(name: str) -> None:
    """They are as long as the residual stream, and the layer's own norms are not."""
    config = teacher_config(name, num_key_value_heads=4)
    axes = weight_axes(student_config(config, 32), config)
    for norm in ("self_attn.q_norm", "self_attn.k_norm"):
        assert axes[f"model.layers.1.{norm}.weight"].residual == ()
    assert axes["model.norm.weight"].residual == (0,)
    assert axes["model.layers.1.post_attention_layernorm.weight"].residual == (0,)


def test_rejects_a_projection_that_changes_the_logits() -> None:
    """XGLM adds sinusoidal positions, which a rotated residual stream cannot have."""
    config = teacher_config("XGLMConfig", d_model=64, ffn_dim=128, num_layers=2, attention_heads=4)
    narrow = student_config(config, 32)
    with pytest.raises(InputError, match=r'cannot be rotated .*use start="teacher-slice"'):
        check_rotation(create_model(narrow), weight_axes(narrow, config))
    llama = teacher_config("LlamaConfig")
    narrow = student_config(llama, 32)
    check_rotation(create_model(narrow), weight_axes(narrow, llama))
    swapped = weight_axes(narrow, llama)
    swapped["model.layers.0.self_attn.o_proj.weight"] = swapped["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(InputError, match="cannot be rotated"):
        check_rotation(create_model(narrow), swapped)


def test_students_of_a_model_of_text_and_images_are_text_models(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens installs torchvision for such a model if it is missing, and with it another torch."""
    from transformers import AutoProcessor, Gemma3Config, Gemma3ForConditionalGeneration

    installed: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", installed.append)
    monkeypatch.setitem(sys.modules, "torchvision", None)

    text = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3,
                          boi_token_index=4, eoi_token_index=5)  # fmt: skip
    torch.manual_seed(0)
    plain = Gemma3ForConditionalGeneration(config)
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_processor = AutoProcessor.from_pretrained
    bridge = load_teacher(str(tmp_path)).model
    assert installed == []
    assert AutoProcessor.from_pretrained == load_processor
    ids = torch.arange(6, 26).view(2, 10)
    for start in ("teacher-slice", "svd"):
        student = build_student(bridge, 64, start=start)
        assert type(student).__name__ == "Gemma3ForCausalLM"
        with torch.no_grad():
            torch.testing.assert_close(student(ids).logits, plain.eval()(ids).logits, atol=1e-4, rtol=1e-4)
        assert build_student(bridge, 32, start=start).config.hidden_size == 32
    assert count_parameters(bridge, 64) == sum(weight.numel() for weight in plain.model.language_model.parameters())


def test_rejects_a_teacher_whose_logits_plain_transformers_does_not_give(bridge: Any) -> None:
    """Its reported losses would not be those of the saved students."""

    def scale(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * 1.1

    handle = bridge.register_forward_hook(scale)
    try:
        for start in ("random", "teacher-slice", "svd"):
            with pytest.raises(
                InputError, match="GPTNeoXForCausalLM give logits that differ from the TransformerBridge's"
            ):
                build_student(bridge, 16, start=start)
    finally:
        handle.remove()
