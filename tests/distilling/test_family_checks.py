"""Tests of sizes and layers under the families' own names, and of the families whose students are refused."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tl_distill_floor.distilling.hf_trainer.frozen_teacher import _PlainTeacher
from tl_distill_floor.distilling.students import family_checks
from tl_distill_floor.distilling.students.build import build_student, check_student_runs, create_student_shell
from tl_distill_floor.distilling.students.family_models import create_model, create_shell
from tl_distill_floor.distilling.students.layers import layer_list
from tl_distill_floor.distilling.students.student_config import student_config
from tl_distill_floor.distilling.students.student_depth import set_depth
from tl_distill_floor.errors import InputError

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_group": 2, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "qk_nope_head_dim": 8,
}  # fmt: skip
DECODER = {
    "vocab_size": 64, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def teacher_config(name: str, **fields: Any) -> Any:
    """Return the configuration of a tiny teacher with Llama's field names."""
    return getattr(transformers, name)(**{**SIZES, **fields})


def plain_teacher(config: Any) -> Any:
    """Return a random teacher."""
    torch.manual_seed(0)
    return _PlainTeacher(create_model(config), "made")


def shapes(model: nn.Module, end: str) -> list[tuple[int, ...]]:
    """Return the shapes of the weights whose names end in a text."""
    return [tuple(weight.shape) for name, weight in model.named_parameters() if name.endswith(end)]


def gemma3n_config(n_layers: int = 4) -> Any:
    """Return a configuration whose numbers of neurons are a list, and which has three lists of other matrices."""
    return teacher_config(
        "Gemma3nTextConfig", head_dim=16, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, laurel_rank=8,
        num_kv_shared_layers=0, num_hidden_layers=n_layers, intermediate_size=[96] * n_layers,
        activation_sparsity_pattern=[0.0] * n_layers,
        layer_types=["sliding_attention"] * (n_layers - 1) + ["full_attention"],
    )  # fmt: skip


def llama4_config(**fields: Any) -> Any:
    """Return a configuration with another number of neurons in the layers without experts."""
    return teacher_config(
        "Llama4TextConfig", head_dim=16, intermediate_size_mlp=192, num_local_experts=4, num_experts_per_tok=1, **fields
    )


def test_neurons_of_layers_without_experts_follow_the_width() -> None:
    student = create_student_shell(llama4_config(interleave_moe_layer_step=2), 32)
    assert shapes(student, "feed_forward.gate_proj.weight") == [(96, 32)] * 2
    assert shapes(student, "shared_expert.gate_proj.weight") == [(48, 32)] * 2


def test_neurons_in_a_list_follow_the_width() -> None:
    student = create_student_shell(gemma3n_config(), 32)
    assert shapes(student, "mlp.gate_proj.weight") == [(48, 32)] * 4


def test_heads_in_a_list_follow_the_width() -> None:
    config = teacher_config(
        "LagunaConfig", head_dim=16, num_attention_heads_per_layer=[4, 4, 2, 4], shared_expert_intermediate_size=32,
        sliding_window=16, layer_types=["full_attention", "sliding_attention"] * 2,
        mlp_layer_types=["dense"] + ["sparse"] * 3, **EXPERTS,
    )  # fmt: skip
    student = create_student_shell(config, 32)
    assert shapes(student, "q_proj.weight") == [(32, 32), (32, 32), (16, 32), (32, 32)]
    assert shapes(student, "k_proj.weight") == [(16, 32)] * 4


def test_heads_of_decoders_keep_their_size() -> None:
    """Heads of size 16: two of them at width 32."""
    student = create_student_shell(transformers.BartConfig(**DECODER), 32)
    _, layers = layer_list(student)
    assert [layer.self_attn.head_dim for layer in layers] == [16] * 4


