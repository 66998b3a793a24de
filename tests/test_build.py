"""Students: what their configuration becomes, and what they inherit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tl_distill_floor.errors import InputError
from tl_distill_floor.students.build import build_student, parameters_of, student_config


def bridged(config: Any, model_class: Any, tokenizer: Any, directory: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    model_class(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return TransformerBridge.boot_transformers(str(directory), device="cpu")


@pytest.fixture(scope="module")
def llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Grouped-query attention, two queries to a key; the head size is the configuration's own; norms of weight 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return bridged(config, LlamaForCausalLM, tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return bridged(config, GPT2LMHeadModel, tokenizer, tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize(
    ("width", "heads", "keys", "mlp"),
    [(32, 4, 2, 96), (16, 2, 1, 48), (8, 1, 1, 24), (24, 4, 2, 72), (20, 2, 1, 64)],
)
def test_head_size_and_grouping_stay(llama: Any, width: int, heads: int, keys: int, mlp: int) -> None:
    config = student_config(llama, width)
    assert (config.head_dim, config.num_attention_heads, config.num_key_value_heads) == (8, heads, keys)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (width, mlp, 300)
    assert sum(p.numel() for p in build_student(llama, width).parameters()) == parameters_of(llama, width)


def test_a_family_whose_head_size_follows_from_the_width(bridge: Any, gpt2: Any) -> None:
    """Teachers of 3 heads of 8 and of 4 heads of 8; half of GPT-NeoX's head is rotated, in pairs, so not 6."""
    assert [student_config(bridge, width).num_attention_heads for width in (8, 16, 24, 12)] == [1, 2, 3, 3]
    assert [student_config(gpt2, width).num_attention_heads for width in (6, 8, 16, 32)] == [1, 1, 2, 4]
    with pytest.raises(InputError, match="no head near the teacher's 8 dimensions fits a student of width 23; try 24"):
        student_config(gpt2, 23)


@pytest.mark.parametrize(("width", "depth"), [(0, None), (33, None), (16, 0), (16, 4)])
def test_widths_and_depths_that_are_none(llama: Any, width: int, depth: int | None) -> None:
    with pytest.raises(InputError, match=r"a student (is 1 to 32 dimensions wide|has 1 to 3 layers)"):
        build_student(llama, width, depth=depth)


def test_random_students_differ_by_seed_and_leave_the_generator_alone(llama: Any) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build_student(llama, 16, start="random", seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_a_slice_of_the_whole_width_is_the_teacher(family: str, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, int(teacher.cfg.d_model), start="teacher-slice")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids), atol=1e-4, rtol=1e-4)


def test_the_singular_directions_of_the_whole_width_turn_the_teacher_and_change_nothing(llama: Any) -> None:
    """Root-mean-square norms of weight 1 do not see a rotation."""
    student = build_student(llama, 32, start="svd")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, llama(ids), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            student.lm_head.weight, build_student(llama, 32, start="teacher-slice").lm_head.weight
        )


@pytest.mark.parametrize("start", ["teacher-slice", "svd"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_fewer_dimensions_and_layers_are_inherited(family: str, start: str, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, 8, depth=1, start=start)
    assert student(torch.arange(20).view(1, 20)).logits.isfinite().all()


def test_joint_weights_are_cut_head_by_head(bridge: Any) -> None:
    """GPT-NeoX holds query, key and value of a head side by side: two heads of 8 are the first 48 rows of 72."""
    student = build_student(bridge, 16, start="teacher-slice")
    joint = bridge.original_model.state_dict()
    (name,) = [n for n in joint if n.endswith("layers.1._original_component.attention._original_component.query_key_value._original_component.weight")]  # fmt: skip  # noqa: E501
    ours = student.gpt_neox.layers[1].attention.query_key_value.weight
    assert torch.equal(ours, joint[name][:48, :16])


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_a_hooked_transformer_gets_a_student_of_the_family_it_was_loaded_by(teacher_dir: Path) -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer

    from tl_distill_floor import Training, distill

    config = HookedTransformerConfig(
        n_layers=3, d_model=24, n_ctx=64, d_head=8, n_heads=3, d_mlp=48, d_vocab=300, act_fn="gelu", device="cpu",
        model_name=str(teacher_dir), seed=0,
    )  # fmt: skip
    teacher = HookedTransformer(config, AutoTokenizer.from_pretrained(teacher_dir))
    assert type(build_student(teacher, 16, start="random")).__name__ == "GPTNeoXForCausalLM"
    ids = torch.randint(1, 300, (12, 16), generator=torch.Generator().manual_seed(0))
    result = distill(teacher, 16, ids, start="random", training=Training(tokens=256, batch_size=4, heldout_tokens=32))
    assert (result.width, result.depth) == (16, 3)
    with pytest.raises(InputError, match="use --start random, or load the teacher as a TransformerBridge"):
        build_student(teacher, 16, start="svd")


def test_a_teacher_without_a_hugging_face_configuration_is_refused() -> None:
    with pytest.raises(InputError, match="needs a teacher with a Hugging Face configuration"):
        build_student(torch.nn.Linear(2, 2), 8)
