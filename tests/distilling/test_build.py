"""Tests of student configurations, and of the weights that students inherit."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tl_distill_floor.annotations import StudentStart
from tl_distill_floor.distilling.planning.candidates import StudentFamily
from tl_distill_floor.distilling.students import student_config as student_config_module
from tl_distill_floor.distilling.students.axis_maps import weight_axes
from tl_distill_floor.distilling.students.build import build_student, count_parameters
from tl_distill_floor.distilling.students.narrowing import narrow
from tl_distill_floor.distilling.students.student_config import hugging_face_config, student_config
from tl_distill_floor.distilling.students.widths import family_widths
from tl_distill_floor.errors import InputError


def save_and_bridge(config: Any, model_class: Any, tokenizer: Any, directory: Path) -> Any:
    """Save a random model, and load it as a TransformerBridge."""
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    model_class(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return TransformerBridge.boot_transformers(str(directory), device="cpu")


@pytest.fixture(scope="module")
def llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Create a teacher with two query heads per key head, a head size of its own, and norms of scale 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return save_and_bridge(config, LlamaForCausalLM, tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Create a teacher with joint query, key and value weights in GPT-2's layout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return save_and_bridge(config, GPT2LMHeadModel, tokenizer, tmp_path_factory.mktemp("gpt2"))


def narrow_config(teacher: Any, width: int) -> Any:
    """Return the configuration of a student."""
    return student_config(hugging_face_config(teacher), width)


@pytest.mark.parametrize(
    ("width", "heads", "keys", "mlp"),
    [(32, 4, 2, 96), (16, 2, 1, 48), (8, 1, 1, 24), (24, 4, 2, 72), (20, 2, 1, 64)],
)
def test_keeps_head_size_and_grouping(llama: Any, width: int, heads: int, keys: int, mlp: int) -> None:
    config = narrow_config(llama, width)
    assert (config.head_dim, config.num_attention_heads, config.num_key_value_heads) == (8, heads, keys)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (width, mlp, 300)
    assert sum(p.numel() for p in build_student(llama, width).parameters()) == count_parameters(llama, width)


def test_changes_the_head_size_of_families_that_derive_it_from_the_width(bridge: Any, gpt2: Any) -> None:
    """The teachers have 3 heads of size 8 and 4 heads of size 8.

    GPT-NeoX rotates half of a head in pairs of dimensions, so its head size cannot be 6.
    """
    assert [narrow_config(bridge, width).num_attention_heads for width in (8, 16, 24, 12)] == [1, 2, 3, 3]
    assert [narrow_config(gpt2, width).num_attention_heads for width in (6, 8, 16, 32)] == [1, 1, 2, 4]
    with pytest.raises(InputError, match="no head size near the teacher's 8 fits a student of width 23; try width 24"):
        narrow_config(gpt2, 23)


@pytest.mark.parametrize(("width", "depth"), [(0, None), (33, None), (16, 0), (16, 4)])
def test_rejects_widths_and_depths_out_of_range(llama: Any, width: int, depth: int | None) -> None:
    message = (
        r"a student's (width must be from 1 to its teacher's 32|depth must be from 1 to its teacher's 3 layers), got"
    )
    with pytest.raises(InputError, match=message):
        build_student(llama, width, depth=depth)


@pytest.mark.parametrize("start", ["random", "svd"])
def test_rejects_teachers_whose_logits_are_not_numbers(llama: Any, start: StudentStart) -> None:
    weight = next(llama.original_model.model.layers[0].parameters())
    first = weight.detach().flatten()[0].clone()
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
        try:
            with pytest.raises(InputError, match="the teacher gives logits of NaN, so no student can be distilled"):
                build_student(llama, 16, start=start)
        finally:
            weight.view(-1)[0] = first


def test_random_students_depend_on_the_seed_and_keep_the_global_generator(llama: Any) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build_student(llama, 16, start="random", seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_slice_of_full_width_equals_the_teacher(family: str, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, int(teacher.cfg.d_model), start="teacher-slice")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids), atol=1e-4, rtol=1e-4)


def test_a_teacher_in_training_mode_has_no_dropout(gpt2: Any) -> None:
    """GPT-2 has dropout by default; the mode is restored."""
    expected = build_student(gpt2, 16).state_dict()
    gpt2.original_model.train()
    try:
        student = build_student(gpt2, 16)
        dropouts = [module for module in gpt2.original_model.modules() if isinstance(module, torch.nn.Dropout)]
        assert any(module.p > 0 for module in dropouts)
        assert all(module.training for module in dropouts)
    finally:
        gpt2.original_model.eval()
    assert all(torch.equal(weight, expected[name]) for name, weight in student.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_projection_to_the_full_width_keeps_the_teacher_output(family: str, request: pytest.FixtureRequest) -> None:
    """Scales of norms other than 1 included: all directions are kept, so that no rotation is needed."""
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, int(teacher.cfg.d_model), start="svd")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids), atol=1e-4, rtol=1e-4)


def random_rotation(size: int) -> torch.Tensor:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]


def rotated_student(teacher: Any, rotation: torch.Tensor) -> Any:
    """Return a student of the teacher's width whose residual stream is rotated."""
    config = hugging_face_config(teacher)
    student = build_student(teacher, int(config.hidden_size), start="teacher-slice")
    axes = weight_axes(narrow_config(teacher, int(config.hidden_size) // 2), config)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            keep_all = tuple(torch.arange(size) for size in weight.shape)
            weight.copy_(narrow(weight, dataclasses.replace(axes[name], positions=keep_all), rotation))
    return student


def test_rotation_of_the_residual_stream_keeps_the_teacher_output(llama: Any) -> None:
    """Root-mean-square norms of scale 1 are invariant to rotations."""
    student = rotated_student(llama, random_rotation(32))
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, llama(ids), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            student.lm_head.weight, build_student(llama, 32, start="teacher-slice").lm_head.weight
        )


@pytest.mark.parametrize("start", ["teacher-slice", "svd"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_inherits_fewer_dimensions_and_layers(family: str, start: str, request: pytest.FixtureRequest) -> None:
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, 8, depth=1, start=start)
    assert (student.config.hidden_size, student.config.num_hidden_layers) == (8, 1)
    assert student(torch.arange(20).view(1, 20)).logits.isfinite().all()


def test_layers_are_those_of_evenly_spaced_layers_of_the_teacher(llama: Any) -> None:
    """Two of three layers: the first and the last."""
    student = build_student(llama, 16, depth=2, start="teacher-slice").model.layers
    layers = build_student(llama, 32, start="teacher-slice").model.layers
    for of_student, of_teacher in zip(student, (layers[0], layers[2]), strict=True):
        torch.testing.assert_close(
            of_student.mlp.down_proj.weight, of_teacher.mlp.down_proj.weight[:16, :48], rtol=0, atol=0
        )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bridge"])
def test_projected_embeddings_keep_the_leading_singular_values(family: str, request: pytest.FixtureRequest) -> None:
    """The student's embeddings are the teacher's in orthogonal directions."""
    teacher = request.getfixturevalue(family)
    student = build_student(teacher, 8, start="svd")
    full = build_student(teacher, int(teacher.cfg.d_model), start="teacher-slice")

    def stacked_embeddings(model: Any) -> torch.Tensor:
        tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        return torch.cat([*tables, model.get_output_embeddings().weight]).detach()

    kept, every = (torch.linalg.svdvals(stacked_embeddings(model)) for model in (student, full))
    torch.testing.assert_close(kept, every[:8], rtol=1e-3, atol=1e-3)


def test_projects_the_inputs_of_readers_and_the_outputs_of_writers(bridge: Any) -> None:
    """With a rotation R, readers become W R, and writers Rᵀ W."""
    rotation = random_rotation(24)
    rotated, plain = rotated_student(bridge, rotation), build_student(bridge, 24, start="teacher-slice")
    embeddings = plain.gpt_neox.embed_in.weight @ rotation
    torch.testing.assert_close(rotated.gpt_neox.embed_in.weight, embeddings, atol=1e-3, rtol=1e-3)
    layer, teacher_layer = (model.gpt_neox.layers[2] for model in (rotated, plain))
    for path in ("attention.query_key_value", "mlp.dense_h_to_4h"):
        weight = teacher_layer.get_submodule(path).weight @ rotation
        torch.testing.assert_close(layer.get_submodule(path).weight, weight, atol=1e-3, rtol=1e-3)
    for path in ("attention.dense", "mlp.dense_4h_to_h"):
        weight = rotation.T @ teacher_layer.get_submodule(path).weight
        torch.testing.assert_close(layer.get_submodule(path).weight, weight, atol=1e-3, rtol=1e-3)


def test_cuts_joint_weights_part_by_part(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    phi = save_and_bridge(config, Phi3ForCausalLM, tokenizer, tmp_path)
    assert build_student(phi, 16, start="random").config.hidden_size == 16
    student = build_student(phi, 16, start="teacher-slice").model.layers[0]
    teacher = phi.original_model.state_dict()
    joint = {name.replace("._original_component", ""): weight for name, weight in teacher.items()}
    query, key, value = joint["model.layers.0.self_attn.qkv_proj.weight"].split(32)
    gate, up = joint["model.layers.0.mlp.gate_up_proj.weight"].split(64)
    expected = torch.cat([part[:16, :16] for part in (query, key, value)])
    torch.testing.assert_close(student.self_attn.qkv_proj.weight, expected, rtol=0, atol=0)
    expected = torch.cat([gate[:32, :16], up[:32, :16]])
    torch.testing.assert_close(student.mlp.gate_up_proj.weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize("width", range(8, 57))
def test_query_heads_are_a_multiple_of_key_heads_in_families_without_a_head_size(width: int) -> None:
    """Qwen2's configuration has no head size: here 14 query heads of size 4, and 2 key heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=50, hidden_size=56, intermediate_size=64, num_hidden_layers=1, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    try:
        narrowed = student_config(config, width)
    except InputError as error:
        assert "no head size near the teacher's 4 fits" in str(error)  # noqa: PT017
        return
    assert Qwen2ForCausalLM(narrowed)(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 50)


def test_slices_joint_weights_by_head(bridge: Any) -> None:
    """GPT-NeoX stores query, key and value of each head together: two heads of size 8 are the first 48 of 72 rows."""
    student = build_student(bridge, 16, start="teacher-slice")
    joint = bridge.original_model.state_dict()
    (name,) = [n for n in joint if n.endswith("layers.1._original_component.attention._original_component.query_key_value._original_component.weight")]  # fmt: skip  # noqa: E501
    weight = student.gpt_neox.layers[1].attention.query_key_value.weight
    assert torch.equal(weight, joint[name][:48, :16])


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_student_of_a_hooked_transformer_has_the_family_it_was_loaded_by(teacher_dir: Path) -> None:
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
    with pytest.raises(InputError, match='use start="random", or load the teacher as a TransformerBridge'):
        build_student(teacher, 16, start="svd")


def test_configurations_by_name_are_read_once_for_all_widths(
    teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, transformers may ask the Hub whether there is a newer one."""
    named = torch.nn.Linear(2, 2)
    named.hook_dict, named.cfg, named.tokenizer = {}, SimpleNamespace(model_name=str(teacher_dir), n_ctx=64), None
    reads: list[str] = []
    read = student_config_module._config_by_name
    monkeypatch.setattr(student_config_module, "_config_by_name", lambda name: reads.append(name) or read(name))
    assert len(family_widths(named)) > 5
    family = StudentFamily(named)
    n_reads = len(reads)
    assert n_reads <= 4
    assert [family.refusal(width) for width in (8, 16)] == ["", ""]
    assert family.size(8).n_parameters < family.size(16).n_parameters
    assert len(reads) == n_reads


def test_rejects_models_without_hook_points_or_configuration() -> None:
    with pytest.raises(InputError, match="a teacher must be a model with hook points or the name of one, got Linear"):
        build_student(torch.nn.Linear(2, 2), 8)
    bare = torch.nn.Linear(2, 2)
    bare.hook_dict, bare.cfg, bare.tokenizer = {}, SimpleNamespace(model_name=None), None
    with pytest.raises(InputError, match="needs a teacher with a Hugging Face configuration"):
        build_student(bare, 8)
