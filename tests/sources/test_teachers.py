"""Teachers by every road, and what is no teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import WIDTH
from tl_distill_floor import InputError, distill, load_teacher, measure
from tl_distill_floor.measuring.hooks import hook_point, name_in, reader
from tl_distill_floor.sources.teachers import same_model


def test_a_model_in_memory_is_itself(bridge: Any) -> None:
    assert load_teacher(bridge).model is bridge


def test_a_directory_is_loaded_as_hugging_face_has_it(teacher_dir: Path, bridge: Any, ids: torch.Tensor) -> None:
    teacher = load_teacher(teacher_dir)
    with torch.no_grad():
        assert torch.equal(teacher.model(ids), bridge(ids))
    assert teacher.loading == {"class": "TransformerBridge", "dtype": "float32"}


def test_bf16_is_bf16(teacher_dir: Path) -> None:
    assert next(load_teacher(str(teacher_dir), dtype="bf16").model.parameters()).dtype == torch.bfloat16


def test_auto_is_the_cpu_where_there_is_nothing_else(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    spread, whole = (measure(teacher_dir, sae, ids, device=device) for device in ("auto", "cpu"))
    assert spread.sum_cost.tolist() == whole.sum_cost.tolist()
    with pytest.raises(InputError, match="to measure, compare or probe it; name one device"):
        distill(teacher_dir, 8, ids, device="auto")


def test_a_device_without_float64_is_one_sentence(
    teacher_dir: Path, bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Apple's GPUs, of a teacher that is loaded and of one that is there."""
    made = torch.empty

    def as_on_mps(*size: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made(*size, dtype=dtype, **options)

    monkeypatch.setattr(torch, "empty", as_on_mps)
    for teacher, instead in ((teacher_dir, "set --device cpu"), (bridge, r'move the model with model.to\("cpu"\)')):
        with pytest.raises(InputError, match=f"has no float64, which sums need; {instead}"):
            load_teacher(teacher)


def test_a_gguf_file_is_loaded(tmp_path: Path) -> None:
    """A tiny Llama written by gguf itself, against the weights that were written."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)
    width, mlp, vocabulary = 32, 64, 40
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab", "cd", *(f"{c}!" for c in "abcdefghi")]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 37)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,), "output": (vocabulary, width)}
    shapes |= {f"blk.0.attn_{m}": (width, width) for m in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {"blk.0.ffn_gate": (mlp, width), "blk.0.ffn_up": (mlp, width), "blk.0.ffn_down": (width, mlp)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = load_teacher(file).model
    with reader(model, ["blocks.0.hook_resid_pre"]) as read:
        found = read(torch.tensor([[1, 5, 7]]))[0][0]
    torch.testing.assert_close(found, torch.from_numpy(weights["token_embd"][[1, 5, 7]]))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (3, "a teacher is a model with hook points"),
        ("missing.gguf", "there is no file missing.gguf"),
    ],
)
def test_what_is_no_teacher_is_refused(model: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_teacher(model)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("damage", ["config", "weights"])
def test_a_damaged_directory_is_refused(teacher_dir: Path, tmp_path: Path, damage: str) -> None:
    for file in teacher_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / {"config": "config.json", "weights": "model.safetensors"}[damage]
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot load a teacher"):
        load_teacher(tmp_path)


def test_an_unknown_dtype_is_refused(teacher_dir: Path) -> None:
    with pytest.raises(InputError, match="fp32, bf16"):
        load_teacher(str(teacher_dir), dtype="int4")


def test_aliases_and_owners_are_one_model() -> None:
    assert same_model("gpt2-small", "openai-community/gpt2")
    assert same_model("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped")
    assert not same_model("pythia-70m", "pythia-70m-deduped")


def test_either_name_of_a_hook_point_finds_it(bridge: Any) -> None:
    assert hook_point(bridge, "blocks.1.hook_resid_post") is hook_point(bridge, "blocks.1.hook_out")
    assert hook_point(bridge, "blocks.1.hook_mlp_out") is hook_point(bridge, "blocks.1.mlp.hook_out")
    assert name_in(bridge, "blocks.1.hook_out") == "blocks.1.hook_out"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.7.hook_resid_post", "layers 0 to 2, got layer 7"),
        ("blocks.1.hook_nonsense", "no hook point 'blocks.1.hook_nonsense'; it has blocks.0"),
        ("nonsense", "no hook point 'nonsense'"),
    ],
)
def test_a_missing_hook_point_is_refused(bridge: Any, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        hook_point(bridge, name)


def test_reading_stops_at_the_hook_point(bridge: Any, ids: torch.Tensor) -> None:
    """Nothing behind it runs, and what is read is what a whole forward pass has there."""
    ran = []
    handle = hook_point(bridge, "blocks.2.hook_resid_post").register_forward_hook(lambda *_: ran.append(1))
    try:
        with reader(bridge, ["blocks.1.hook_resid_post"]) as read:
            found = read(ids)[0]
        assert not ran
    finally:
        handle.remove()
    _, cache = bridge.run_with_cache(ids)
    torch.testing.assert_close(found, cache["blocks.1.hook_resid_post"])


def test_ids_beyond_the_vocabulary_are_refused(bridge: Any, sae: Any, ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="token id 5300, the teacher's vocabulary ends at 299"):
        measure(bridge, sae, ids + 5001)


def test_activations_that_are_not_finite_are_refused(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    teacher = load_teacher(str(teacher_dir))
    with torch.no_grad():
        next(teacher.model.parameters())[5] = float("nan")
    with pytest.raises(InputError, match="NaN or Inf"):
        measure(teacher.model, sae, ids)


def test_an_sae_of_another_layer_width_or_model_is_refused(
    bridge: Any, sae: Any, ids: torch.Tensor, sae_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not layer 2; set --layer 1"):
        measure(bridge, sae, ids, layer=2)
    from sae_lens import StandardSAE, StandardSAEConfig

    wide = StandardSAE(StandardSAEConfig(d_in=WIDTH + 1, d_sae=40))
    with pytest.raises(InputError, match=f"has {WIDTH} dimensions, the SAE .* reads {WIDTH + 1}"):
        measure(bridge, wide, ids, layer=1)
    config = json.loads((sae_dir / "cfg.json").read_text())
    config["metadata"]["model_name"] = "gpt2-small"
    for file in sae_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert "was trained on gpt2-small" in measure(bridge, tmp_path, ids).warnings[0]
    with pytest.raises(InputError, match="was trained on gpt2-small, the teacher is tiny-prose"):
        measure("tiny-prose", tmp_path, ids)


class Code:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.ran,)


def test_code_that_comes_with_a_model_is_never_run(teacher_dir: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    pickled, foreign = tmp_path / "pickled", tmp_path / "foreign"
    for directory in (pickled, foreign):
        shutil.copytree(teacher_dir, directory)
    (pickled / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": Code(ran)}, pickled / "pytorch_model.bin")
    config = json.loads((foreign / "config.json").read_text()) | {
        "model_type": "foreign", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    }  # fmt: skip
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    with pytest.raises(InputError, match=r"cannot load a teacher from .*pickled"):
        load_teacher(pickled)
    with pytest.raises(InputError, match=r"cannot load a teacher from .*foreign"):
        load_teacher(foreign)
    assert not ran.exists()