def test_settings_of_single_layers_follow_width_and_depth() -> None:
    """Two of the layers have larger heads, and one key-value head more."""
    config = teacher_config(
        "Gemma4TextConfig", head_dim=16, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8,
        num_attention_heads=8, num_hidden_layers=6, sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        per_layer_config={i: {"head_dim": 32, "num_key_value_heads": 4} for i in (2, 5)},
    )  # fmt: skip
    student = create_student_shell(config, 32)
    assert shapes(student, "k_proj.weight") == [(16, 32), (16, 32), (64, 32)] * 2
    student = create_student_shell(config, 32, depth=3)  # layers 0, 2 and 5
    assert shapes(student, "q_proj.weight") == [(64, 32), (128, 32), (128, 32)]
    assert student.config.layer_types == ["sliding_attention", "full_attention", "full_attention"]


@pytest.mark.parametrize(
    ("config", "depth", "experts"),
    [
        (llama4_config(), 2, [True, True]),
        (llama4_config(moe_layers=[1, 3]), 2, [False, True]),
        (teacher_config("Qwen3MoeConfig", head_dim=16, mlp_only_layers=[3], **EXPERTS), 2, [True, False]),
        (teacher_config("DeepseekV3Config", **{**LATENT, "first_k_dense_replace": 2}), 2, [False, True]),
        (teacher_config("DeepseekV3Config", **{**LATENT, "first_k_dense_replace": 2}), 3, [False, True, True]),
    ],
)
def test_students_with_fewer_layers_have_layers_of_the_teacher(config: Any, depth: int, experts: list[bool]) -> None:
    """Two of four layers are the first and the last; three are the first, the third and the last."""
    student = create_student_shell(config, 32, depth)
    _, layers = layer_list(student)
    assert [any("experts" in name for name, _ in layer.named_modules()) for layer in layers] == experts


