"""What is saved with a student: the teacher's tokenizer and generation settings, and the loss that was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, GPTNeoXForCausalLM

from tests.helpers.models import LAYERS, save_teacher
from tl_distill_floor.distilling.training import saved_loss
from tl_distill_floor.distilling.training.config import DistillConfig
from tl_distill_floor.distilling.training.distill import distill
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult

QUICK = DistillConfig(n_tokens=32 * 8 * 2, batch_size=8, n_evaluations=1, n_heldout_tokens=64, early_stop=False)


@pytest.fixture
def chat_teacher(tmp_path: Path, tokenizer: Any) -> Path:
    """Save a teacher with a chat template, end tokens, sampling settings, and the settings of a quantization."""
    directory = save_teacher(tmp_path / "chat-teacher", tokenizer, LAYERS)
    own = AutoTokenizer.from_pretrained(directory)
    own.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    own.save_pretrained(directory)
    settings = {"eos_token_id": [0, 5], "pad_token_id": 5, "do_sample": False, "temperature": 0.6}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def test_student_has_its_teachers_tokenizer_and_generation_settings(
    chat_teacher: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    """A temperature without sampling is in published models, and transformers refuses to save it."""
    result = distill(str(chat_teacher), 8, ids, out=tmp_path / "run", config=QUICK)
    assert result.path is not None
    own, saved = (AutoTokenizer.from_pretrained(path) for path in (chat_teacher, result.path))
    assert own("Call me")["input_ids"] == saved("Call me")["input_ids"]
    assert (own.pad_token, own.padding_side, own.chat_template) == (
        saved.pad_token, saved.padding_side, saved.chat_template,
    )  # fmt: skip
    settings = GenerationConfig.from_pretrained(result.path)
    assert (settings.eos_token_id, settings.pad_token_id, settings.temperature) == ([0, 5], 5, 0.6)
    assert "warnings" not in result.settings


def test_says_that_a_tokenizer_cannot_be_read_again(chat_teacher: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    teacher = TransformerBridge.boot_transformers(str(chat_teacher), device="cpu")
    for file in chat_teacher.glob("*token*"):
        file.unlink()
    result = distill(teacher, 8, ids, out=tmp_path / "run", config=QUICK)
    (warning,) = result.settings["warnings"]
    assert warning.startswith("the tokenizer is saved as TransformerLens changed it")


def test_student_has_no_quantization_settings(bridge: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    config = bridge.original_model.config
    config.quantization_config = {"quant_method": "made"}
    try:
        result = distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    finally:
        del config.quantization_config
    assert result.path is not None
    assert "quantization_config" not in json.loads((Path(result.path) / "config.json").read_text())


def test_rejects_a_student_that_is_saved_with_another_loss(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of the student, and its training can be resumed."""

    def read_other_weights(directory: Path, **options: Any) -> Any:
        model = GPTNeoXForCausalLM.from_pretrained(directory, **options)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(0.5)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(saved_loss.AutoModelForCausalLM, "from_pretrained", read_other_weights)
        with pytest.raises(InputError, match=r"width8: read by transformers, the saved student has a loss of"):
            distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    assert not (tmp_path / "students" / "width8").exists()
    resumed = distill(bridge, 8, ids, out=tmp_path, config=QUICK, resume=True)
    assert StudentResult.load(tmp_path / "students" / "width8") == resumed


def test_keeps_the_weights_of_a_student_that_cannot_be_saved(
    bridge: Any, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strict configuration names the field in the first line of its message, and the reason in the second."""

    def refuse(*_args: Any, **_options: Any) -> None:
        raise ValueError("Class validation error:\n    the width is no multiple of the number of heads")

    kept = tmp_path / "students" / "width8-weights.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(GPTNeoXForCausalLM, "save_pretrained", refuse)
        with pytest.raises(InputError, match=r"save width8 \(the width is no multiple.* are in .*width8-weights"):
            distill(bridge, 8, ids, out=tmp_path, config=QUICK)
    weights = load_file(kept)
    with safe_open(kept, "pt") as file:
        assert json.loads(file.metadata()["config"])["hidden_size"] == 8
    assert not (tmp_path / "students" / "width8").exists()
    distill(bridge, 8, ids, out=tmp_path, config=QUICK, resume=True)
    saved = GPTNeoXForCausalLM.from_pretrained(tmp_path / "students" / "width8").state_dict()
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in saved.items())
    assert not kept.exists()
