"""Teachers by name, from directories, files and memory; and what is rejected as a teacher."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from tests.helpers.models import save_family
from tests.helpers.type_checks import without_type_checks
from tl_distill_floor import InputError, distill, head_floor, load_teacher, measure
from tl_distill_floor.measuring.hooks import activation_reader
from tl_distill_floor.measuring.token_stream import open_token_stream
from tl_distill_floor.sources.teachers import tokenizer_of


def test_keeps_a_model_in_memory(bridge: Any) -> None:
    assert load_teacher(bridge).model is bridge


def test_loads_a_hugging_face_directory(teacher_dir: Path, bridge: Any, ids: torch.Tensor) -> None:
    teacher = load_teacher(teacher_dir)
    with torch.no_grad():
        assert torch.equal(teacher.model(ids), bridge(ids))
    assert teacher.loading == {"class": "TransformerBridge", "dtype": "float32"}


def test_loading_leaves_the_random_state_as_it_was(teacher_dir: Path) -> None:
    before = torch.random.get_rng_state()
    load_teacher(teacher_dir)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_outside_of_the_vocabulary_separate_no_documents(tokenizer: Any, tmp_path: Path) -> None:
    """TransformerLens gives a tokenizer without special tokens an end-of-text token that the model does not know."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tokenizer.backend_tokenizer))
    directory = save_family(tmp_path / "teacher", plain, "Llama", vocab_size=len(plain))
    model = TransformerBridge.boot_transformers(str(directory), device="cpu")
    outside = len(plain)
    assert model.tokenizer.bos_token_id == outside
    own = tokenizer_of(model)
    assert (own.bos_token_id, own.eos_token_id, model.tokenizer.bos_token_id) == (None, None, outside)
    texts = ["Call me Ishmael. " * 9, "Some years ago. " * 9]
    expected = [token for text in texts for token in plain(text)["input_ids"]]
    for teacher in (load_teacher(model), load_teacher(directory)):
        stream = open_token_stream(teacher, texts, 16, 2)
        rows = torch.cat([ids for _, ids in stream.batches(0, 10**6)])
        assert rows.flatten().tolist() == expected[: rows.numel()]


def test_loads_weights_in_bf16(teacher_dir: Path) -> None:
    assert next(load_teacher(str(teacher_dir), dtype="bf16").model.parameters()).dtype == torch.bfloat16