def test_each_layer_starts_from_its_own_teacher_layer() -> None:
    """Layers 0 and 3 of an interleaved teacher, whose second half has experts."""
    teacher = plain_teacher(teacher_config("Qwen3MoeConfig", head_dim=16, mlp_only_layers=[0, 1], **EXPERTS))
    student = build_student(teacher, 64, depth=2, start="teacher-slice")
    own, theirs = (model.state_dict() for model in (student, teacher.original_model))
    for layer, source in ((0, 0), (1, 3)):
        for name in ("self_attn.q_proj.weight", "input_layernorm.weight"):
            torch.testing.assert_close(own[f"model.layers.{layer}.{name}"], theirs[f"model.layers.{source}.{name}"])
    assert student.config.mlp_only_layers == [0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.BartConfig(**DECODER), "the depth of Bart models does not follow the number of layers"),
        (
            transformers.xLSTMConfig(
                vocab_size=64, hidden_size=64, num_hidden_layers=4, num_blocks=4, num_heads=4, pad_token_id=0
            ),
            "the depth of xLSTM models does not follow the number of layers",
        ),
        (
            transformers.ProphetNetConfig(
                vocab_size=64, hidden_size=64, num_encoder_layers=4, num_decoder_layers=4, encoder_ffn_dim=96,
                num_encoder_attention_heads=4, num_decoder_attention_heads=4, decoder_ffn_dim=96,
                max_position_embeddings=64,
            ),
            "does not support the setting of `num_hidden_layers`",
        ),
        (
            teacher_config("Qwen3MoeConfig", head_dim=16, decoder_sparse_step=2, **EXPERTS),
            "layer 1 of a Qwen3Moe student with 3 layers is not of the kind of its teacher's layer 2",
        ),
    ],
)  # fmt: skip
def test_refuses_a_depth_that_the_family_does_not_follow(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_student_shell(config, 32, depth=3)
    with pytest.raises(InputError, match=message):
        build_student(plain_teacher(config), 32, depth=3, start="random")


def test_layers_are_found_next_to_other_lists_of_the_same_length() -> None:
    """Gemma3n has three projections in a list, and here as many layers."""
    name, layers = layer_list(create_shell(gemma3n_config(3)))
    assert (name, type(layers[0]).__name__) == ("model.layers", "Gemma3nTextDecoderLayer")


def test_refuses_to_take_weights_with_rows_for_every_layer_for_fewer_layers() -> None:
    """Four of seven layers keep all three projections, whose names have numbers up to 2."""
    teacher = plain_teacher(gemma3n_config(7))
    student = build_student(teacher, 32, depth=4, start="random")
    assert shapes(student, "altup_projections.2.weight") == [(32, 32)]
    with pytest.raises(InputError, match=r"embed_tokens_per_layer.weight depends on its number of layers"):
        build_student(teacher, 32, depth=4, start="teacher-slice")


def test_refuses_a_family_whose_neurons_keep_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is as if the field of the neurons had a name that is not known."""

    def forget_neurons(teacher: Any, width: int, depth: int | None = None) -> Any:
        config = student_config(teacher, width, depth)
        config.intermediate_size = teacher.intermediate_size
        return config

    config = teacher_config("LlamaConfig", num_hidden_layers=2)
    check_student_runs(copy.deepcopy(config), 32)
    monkeypatch.setattr(family_checks, "student_config", forget_neurons)
    monkeypatch.setattr(family_checks, "_REFUSALS", {})
    with pytest.raises(InputError, match="Llama models keeps its size of 96 when the width is halved"):
        check_student_runs(config, 32)


def test_accepts_a_number_of_neurons_that_is_rounded_up_to_a_large_multiple() -> None:
    """LFM2 rounds two thirds of 96 up to 256, at all widths."""
    config = teacher_config("Lfm2Config", layer_types=["conv", "full_attention"] * 2)
    student = create_student_shell(config, 32)
    assert shapes(student, "feed_forward.w1.weight") == [(256, 32)] * 4


def test_selects_the_settings_of_the_layers_that_are_used() -> None:
    """Layers 0, 2 and 5 of six; a list of numbers is renumbered, and a list of flags is not one of numbers.

    Six ids of tokens that end a text have nothing to do with six layers.
    """
    config = transformers.LlamaConfig(num_hidden_layers=6)
    fields: dict[str, Any] = {
        "moe_layers": [0, 1, 2, 3, 4, 5], "attn_layer_indices": [2, 3, 5], "no_rope_layers": [1, 1, 0, 1, 1, 0],
        "first_k_dense_replace": 3, "num_kv_shared_layers": 2, "layer_settings": {"2": "a", "4": "b"},
        "eos_token_id": [7, 8, 9, 10, 11, 12],
    }  # fmt: skip
    for name, value in fields.items():
        setattr(config, name, value)
    teacher = copy.deepcopy(config)
    set_depth(config, teacher, 3)
    assert {name: getattr(config, name) for name in fields} == {
        "moe_layers": [0, 1, 2], "attn_layer_indices": [1, 2], "no_rope_layers": [1, 0, 0],
        "first_k_dense_replace": 2, "num_kv_shared_layers": 1, "layer_settings": {1: "a"},
        "eos_token_id": [7, 8, 9, 10, 11, 12],
    }  # fmt: skip


@pytest.mark.parametrize("start", ["random", "teacher-slice", "svd"])
def test_experts_whose_rows_do_not_fit_their_kernel_are_refused_with_every_start(start: Any) -> None:
    """Kernels of several experts need rows of a multiple of 16 bytes, and 36 bytes are 9 numbers in fp32."""
    teacher = plain_teacher(teacher_config("Qwen3MoeConfig", head_dim=16, **EXPERTS))
    for _ in range(2):  # what was traced for the first one is used again for the second one
        with pytest.raises(InputError, match=r"Qwen3Moe student of width 9 cannot be run \(strides should be multiple"):
            build_student(teacher, 9, start=start)


@pytest.mark.parametrize("start", ["random", "teacher-slice", "svd"])
def test_experts_of_students_run_as_those_of_their_family(start: Any) -> None:
    config = teacher_config("Qwen3MoeConfig", head_dim=16, **EXPERTS)
    student = build_student(plain_teacher(config), 24, start=start)
    assert student.config._experts_implementation == create_model(config).config._experts_implementation
