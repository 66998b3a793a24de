"""Students: what their configuration becomes, and what they inherit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tl_distill_floor.distilling.build import build_student, parameters_of, student_config
from tl_distill_floor.errors import InputError


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


@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_singular_directions_keep_most_of_the_embeddings(family: str, request: pytest.FixtureRequest) -> None:
    """Tables of a student are the teacher's in orthogonal directions: the leading singular values of all are kept."""
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, 8, start="svd")
    whole = build_student(teacher, int(teacher.cfg.d_model), start="teacher-slice")

    def stacked(model: Any) -> torch.Tensor:
        tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        return torch.cat([*tables, model.get_output_embeddings().weight]).detach()

    found, all_of_them = (torch.linalg.svdvals(stacked(model)) for model in (student, whole))
    torch.testing.assert_close(found, all_of_them[:8], rtol=1e-3, atol=1e-3)


def test_what_reads_and_what_writes_is_turned_on_its_side(bridge: Any) -> None:
    """A student of the whole width, after a rotation R: what reads is W R, what writes is Rᵀ W."""
    turned, plain = (build_student(bridge, 24, start=start) for start in ("svd", "teacher-slice"))
    rotation = torch.linalg.lstsq(plain.gpt_neox.embed_in.weight, turned.gpt_neox.embed_in.weight).solution.detach()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(24), atol=1e-3, rtol=1e-3)
    ours, theirs = (model.gpt_neox.layers[2] for model in (turned, plain))
    for path in ("attention.query_key_value", "mlp.dense_h_to_4h"):
        weight = theirs.get_submodule(path).weight @ rotation
        torch.testing.assert_close(ours.get_submodule(path).weight, weight, atol=1e-3, rtol=1e-3)
    for path in ("attention.dense", "mlp.dense_4h_to_h"):
        weight = rotation.T @ theirs.get_submodule(path).weight
        torch.testing.assert_close(ours.get_submodule(path).weight, weight, atol=1e-3, rtol=1e-3)


def test_a_joint_weight_of_an_unknown_kind_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    phi = bridged(config, Phi3ForCausalLM, tokenizer, tmp_path)
    assert build_student(phi, 16, start="random").config.hidden_size == 16
    with pytest.raises(InputError, match="joins several weights in a way that is not known here; use --start random"):
        build_student(phi, 16, start="teacher-slice")


@pytest.mark.parametrize("width", range(8, 57))
def test_grouped_queries_fit_their_keys_where_the_head_size_follows_from_the_width(width: int) -> None:
    """Qwen2's configuration has no head size of its own: 14 queries of 4 to 2 keys."""
    from types import SimpleNamespace

    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=50, hidden_size=56, intermediate_size=64, num_hidden_layers=1, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    teacher = SimpleNamespace(original_model=SimpleNamespace(config=config))
    try:
        narrow = student_config(teacher, width)
    except InputError as error:
        assert "no head near the teacher's 4 dimensions" in str(error)  # noqa: PT017
        return
    assert Qwen2ForCausalLM(narrow)(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 50)


def test_joint_weights_are_cut_head_by_head(bridge: Any) -> None:
    """GPT-NeoX holds query, key and value of a head side by side: two heads of 8 are the first 48 rows of 72."""
    student = build_student(bridge, 16, start="teacher-slice")
    joint = bridge.original_model.state_dict()
    (name,) = [n for n in joint if n.endswith("layers.1._original_component.attention._original_component.query_key_value._original_component.weight")]  # fmt: skip  # noqa: E501
    ours = student.gpt_neox.layers[1].attention.query_key_value.weight
    assert torch.equal(ours, joint[name][:48, :16])


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_a_hooked_transformer_gets_a_student_of_the_family_it_was_loaded_by(teacher_dir: Path) -> None:
    pytest.importorskip("transformer_lens.HookedTransformer")
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer

    from tl_distill_floor import DistillConfig, distill

    config = HookedTransformerConfig(
        n_layers=3, d_model=24, n_ctx=64, d_head=8, n_heads=3, d_mlp=48, d_vocab=300, act_fn="gelu", device="cpu",
        model_name=str(teacher_dir), seed=0,
    )  # fmt: skip
    teacher = HookedTransformer(config, AutoTokenizer.from_pretrained(teacher_dir))
    assert type(build_student(teacher, 16, start="random")).__name__ == "GPTNeoXForCausalLM"
    ids = torch.randint(1, 300, (12, 16), generator=torch.Generator().manual_seed(0))
    result = distill(
        teacher, 16, ids, start="random", config=DistillConfig(n_tokens=256, batch_size=4, n_heldout_tokens=32)
    )
    assert (result.width, result.depth) == (16, 3)
    with pytest.raises(InputError, match="use --start random, or load the teacher as a TransformerBridge"):
        build_student(teacher, 16, start="svd")


def test_what_is_no_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="a teacher is a model with hook points or the name of one, got Linear"):
        build_student(torch.nn.Linear(2, 2), 8)
    bare = torch.nn.Linear(2, 2)
    bare.hook_dict, bare.cfg = {}, SimpleNamespace(model_name=None)
    with pytest.raises(InputError, match="needs a teacher with a Hugging Face configuration"):
        build_student(bare, 8)