def test_auto_device_is_the_cpu_without_a_gpu(teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    on_auto, on_cpu = (measure(teacher_dir, sae, ids, device=device) for device in ("auto", "cpu"))
    assert on_auto.sum_cost.tolist() == on_cpu.sum_cost.tolist()
    heads = [head_floor(teacher_dir, ids, widths=[8], steps=2, device=device) for device in ("auto", "cpu")]
    assert heads[0] == heads[1]
    with pytest.raises(InputError, match="to measure, compare or probe it; name one device"):
        distill(teacher_dir, 8, ids, device="auto")


def test_rejects_a_device_without_float64(teacher_dir: Path, bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitate Apple's GPUs, for a teacher loaded by name and for one in memory."""
    real_empty = torch.empty

    def empty_on_mps(*size: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return real_empty(*size, dtype=dtype, **options)

    monkeypatch.setattr(torch, "empty", empty_on_mps)
    for teacher, advice in ((teacher_dir, 'set device="cpu"'), (bridge, r'move the model with model.to\("cpu"\)')):
        with pytest.raises(InputError, match=f"has no float64, which sums need; {advice}"):
            load_teacher(teacher)


def test_says_why_a_device_cannot_be_used(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitate a GPU whose memory another process has taken."""

    def empty(*_size: Any, **_options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nMore")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(InputError, match=r"cannot use device 'cuda' on this machine \(CUDA out of memory\. .*\); set"):
        load_teacher(teacher_dir, device="cuda")


def test_loads_a_gguf_file(tmp_path: Path) -> None:
    """Compare with the weights of a tiny Llama that the gguf package wrote."""
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
    with activation_reader(model, ["blocks.0.hook_resid_pre"]) as read:
        activation = read(torch.tensor([[1, 5, 7]]))[0][0]
    torch.testing.assert_close(activation, torch.from_numpy(weights["token_embd"][[1, 5, 7]]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "got int; give a TransformerLens name"),
        (torch.nn.Linear(2, 2), "got Linear; wrap a transformers model as TransformerBridge.boot_transformers"),
        ("missing.gguf", "there is no file missing.gguf"),
    ],
)
def test_rejects_objects_and_files_that_are_not_teachers(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_teacher(model)


def test_names_the_model_inside_a_wrapper(bridge: Any) -> None:
    with (
        pytest.raises(InputError, match=r"got DataParallel; give the model inside, model\.module"),
        without_type_checks(),
    ):
        load_teacher(torch.nn.DataParallel(bridge))


def test_a_file_of_a_model_names_its_directory(teacher_dir: Path) -> None:
    message = f"is a file, and a teacher is a directory, .*; give its directory, {re.escape(str(teacher_dir))}$"
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(InputError, match=message):
            load_teacher(teacher_dir / name)


def test_a_model_without_the_files_of_its_tokenizer_reads_token_ids(teacher_dir: Path, tmp_path: Path) -> None:
    """For such a directory transformers makes a tokenizer of special tokens, which reads no letter of a text."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(teacher_dir / name, tmp_path)
    teacher = load_teacher(tmp_path)
    assert teacher.model.tokenizer is None
    assert teacher.tokenizer is None
    ids = torch.arange(2 * 48).view(2, 48)
    with torch.no_grad():
        assert torch.equal(teacher.model(ids), load_teacher(teacher_dir).model(ids))
    in_memory = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert tokenizer_of(in_memory) is None
    with pytest.raises(InputError, match="needs a tokenizer, and the model has none; save it in the model's directory"):
        head_floor(teacher, "Call me Ishmael. " * 100)


def test_says_that_a_directory_has_no_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    save_family(tmp_path, tokenizer, "Llama")
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"save its tokenizer in the same directory with tokenizer\.save_pretrained$"):
        load_teacher(tmp_path)


def test_rejects_a_directory_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_teacher(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds an adapter of PEFT without its model; merge them"):
        load_teacher(tmp_path)


def test_rejects_a_model_with_an_adapter_that_only_peft_would_read(teacher_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"adapter of PEFT next to a model; merge them .* or delete adapter_config"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("checkpoint", [{"checkpoint_value": 0}, {"checkpoint_index": 0}, {"revision": "step0"}])
def test_loads_the_first_checkpoint(checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint after 0 steps is another model than the last one, which is loaded without these options."""
    loaded: dict[str, Any] = {}

    def boot_transformers(name: str, **options: Any) -> None:
        loaded.update(options, name=name)
        raise OSError("offline")

    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.boot_transformers", boot_transformers)
    unset = dict.fromkeys(("revision", "checkpoint_index", "checkpoint_value", "fold_ln"))
    with pytest.raises(InputError, match="cannot load a teacher from 'pythia-14m'"):
        load_teacher("pythia-14m", model_kwargs=unset | checkpoint)
    assert loaded["name"] == "EleutherAI/pythia-14m"
    assert {name: loaded[name] for name in unset if name in loaded} == checkpoint


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you")]
)
def test_says_what_to_do_if_a_teacher_does_not_fit_into_memory(
    error: Exception, teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot_transformers(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("transformer_lens.model_bridge.TransformerBridge.boot_transformers", boot_transformers)
    with pytest.raises(InputError, match=r'memory.*\); set dtype="bf16" or another device=, or give a smaller'):
        load_teacher(teacher_dir)


@pytest.mark.parametrize("damage", ["config", "weights"])
def test_rejects_a_damaged_directory(teacher_dir: Path, tmp_path: Path, damage: str) -> None:
    for file in teacher_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / {"config": "config.json", "weights": "model.safetensors"}[damage]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot load a teacher"):
        load_teacher(tmp_path)


def test_names_an_architecture_that_is_not_supported_in_one_sentence(teacher_dir: Path, tmp_path: Path) -> None:
    """TransformerLens lists all architectures that it supports."""
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    config = {"model_type": "whisper", "architectures": ["WhisperForAudioClassification"], "d_model": 8}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"cannot load a teacher from .*architecture[^.\n]*\); check its config"
    ) as caught:
        load_teacher(tmp_path / "teacher")
    assert "GPT2LMHeadModel" not in str(caught.value)


def test_rejects_an_unknown_dtype(teacher_dir: Path) -> None:
    with pytest.raises(InputError, match="dtype must be one of fp32, bf16, got 'int4'"), without_type_checks():
        load_teacher(str(teacher_dir), dtype="int4")


class CreatesFileWhenUnpickled:
    """An object whose pickle runs code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_does_not_run_code_that_comes_with_a_model(teacher_dir: Path, tmp_path: Path) -> None:
    created = tmp_path / "created"
    pickled, foreign = tmp_path / "pickled", tmp_path / "foreign"
    for directory in (pickled, foreign):
        shutil.copytree(teacher_dir, directory)
    (pickled / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": CreatesFileWhenUnpickled(created)}, pickled / "pytorch_model.bin")
    config = json.loads((foreign / "config.json").read_text()) | {
        "model_type": "foreign", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    }  # fmt: skip
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text(f"from pathlib import Path\nPath({str(created)!r}).touch()\n")
    with pytest.raises(InputError, match=r"cannot load a teacher from .*pickled"):
        load_teacher(pickled)
    with pytest.raises(InputError, match=r"cannot load a teacher from .*foreign"):
        load_teacher(foreign)
    assert not created.exists()
